"""One worker of a stage: `python -m gift.worker --fd N`, or --connect HOST:PORT --token FILE (gift/workers/)."""

import os
import socket
import sys
from pathlib import Path

from gift.project.console import interruptible, quiet
from gift.project.errors import UserError
from gift.workers.channel import Channel, Gone, channel_of, connect, read_token
from gift.workers.worker import serve

KINDS = {
    "sample": "gift.sampling.parts",
    "reference": "gift.training.reference.table",
    "score": "gift.scoring.scorer",
}
"""The module of each kind of work: its `open_job` loads what a job needs (`Open`)."""


def channel(way: str, *rest: str) -> Channel:
    """To the stage: an inherited socket, or one that listens and wants the token."""
    if way == "--fd":
        end = socket.socket(fileno=int(rest[0]))
        end.set_inheritable(False)
        return channel_of(end)
    address, _, token = rest
    return connect(address, read_token(Path(token)))


def main(arguments: list[str]) -> int:
    if cores := os.environ.pop("GIFT_CORES", ""):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    if "torch" in sys.modules:  # a fork: the variable was read by then
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    quiet()
    try:
        return serve(channel(*arguments), KINDS)
    except UserError as error:
        error.show()
    except Gone as error:
        print(f"error: the stage cannot be reached: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    with interruptible():
        code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # a policy in memory takes Python seconds to clear up
