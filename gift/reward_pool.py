"""Worker processes for reward functions, killed at the time limit: a hang or a crash costs one row of one function.

Each worker has a socket of its own, so that the row a dead worker was at is known exactly. (A pool with one shared
channel, pebble's, was measured first: after about one in a thousand crashes it waits for ever; docs/log.md.)
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from gift.errors import UserError
from gift.reward_worker import Loaded, Outcome

BATCH = 32
START_SECONDS = 120

Call = tuple[int, str, dict[str, list[Any]]]
"""(row number, reward name, arguments as lists of one row)."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    ready: bool = False
    calls: deque[Call] = field(default_factory=deque)
    started: float = 0.0


class RewardPool:
    """`with RewardPool(...) as pool: for row, name, outcome in pool.run(calls): ...`"""

    def __init__(self, rewards: list[Loaded], workers: int, timeout_seconds: float) -> None:
        self.rewards, self.timeout = rewards, timeout_seconds
        self.num_workers = workers
        self.workers: list[_Worker] = []

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.workers:
            _end(self.workers.pop())

    def run(self, calls: list[Call]) -> Iterator[tuple[int, str, Outcome]]:
        """The outcome of every call, in the order in which they end."""
        pending = deque(calls)
        left = len(calls)
        while left:
            for outcome in self._step(pending):
                left -= 1
                yield outcome

    def _step(self, pending: deque[Call]) -> list[tuple[int, str, Outcome]]:
        """Hand out batches, wait for messages until the nearest deadline, replace the workers that hang or died."""
        while len(self.workers) < self.num_workers:
            self.workers.append(_start(self.rewards, self.timeout))
        for worker in self.workers:
            if worker.ready and not worker.calls and pending:
                self._send(worker, pending)
        busy = [worker for worker in self.workers if worker.calls or not worker.ready]
        deadline = min(worker.started + self._limit(worker) for worker in busy)
        readable = wait([worker.connection for worker in busy], max(0.0, deadline - time.monotonic()))
        outcomes: list[tuple[int, str, Outcome]] = []
        for worker in busy:
            if worker.connection in readable:
                self._receive(worker, pending, outcomes)
            elif time.monotonic() > worker.started + self._limit(worker) and not worker.connection.poll():
                self._replace(worker, pending, outcomes, timed_out=True)
        return outcomes

    def _limit(self, worker: _Worker) -> float:
        return self.timeout if worker.ready else START_SECONDS

    def _send(self, worker: _Worker, pending: deque[Call]) -> None:
        # Small batches towards the end, so that no worker idles while another holds the last rows.
        size = max(1, min(BATCH, len(pending) // (2 * self.num_workers)))
        worker.calls = deque(pending.popleft() for _ in range(size))
        worker.started = time.monotonic()
        with suppress(OSError):  # it died while idle: the next read says so, and its first row is tried and counted
            worker.connection.send([(name, row) for _, name, row in worker.calls])

    def _receive(self, worker: _Worker, pending: deque[Call], outcomes: list[tuple[int, str, Outcome]]) -> None:
        """Read what a worker has sent: that it is ready, or outcomes; or find that it died."""
        try:
            while True:
                message = worker.connection.recv()
                if isinstance(message, Outcome):
                    row, name, _ = worker.calls.popleft()
                    outcomes.append((row, name, message))
                elif message is None:
                    worker.ready = True
                else:
                    raise UserError(message)
                worker.started = time.monotonic()
                if not worker.calls or not worker.connection.poll():
                    return
        except (EOFError, OSError):
            self._replace(worker, pending, outcomes, timed_out=False)

    def _replace(
        self, worker: _Worker, pending: deque[Call], outcomes: list[tuple[int, str, Outcome]], timed_out: bool
    ) -> None:
        """End a worker; the row it was at fails, the others of its batch go back to the queue."""
        self.workers.remove(worker)
        code = _end(worker)
        if not worker.ready:
            what = (
                f"did not finish loading within {START_SECONDS} s"
                if timed_out
                else f"died while loading ({_died(code)})"
            )
            names = ", ".join(reward.file or reward.function for reward in self.rewards)
            raise UserError(f"params.yaml: score.rewards: the worker {what}; try `python` and import {names}")
        row, name, _ = worker.calls.popleft()
        pending.extendleft(reversed(worker.calls))
        if timed_out:
            outcome = Outcome(None, "timeout", f"no result after {self.timeout:g} s", self.timeout)
        else:
            outcome = Outcome(
                None, "error", f"the worker process died ({_died(code)})", time.monotonic() - worker.started
            )
        outcomes.append((row, name, outcome))


def _start(rewards: list[Loaded], timeout_seconds: float) -> _Worker:
    """A fresh interpreter in the project's folder, in a process group of its own; it writes no bytecode to rewards/."""
    ours, theirs = socket.socketpair()
    root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", "from gift.reward_worker import main; main()", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    worker = _Worker(process, Connection(ours.detach()), started=time.monotonic())
    with suppress(OSError):
        worker.connection.send((rewards, timeout_seconds))
    return worker


def _end(worker: _Worker) -> int:
    """Kill a worker and what it started; returns its exit code (of its own death, where it was dead before)."""
    worker.connection.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    return worker.process.wait()


def _died(code: int) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, perhaps for its memory"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
