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


def environment() -> dict[str, str]:
    """As in a shell where .venv is activated: dvc.yaml says `python`."""
    return {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")])}
