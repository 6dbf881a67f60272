"""One worker as the pool sees it: a process, a socket, and lines that are believed where their form is right."""

import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.project.errors import UserError
from gift.scoring.loading import Loaded
from gift.scoring.workers.worker import CONNECTION_LOST, Entry
from gift.tables.scores import STATUSES

SEND_SECONDS = 60
LINE_BYTES = 2**24
GARBAGE = "wrote to the connection of the pool"


class Broken(Exception):
    """The worker's connection is of no more use; its text says why, where that is not its death."""


@dataclass(frozen=True)
class Line:
    """What became of a call; see gift/scoring/workers/worker.py."""

    seconds: float
    again: str | None
    whole: bool
    entries: list[Entry]


class WorkerProcess:
    """A fresh interpreter in the project's folder, in a session of its own; it writes no bytecode to rewards/.

    What functions print is shown with GIFT_VERBOSE=1 only. Where memory is limited a library gets one thread: its
    threads' stacks and buffers count, and there is a worker for every core.
    """

    def __init__(
        self, rewards: list[Loaded], timeout_seconds: float, memory_gib: float | None, environment: dict[str, str]
    ) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        root = str(Path(__file__).parents[3])
        threads = {} if memory_gib is None else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        printed = None if os.environ.get("GIFT_VERBOSE") == "1" else subprocess.DEVNULL
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from gift.scoring.workers.worker import main; main()", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    **environment,
                    **threads,
                    "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
                    "PYTHONHASHSEED": "0",
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.loaded, self.number, self.data = False, 0, bytearray()
        self.send((rewards, timeout_seconds, memory_gib))

    def send(self, message: Any) -> bool:
        """Send a message; False where the worker takes none, because it died or was stopped."""
        data = pickle.dumps(message)
        try:
            self.socket.sendall(len(data).to_bytes(8) + data)
        except OSError:
            return False
        return True

    def lines(self) -> Iterator[Line | None]:
        """What the worker has said since the last look: None where it has loaded, then a `Line` a call.

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
                for text in whole:
                    yield self._understood(text)
            if len(self.data) > LINE_BYTES:
                raise Broken(GARBAGE)

    def _understood(self, text: bytearray) -> Line | None:
        try:
            content = json.loads(text)
            if not self.loaded:
                if content is not None:
                    raise UserError(str(content))
                self.loaded = True
                return None
            number, seconds, again, whole, entries = content
            if number != self.number or whole not in (True, False) or (whole and len(entries) != 1):
                raise ValueError(text)
            line = Line(float(seconds), again, whole, [_entry(*entry) for entry in entries])
        except (ValueError, TypeError, RecursionError):
            raise Broken(GARBAGE) from None
        self.number += 1
        return line

    def death(self, doing: str = "") -> str:
        """How the process ended, in words; one that lives on has lost or closed its connection."""
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            code = CONNECTION_LOST
        if code == CONNECTION_LOST:
            return f"closed its connection{doing}"
        if code == -signal.SIGKILL:
            return f"died{doing} (SIGKILL, perhaps for its memory)"
        return f"died{doing} ({f'exit code {code}' if code >= 0 else signal.Signals(-code).name})"

    def has_ended(self) -> bool:
        return self.process.poll() is not None

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
