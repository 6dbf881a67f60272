"""What one `gift repro` keeps in memory for its stages: a server that has their libraries, and engines that stay."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gift.project.console import end_with_parent
from gift.workers.served import KEEP, PRELOADED, SERVER

LIBRARIES = (
    *("torch", "transformers", "transformers.models.auto.modeling_auto", "pyarrow.parquet", "pyarrow.dataset"),
    "ruamel.yaml",
)
TRAINING = ("deepspeed", "deepspeed.module_inject.auto_ep_layer")
VLLM = (
    *("vllm", "vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.engine.core", "vllm.lora.request"),
    *("vllm.v1.worker.cpu_worker", "pandas", "compressed_tensors"),
)
ADAPTERS = ("peft",)
OURS = ("gift.launch", "gift.training.launcher", "gift.worker")
FORKED = ("base", "generate", "generate_eval", "score", "reference", "update", "evaluate")
"""The stages that dvc.yaml starts by gift/launch.py."""
SAMPLING = {"generate": "generate", "generate_eval": "evaluate"}
"""The stages that sample, and their sections of params.yaml."""


@contextmanager
def preloaded(modules: Sequence[str], environment: dict[str, str], keep: str | None = None) -> Iterator[dict[str, str]]:
    """A server while the block runs; yields the environment for what may use it.

    keep: see `KEEP`; without modules stages are no forks of the server.
    """
    name = f"gift-{os.urandom(16).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name}")  # an abstract name: no file that could be left behind
        listener.listen()
        command = [sys.executable, "-m", "gift.workers.server", str(listener.fileno()), *modules]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        own = {"env": environment, "pass_fds": [listener.fileno()], "preexec_fn": _end_with_us}
        server = subprocess.Popen(command, **own, **streams)  # type: ignore[call-overload]
    try:
        yield {**environment, SERVER: name, **({PRELOADED: name} if modules else {}), **({KEEP: keep} if keep else {})}
    finally:
        server.kill()
        server.wait()


def _end_with_us() -> None:
    end_with_parent(signal.SIGKILL)


def modules_for(stages: Sequence[str], params: dict[str, Any], in_process: bool) -> list[str]:
    """What the stages of a run (addresses) import that takes long; nothing where only one of them does."""
    heavy = [kind for kind in kinds_of(stages) if kind in ("base", "reference", "update", *SAMPLING)]
    if len(heavy) < 2:
        return []

    def key(section: str, name: str) -> Any:  # what is wrong in the settings is said later, by the doctor
        found = params.get(section)
        return found.get(name) if isinstance(found, dict) else None

    engines = {key(SAMPLING[kind], "engine") or "vllm" for kind in heavy if kind in SAMPLING}
    found = [*LIBRARIES, *(TRAINING if "update" in heavy and in_process else ()), *(VLLM if "vllm" in engines else ())]
    found += ADAPTERS if key("update", "lora") else ()
    kinds = dict.fromkeys(kind for kind in kinds_of(stages) if kind in FORKED)
    return [*found, *OURS, *(f"stages.{kind}" for kind in kinds)]


def kept_in(stages: Sequence[str], wanted: bool | None, on_gpu: bool) -> str | None:
    """Which engines stay in memory between the stages of a run (`KEEP`); none where only one of them samples.

    wanted: `repro.keep_engine` of launch.yaml.
    """
    several = sum(kind in SAMPLING for kind in kinds_of(stages)) > 1
    if not several or wanted is False or (wanted is None and on_gpu):
        return None
    return "any" if wanted else "small"


def kinds_of(stages: Sequence[str]) -> list[str]:
    """The kind of each address: generate@r1 is generate, and generate_eval_base is generate_eval."""
    return [re.sub(r"_base$", "", address.partition("@")[0]) for address in stages]
