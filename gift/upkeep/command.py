"""DVC as a command (gift/upkeep/dvc.py), whose stages find this Python."""

import os
import sys
from pathlib import Path

ONLY = "GIFT_STAGES"
"""Of the environment: the addresses (JSON) of the stages of dvc.yaml that DVC reads; without it all."""
BIN = Path(sys.executable).parent


def dvc(*words: str) -> list[str]:
    """The words of a DVC command; it waits for another one that holds the project's lock."""
    return [sys.executable, "-m", "gift.upkeep.dvc", "--wait-for-lock", *words]


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
TURNS = "1000"
"""How often a thread of torch looks for work before it sleeps: where another program uses a core too, the 300,000 of
GNU's OpenMP make a small model ten times slower; on cores of its own it is as fast with these (docs/log.md)."""


def environment() -> dict[str, str]:
    """As in a shell where .venv is activated: dvc.yaml says `python`; how threads wait, where nobody says it.

    torch's own log is read from here before a stage can be quiet: vLLM writes a warning for each CPU that it starts on.
    """
    waiting = {} if {*WAITING} & os.environ.keys() else {WAITING[1]: TURNS}
    quiet = {} if os.environ.get("GIFT_VERBOSE") == "1" else {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**quiet, **os.environ, **waiting, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")])}
