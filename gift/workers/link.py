"""A worker as the stage sees it: a channel, the part that it has, and how to end it; and where workers come from."""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from gift.workers.channel import Channel


@dataclass(frozen=True)
class Job:
    """What the workers of a stage are for.

    stage: whose code they must have (`generate`); kind: which module does the work (`gift/worker.py`); setup: what it
    loads before its first part (JSON); gpus: how many a worker has where there are any; number: of workers, on a
    machine or in a Ray cluster, None: as many as there are GPUs for; key: of what its workers keep in memory for the
    next stage of this `gift repro` (gift/workers/served.py), None: nothing.
    """

    stage: str
    label: str
    kind: str
    setup: dict[str, Any]
    gpus: int = 1
    number: int | None = None
    key: str | None = None


@dataclass(frozen=True)
class Part:
    """A part to be made: its number, what a worker has to know of it (asked when its turn comes), place and count."""

    index: int
    task: Callable[[], dict[str, Any]]
    path: Path
    count: int = 1


State = Literal["waiting", "greeted", "loading", "ready"]
"""Waiting: for a place to run, however long."""


@dataclass(eq=False)
class Link:
    """One worker. `kill` ends it for good; `how` says how it ended, once it has; `rest` keeps it for another stage."""

    channel: Channel
    name: str = "a worker"
    host: str = ""
    pid: int = 0  # there
    kill: Callable[[], None] = lambda: None
    how: Callable[[], str] = lambda: "its connection was lost"
    rest: Callable[[], None] | None = None
    has_rested: bool = False
    is_unfit: bool = False  # what it has of the stage before
    state: State = "greeted"
    part: Part | None = None
    file: Path = Path()
    share: float = 0.0
    tokens: int = 0
    heard: float = field(default_factory=time.monotonic)  # when it last got on

    def got_on(self, share: float, tokens: int) -> None:
        """Take down how far its part is; what stands still is no progress."""
        if (share, tokens) != (self.share, self.tokens):
            self.heard = time.monotonic()
        self.share, self.tokens = share, tokens


class Source(Protocol):
    """Where workers come from."""

    def links(self, num_open: int) -> list[Link]:
        """Workers that are new, where so many parts are neither made nor given out; a `UserError`: none will come."""

    def lost(self, link: Link) -> None:
        """One that ended; was it of this source, another may take its place."""

    def close(self) -> None:
        """End all that it started."""


class Process(Protocol):
    """Of this machine: one of `subprocess`, or of `served`."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """How it ended: its exit code, or the signal, negative; raises `subprocess.TimeoutExpired`."""


def ending(process: Process) -> str:
    """How a process ended, in words."""
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        return "it closed its connection"
    if code == -signal.SIGKILL:
        return "SIGKILL, perhaps for its memory"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
