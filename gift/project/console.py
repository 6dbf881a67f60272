"""A stage as a process that a person looks at: progress, one closing line, no noise; it ends with who started it.

Run as a script it is the process of a `Guard`.
"""

import atexit
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import click

from gift.project.errors import refused
from gift.project.machine import with_our_code

T = TypeVar("T")
GOES_ON = "interrupted; `make repro` goes on from here"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def quiet() -> None:
    """Silence vLLM, transformers and DeepSpeed (GIFT_VERBOSE=1 lets them speak); call before importing them."""
    # They make a million objects that stay; looking through those for garbage took a tenth of the time to import them.
    gc.set_threshold(100_000, 20, 100)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if os.environ.get("GIFT_VERBOSE") == "1":
        return
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


class Listener(Protocol):
    """Who hears how far the part that is being made is."""

    def within(self, share: float, tokens: int = 0) -> None:
        """So much of it is done, in so many tokens."""


_shown: list[Listener] = []


def within(share: float, tokens: int = 0) -> None:
    """`Progress.within` of the innermost that is shown, for what does not know it; nothing where none is."""
    if _shown:
        _shown[-1].within(share, tokens)


def through(items: Sequence[T], part: int, parts: int) -> Iterator[T]:
    """The items, one after the other, of one of the `parts` that a part is made of; each says where it is."""
    for index, item in enumerate(items):
        yield item
        within((part + (index + 1) / len(items)) / parts)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Whom `within` tells meanwhile."""
    _shown.append(listener)
    try:
        yield
    finally:
        _shown.remove(listener)


class Progress:
    """A line with tokens/s and ETA, anew on a terminal; elsewhere one every ten seconds at most."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.first, self.done, self.tokens = done, done, 0
        self.start = self.shown = time.monotonic()
        self.count = 1  # that the next `advance` counts, for `within`
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        _shown.append(self)
        if self.done:
            click.echo(f"{self.label}: {self.done}/{self.total} {self.unit} were finished before; going on", err=True)
        return self

    def __exit__(self, *error: object) -> None:
        _shown.remove(self)
        if self.terminal:
            click.echo("\r\x1b[K", err=True, nl=False)

    def advance(self, count: int = 1, tokens: int = 0) -> None:
        self.done += count
        self.tokens += tokens
        self._show(self.done, f"{self.done}", self.tokens, 10)

    def within(self, share: float, tokens: int = 0) -> None:
        """So much of the next `count` is done: where each takes minutes, people see that it goes on."""
        self.open_parts([(self.count, share, tokens)])

    def open_parts(self, parts: Sequence[tuple[int, float, int]]) -> None:
        """The parts that are being made at once: what each counts when it is done, its share so far, its tokens."""
        done = self.done + sum(count * share for count, share, _ in parts)
        by_ones = all(count == 1 for count, _, _ in parts)
        tokens = self.tokens + sum(tokens for _, _, tokens in parts)
        self._show(done, f"{done:.1f}" if by_ones else f"{int(done)}", tokens, 60)

    def _show(self, done: float, shown: str, tokens: int, pause: float) -> None:
        now = time.monotonic()
        if now - self.shown < (0.2 if self.terminal else pause) or done <= self.first:
            return
        self.shown = now
        seconds = max(now - self.start, 1e-9)
        left = (self.total - done) * seconds / (done - self.first)
        rate = f", {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s" if tokens else ""
        line = f"{self.label}: {shown}/{self.total} {self.unit}{rate}, {left:.0f} s left"
        click.echo(f"\r\x1b[K{line}" if self.terminal else line, err=True, nl=not self.terminal)


def end_with_parent(by: int = signal.SIGTERM) -> None:
    """Have the kernel end this process when the one that started it ends: no stage goes on without its DVC."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)


class Guard:
    """Ends what a library has started for this process when that has ended, however it did, or at `close`.

    For what would stay: Ray's agents, and vLLM's engines, which hold GPUs. `before`: what `started` gave before it did.
    """

    def __init__(self, before: Collection[Any]) -> None:
        ours = [f"{each.pid}:{each.create_time()}" for each in self.started() if each not in before]
        command = [sys.executable, "-m", __name__, *ours]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=with_our_code(), start_new_session=True)

    @staticmethod
    def started() -> list[Any]:
        """The processes below this one (psutil's)."""
        import psutil

        return psutil.Process().children(recursive=True)

    def close(self) -> None:
        self.process.communicate()

    @staticmethod
    def main(processes: list[str]) -> None:
        """The guard's own process."""
        import psutil

        sys.stdin.read()  # until the other end is closed
        for pid, since in (each.split(":") for each in processes):
            with suppress(psutil.Error):
                if (process := psutil.Process(int(pid))).create_time() == float(since):
                    process.kill()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is a line that says how to go on, and no traceback."""
    try:
        yield
    except (click.Abort, KeyboardInterrupt):
        click.echo(GOES_ON, err=True)
        sys.exit(128 + signal.SIGINT)


def run(stage: click.Command) -> None:
    """Run a stage as this process, which ends with it: after torch or vLLM Python takes seconds to clear up its memory.

    So does a failed one: where ranks lost each other, clearing up can abort the process, whose exit code is then
    another's. What was registered for the end still happens. A stage that leaves threads or processes to be waited for
    ends in Python's own way.
    """
    code = 0
    end_with_parent()
    try:
        _main(stage)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    if multiprocessing.active_children() or any(not each.daemon for each in threading.enumerate()[1:]):
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _main(stage: click.Command) -> None:
    from gift.project import door  # late: with it comes half of this package, and some import this file alone

    try:
        with interruptible():
            door.enter()
            stage.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        line = refused(error)
        if line is None:
            raise
        line.show()
        sys.exit(1)


def say(stage: str, **numbers: object) -> None:
    """The closing line of a stage: its main numbers.

    Its outputs are in their places by then, so that a stdout which is full or closed costs the line alone.
    """
    shown = ", ".join(f"{name.replace('_', ' ')} {_format(value)}" for name, value in numbers.items())
    with suppress(OSError, ValueError):
        click.echo(f"{stage}: {shown}")


def _format(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    Guard.main(sys.argv[1:])
