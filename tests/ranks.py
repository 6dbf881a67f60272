"""Ranks on loopback, as torchrun would start them; shared by the tests of the engine and of the trainer."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from forks import forks
from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]


def run_ranks(number: int, file: str, folder: Path, **env: str) -> list[tuple[int, str]]:
    """Exit code and words of every rank of `python -W error <file> <folder>`."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the system picks a free port
    common = {
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the ranks join the store above, as they do under torchrun
        **env,
    }
    said = [folder / f"rank-{rank}.txt" for rank in range(number)]
    for out in said:
        out.unlink(missing_ok=True)  # of ranks that ran here before
    ranks = [
        forks().start(
            [file, str(folder)], {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, out, strict=True
        )
        for rank, out in enumerate(said)
    ]
    return [(forks().wait(rank), out.read_text()) for rank, out in zip(ranks, said, strict=True)]


def run_two_ranks(file: str, folder: Path, **env: str) -> list[tuple[int, str]]:
    """`run_ranks` of two."""
    return run_ranks(2, file, folder, **env)


def run_as_rank(worker: Callable[[Path], None]) -> None:
    """What such a file does when it is started: `worker(folder)`, then the end that stages have (console.run).

    At the end of Python gloo's threads abort the process once in a few hundred times, though all its work is done.
    """
    worker(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
