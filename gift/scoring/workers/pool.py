"""Worker processes for reward functions, killed at the time limit: a hang or a crash costs one row of one function.

Each worker has a socket of its own, so that the call a dead worker was at is known exactly. (A pool with one shared
channel, pebble's, was measured first: after about one in a thousand crashes it waits for ever; docs/log.md.)

What became of a row depends on the row alone, never on what a worker did before: a call that ends its worker is tried
again as the first call of a new one before it counts; a call of several rows, row by row.
"""

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from gift.project.errors import UserError
from gift.scoring.loading import Loaded
from gift.scoring.workers.process import GARBAGE, Broken, Line, WorkerProcess
from gift.scoring.workers.strays import adopt_orphans, children, kill_children
from gift.scoring.workers.worker import Entry, Outcome

START_SECONDS, START_ALONE_SECONDS = 120.0, 1800.0
MESSAGE_ROWS = 64
GLANCE_SECONDS = 0.5

Call = tuple[str, list[int]]
"""A reward's name and the rows that it is called with."""
Found = tuple[str, int, Outcome]
"""What a reward made of a row."""


@dataclass(eq=False)
class _Lane:
    """Functions that share workers, and the calls that wait for one."""

    rewards: list[Loaded]
    num_workers: int
    memory_gib: float | None
    start_seconds: float
    workers: list["_Worker"] = field(default_factory=list)
    pending: deque[Call] = field(default_factory=deque)

    def num_open(self) -> int:
        return len(self.pending) + sum(bool(worker.calls) for worker in self.workers)


@dataclass(eq=False)
class _Worker:
    """A process, the calls that it has or gets once it is ready, and since when it is at the first of them."""

    lane: _Lane
    process: WorkerProcess
    calls: deque[Call]
    started: float = field(default_factory=time.monotonic)


