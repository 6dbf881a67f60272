"""The GPUs of this machine, found without torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpus:
    """NVIDIA's on this machine that this process may use; the memory of the smallest in bytes, None if not known."""

    count: int
    memory: int | None = None


def find_gpus(devices: Path = Path("/dev")) -> Gpus:
    """By their device files, without torch; CUDA_VISIBLE_DEVICES narrows them."""
    count = len(list(devices.glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = min(count, len([word for word in visible.split(",") if word.strip() not in ("", "-1")]))
    if not count or not shutil.which("nvidia-smi"):
        return Gpus(count)
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Gpus(count)
    sizes = [int(line) * 2**20 for line in said.split() if line.isdigit()]
    return Gpus(count, min(sizes, default=None))
