"""Fresh processes one after another, and what a step takes in them: seconds, memory at rest, and memory at its peak."""

import ctypes
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from gift.project import console

Result = TypeVar("Result")


def set_threads(threads: int) -> None:
    """The threads of every process started from now on; 0 is one a core that this process may use."""
    os.environ["OMP_NUM_THREADS"] = str(threads or len(os.sched_getaffinity(0)))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is fetched


def fresh(function: Callable[..., Result], *arguments: Any) -> Result:
    """The function's result in a new Python process, which ends with it; what the libraries print goes to stderr."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_call, function, arguments).result()


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    console.quiet()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.dup2(2, 1)
    return function(*arguments)


def resident(field: str = "VmRSS") -> float:
    """Resident memory of this process in MiB; `VmHWM` is the most since it began, or since the last `settle`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def settle() -> float:
    """Give free memory back, begin the peak anew, and return what is resident now, in MiB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    return resident()


class Recorder:
    """Times steps between `begin` and `end`; after `warmup` of them memory is settled, and one more is not timed.

    What is at rest then are the libraries, the weights and the optimizer's moments: steps hold no gradient between
    them. The step after it brings the memory back that was given away, and so is no fair sample of a step's time.
    """

    def __init__(self, warmup: int, cuda: bool) -> None:
        self.warmup, self.cuda = warmup, cuda
        self.libraries = resident()  # made after the imports, before the model is loaded
        self.seconds: list[float] = []
        self.rest = 0.0
        self.start = 0.0

    def begin(self) -> None:
        self._wait()
        self.start = time.perf_counter()

    def end(self) -> None:
        self._wait()
        self.seconds.append(time.perf_counter() - self.start)
        if len(self.seconds) == self.warmup:
            self.rest = settle()
            if self.cuda:
                import torch

                torch.cuda.reset_peak_memory_stats()
                self.rest = torch.cuda.memory_allocated() / 2**20

    def results(self) -> dict[str, Any]:
        """Seconds of each timed step; MiB of the process (of the GPU, where there is one) at rest and at the peak."""
        peak = resident("VmHWM")
        if self.cuda:
            import torch

            peak = torch.cuda.max_memory_allocated() / 2**20
        return {
            "seconds": self.seconds[self.warmup + 1 :],
            "libraries_mib": 0.0 if self.cuda else self.libraries,
            "rest_mib": self.rest,
            "peak_mib": peak,
        }

    def run(self, step: Callable[[], object], steps: int) -> dict[str, Any]:
        """`warmup` + 1 + `steps` calls."""
        for _ in range(self.warmup + 1 + steps):
            self.begin()
            step()
            self.end()
        return self.results()

    def _wait(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()


def pooled(runs: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Several processes' results as one: the median over all their steps, and over processes for memory."""
    runs = list(runs)
    seconds = [value for run in runs for value in run["seconds"]]
    memory = ("libraries_mib", "rest_mib", "peak_mib")
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        **{name: statistics.median(run[name] for run in runs) for name in memory if name in runs[0]},
    }


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, file=sys.stderr, flush=True)