class RewardPool:
    """`with RewardPool(...) as pool: for name, row, outcome in pool.run(calls, arguments): ...`

    Functions that are `alone` have a process of their own, without memory limit; the others share `workers` processes
    with `memory_gib` of private memory each. Workers start when there is something to do.
    """

    def __init__(
        self,
        rewards: list[Loaded],
        workers: int,
        timeout_seconds: float,
        memory_gib: float | None = 4.0,
        judge_endpoint: str | None = None,
    ) -> None:
        self.rewards = {reward.name: reward for reward in rewards}
        self.timeout = timeout_seconds
        self.environment = {} if judge_endpoint is None else {"GIFT_JUDGE_ENDPOINT": judge_endpoint}
        shared = [reward for reward in rewards if not reward.alone]
        together = _Lane(shared, workers, memory_gib, START_SECONDS)
        apart = [_Lane([each], 1, None, START_ALONE_SECONDS) for each in rewards if each.alone]
        self.lanes = [together, *apart] if shared else apart
        self.lane = {reward.name: lane for lane in self.lanes for reward in lane.rewards}

    def __enter__(self) -> "RewardPool":
        self.others = children()
        self.adopted = adopt_orphans()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers():
            self._end(worker)
        adopt_orphans(self.adopted)

    def load(self) -> None:
        """Start a worker of each kind and wait until it has loaded its functions; UserError where it cannot."""
        for lane in self.lanes:
            if not lane.workers:
                self._start(lane)
        while not all(worker.process.ready for worker in self._workers()):
            self._step()

    def run(self, calls: Iterable[Call], arguments: Callable[[list[int]], dict[str, list[Any]]]) -> Iterator[Found]:
        """The outcome of every row of every call, in the order in which they end.

        `arguments` makes what a function gets for some rows, as lists, when their turn comes.
        """
        self.arguments = arguments
        for name, rows in calls:
            self.lane[name].pending.append((name, rows))
        while any(lane.num_open() for lane in self.lanes):
            yield from self._step()
        del self.arguments  # and the rows behind it

    def _workers(self) -> list[_Worker]:
        return [worker for lane in self.lanes for worker in lane.workers]

    def _start(self, lane: _Lane, *calls: Call) -> None:
        process = WorkerProcess(lane.rewards, self.timeout, lane.memory_gib, self.environment)
        lane.workers.append(_Worker(lane, process, deque(calls)))

    def _step(self) -> list[Found]:
        """Hand out calls, wait for lines until the nearest deadline, replace the workers that hang or died."""
        for lane in self.lanes:
            while len(lane.workers) < min(lane.num_workers, lane.num_open()):
                self._start(lane)
            for worker in list(lane.workers):
                if lane.pending and worker.process.ready and not worker.calls:
                    self._take(worker)
        busy = [worker for worker in self._workers() if worker.calls or not worker.process.ready]
        if not busy:
            return []  # the worker that had idled was dead; another starts
        nearest = min(map(self._deadline, busy)) - time.monotonic()
        readable = wait([worker.process.socket for worker in busy], max(0.0, min(nearest, GLANCE_SECONDS)))
        found: list[Found] = []
        for worker in busy:
            has_ended = (
                worker.process.process.poll() is not None
            )  # asked before the last look for what it may have said
            try:
                for line in worker.process.lines():
                    found += self._receive(worker, line)
                if has_ended and worker.process.socket not in readable:
                    raise Broken
            except Broken as why:
                found += self._lost(worker, str(why))
                continue
            if worker.process.socket not in readable and time.monotonic() > self._deadline(worker):
                found += self._late(worker)
        return found

    def _deadline(self, worker: _Worker) -> float:
        if not worker.process.ready:
            return worker.started + worker.lane.start_seconds
        return worker.started + self._limit(worker.calls[0][0]) if worker.calls else float("inf")

    def _limit(self, name: str) -> float:
        return self.rewards[name].timeout_seconds or self.timeout

    def _take(self, worker: _Worker) -> None:
        """Hand a worker its next calls: some rows at a time, fewer towards the end, so that all end together."""
        pending = worker.lane.pending
        most = 1 + len(pending) // (2 * worker.lane.num_workers)
        while pending and len(worker.calls) < most and sum(len(rows) for _, rows in worker.calls) < MESSAGE_ROWS:
            worker.calls.append(pending.popleft())
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        message: list[tuple[str, bytes]] = []
        last: list[int] = []
        for name, rows in worker.calls:
            if rows != last:  # functions of the same rows share what is sent, not what they get
                last, pickled = rows, pickle.dumps(self.arguments(rows))
            message.append((name, pickled))
        taken = worker.process.send(message)
        worker.started = time.monotonic()
        if not taken and worker.process.num_done:  # it ended while it idled, which is no fault of these calls
            self._end(worker)

    def _receive(self, worker: _Worker, line: Line | None) -> list[Found]:
        """Take what a worker said: that it is ready, or what became of its first call."""
        worker.started = time.monotonic()
        if line is None:
            if worker.calls:
                self._send(worker)
            return []
        if not worker.calls or len(line[1]) not in (1, len(worker.calls[0][1])):
            raise Broken(GARBAGE)
        return self._settle(worker, *line)

    def _settle(self, worker: _Worker, seconds: float, entries: list[Entry]) -> list[Found]:
        """The outcomes of the rows of a worker's first call; where all of several failed at once, they wait again."""
        name, rows = worker.calls.popleft()
        if len(entries) < len(rows):
            if self.rewards[name].batch != "group":
                worker.lane.pending.extendleft((name, [row]) for row in reversed(rows))
                return []
            entries = entries * len(rows)
        return [(name, row, Outcome(*entry, seconds=seconds)) for row, entry in zip(rows, entries, strict=True)]

    def _lost(self, worker: _Worker, why: str) -> list[Found]:
        """A worker died, or no longer speaks as it should; the call it was at is tried again, if it had made others."""
        loading = not worker.process.ready
        cause = why or worker.process.death(" while loading" if loading else "")
        if loading:
            raise UserError(_unloaded(worker.lane, cause))
        if worker.calls and worker.process.num_done:
            call = worker.calls.popleft()
            self._end(worker)
            self._start(worker.lane, call)
            return []
        return self._fail(worker, time.monotonic() - worker.started, "error", f"the worker process {cause}")

    def _late(self, worker: _Worker) -> list[Found]:
        if not worker.process.ready:
            raise UserError(_unloaded(worker.lane, f"did not finish loading within {worker.lane.start_seconds:g} s"))
        limit = self._limit(worker.calls[0][0])
        return self._fail(worker, limit, "timeout", f"no result after {limit:g} s")

    def _fail(self, worker: _Worker, seconds: float, status: str, message: str) -> list[Found]:
        found = self._settle(worker, seconds, [(None, status, message)]) if worker.calls else []
        self._end(worker)
        return found

    def _end(self, worker: _Worker) -> None:
        """Kill a worker and all that it started, in its group or out of it; its calls wait for another."""
        worker.lane.pending.extendleft(reversed(worker.calls))
        worker.lane.workers.remove(worker)
        worker.process.kill()
        kill_children(self.others | {each.process.process.pid for each in self._workers()})


def _unloaded(lane: _Lane, what: str) -> str:
    names = ", ".join(reward.file or reward.function for reward in lane.rewards)
    return f"params.yaml: score.rewards: the worker {what}; try `python` and import {names}"
