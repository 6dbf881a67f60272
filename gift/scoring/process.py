"""One worker as the pool sees it: a process, a socket, its calls; lines are believed where their form is right."""

import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gift.project.errors import UserError
from gift.project.machine import with_our_code
from gift.scoring.loading import Loaded
from gift.scoring.worker import CONNECTION_LOST, Entry
from gift.tables.scores import STATUSES

SEND_SECONDS = 60
LINE_BYTES = 2**24
GARBAGE = "the worker process wrote to the connection of the pool"
Call = tuple[str, list[int]]  # a reward's name and the rows that it is called with
Line = tuple[float, list[Entry]]  # what became of a call: its seconds; an entry for each of its rows, or one for all


class Broken(Exception):
    """The worker's connection is of no more use; its text says why, where that is not its death."""


@dataclass(eq=False)
class Lane:
    """Functions that share workers, and the calls that wait for one; seconds to load them, and to make a call."""

    rewards: list[Loaded]
    num_workers: int
    memory_gib: float | None
    start_seconds: float
    timeout_seconds: float
    environment: dict[str, str]
    workers: list["Worker"] = field(default_factory=list)
    pending: deque[Call] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.limits = {reward.name: reward.timeout_seconds or self.timeout_seconds for reward in self.rewards}

    def num_open(self) -> int:
        return len(self.pending) + sum(bool(worker.calls) for worker in self.workers)


class Worker:
    """A fresh interpreter in the project's folder, in a session of its own; it joins its lane, and writes no bytecode.

    `calls` are those that it has, or gets once it is `ready`; it is at the first of them since `started`. What
    functions print is shown with GIFT_VERBOSE=1 only. Where memory is limited a library gets one thread: its threads'
    stacks and buffers count, and there is a worker for every core.
    """

    def __init__(self, lane: Lane, *calls: Call) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        threads = {} if lane.memory_gib is None else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        printed = None if os.environ.get("GIFT_VERBOSE") == "1" else subprocess.DEVNULL
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from gift.scoring.worker import main; main()", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={
                    **with_our_code(),
                    **lane.environment,
                    **threads,
                    "PYTHONHASHSEED": "0",
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.lane, self.calls, self.started = lane, deque(calls), time.monotonic()
        self.ready, self.num_done, self.data = False, 0, bytearray()
        self.send((lane.rewards, lane.limits, lane.memory_gib))
        lane.workers.append(self)

    def deadline(self) -> float:
        """When it must have loaded, or have made the call that it is at."""
        if not self.ready:
            return self.started + self.lane.start_seconds
        return self.started + self.lane.limits[self.calls[0][0]] if self.calls else float("inf")

    def send(self, message: Any) -> bool:
        """Send a message; False where the worker takes none, because it died or was stopped."""
        try:
            self.socket.sendall(pickle.dumps(message))
        except OSError:
            return False
        return True

    def lines(self) -> Iterator[Line | None]:
        """What the worker has said since the last look: None where it has loaded, then a line a call.

        Raises `Broken` where it has closed its connection or wrote something else, UserError where it cannot load.
        """
        while True:
            try:
                data = self.socket.recv(2**16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise Broken
            self.data += data
            if b"\n" in data:
                *whole, self.data = self.data.split(b"\n")
                yield from map(self._understood, whole)
            if len(self.data) > LINE_BYTES:
                raise Broken(GARBAGE)

    def _understood(self, text: bytearray) -> Line | None:
        try:
            content = json.loads(text)
            if not self.ready:
                if content is not None:
                    raise UserError(str(content))
                self.ready = True
                return None
            number, seconds, entries = content
            if number != self.num_done:
                raise ValueError(text)
            line = float(seconds), [_entry(*entry) for entry in entries]
        except (ValueError, TypeError, RecursionError):
            raise Broken(GARBAGE) from None
        self.num_done += 1
        return line

    def lateness(self) -> str:
        if not self.ready:
            return f"the worker process did not finish loading within {self.lane.start_seconds:g} s"
        return f"no result after {self.lane.limits[self.calls[0][0]]:g} s"

    def death(self) -> str:
        """How the process ended, in words; one that lives on has lost or closed its connection."""
        doing = "" if self.ready else " while loading"
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            code = CONNECTION_LOST
        if code == CONNECTION_LOST:
            return f"the worker process closed its connection{doing}"
        if code == -signal.SIGKILL:
            return f"the worker process died{doing} (SIGKILL, perhaps for its memory)"
        return f"the worker process died{doing} ({f'exit code {code}' if code >= 0 else signal.Signals(-code).name})"

    def kill(self) -> None:
        """Kill the process and its group, and wait for its end."""
        self.socket.close()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def _entry(value: float | None, status: str, message: str | None) -> Entry:
    number = None if value is None else float(value)
    if status not in STATUSES or (status == "ok") != (number is not None) or not isinstance(message, str | None):
        raise ValueError(status)
    return number, status, message
