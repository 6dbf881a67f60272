"""The report while a run goes on: made anew, in a process of its own, after each round that is evaluated."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from gift.project.console import end_with_parent
from gift.project.params import read_launch
from gift.report.history import HISTORY
from gift.report.page.write import PAGE
from gift.upkeep.settings import ReproLaunch

SECONDS = 2.0
"""Between two looks at the history."""
NICE = 10
TIMEOUT = 600
"""Seconds after which a tracker that does not answer is left."""


@contextmanager
def report_kept_new() -> Iterator[None]:
    """Until the end of the block, which is waited for by a last report where something came after the one before."""
    stop = threading.Event()
    known = _state()
    if not PAGE.exists() or any(time > PAGE.stat().st_mtime_ns for _, time in known):
        known = []  # the page is not of what is there

    def watch() -> None:
        nonlocal known
        ended = False
        while not ended:
            ended = stop.wait(SECONDS)
            now = _state()
            if now and now != known:
                known = now
                try:
                    _write()
                except Exception as error:  # a settings file that is being edited: the run has its own say of it
                    click.echo(f"the report was not made: {(str(error).splitlines() or [''])[0]}", err=True)

    # The kernel ends a child when the thread that started it ends: this one outlives the reports that it starts.
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _state() -> list[tuple[str, int]]:
    """The rounds that are evaluated, and when that was."""
    found = []
    for path in HISTORY.glob("*.json"):
        with suppress(FileNotFoundError):  # DVC takes it away before it is made again
            found.append((path.name, path.stat().st_mtime_ns))
    return sorted(found)


def _write() -> None:
    """The report, then what launch.yaml exports to; one that fails costs a line, never the run."""

    def begin() -> None:
        end_with_parent()
        os.nice(NICE)

    for words in (["report"], *(["export", to] for to in read_launch("repro", ReproLaunch).export)):
        command = [sys.executable, "-m", "gift.cli", *words]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "timeout": TIMEOUT, "preexec_fn": begin}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
            shown = " ".join(words)
            click.echo(f"gift {shown}: {said} (the run goes on; `gift {shown}` tries it again)", err=True)
