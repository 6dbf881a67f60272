"""Worker processes for reward functions, killed at the time limit: a hang or a crash costs one row of one function.

Each worker has a socket of its own, so that the call a dead worker was at is known exactly. (A pool with one shared
channel, pebble's, was measured first: after about one in a thousand crashes it waits for ever; docs/log.md.)

What became of a row depends on the row alone, never on what a worker did before: a call that ends its worker, or its
memory, is tried again as the first call of a new one before it counts; a call of several rows, row by row.
"""

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from gift.project.errors import UserError
from gift.scoring.loading import Loaded
from gift.scoring.workers.process import GARBAGE, Broken, Line, WorkerProcess
from gift.scoring.workers.strays import adopt_orphans, children, kill_children
from gift.scoring.workers.worker import Outcome

START_SECONDS = 120.0
START_ALONE_SECONDS = 1800.0
MESSAGE_SECONDS, MESSAGE_CALLS, MESSAGE_BYTES = 0.05, 256, 2**22
GLANCE_SECONDS = 0.5

Call = tuple[int, str, Any]
"""(number of the first row, reward name, the call's arguments as lists of its rows, or what `run` makes them of)."""


@dataclass(frozen=True)
class _Todo:
    """A call, or the one row of it at `position`."""

    row: int
    name: str
    content: Any
    position: int | None = None
    num_rows: int = 1


@dataclass(eq=False)
class _Worker:
    process: WorkerProcess
    ready: bool = False
    num_done: int = 0
    calls: deque[_Todo] = field(default_factory=deque)
    started: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Lane:
    """Functions that share workers, and the calls that wait for one; those in `fresh` for a new one."""

    rewards: list[Loaded]
    num_workers: int
    memory_gib: float | None
    start_seconds: float
    workers: list[_Worker] = field(default_factory=list)
    pending: deque[_Todo] = field(default_factory=deque)
    fresh: deque[_Todo] = field(default_factory=deque)
    seconds: float = MESSAGE_SECONDS / 4  # of a call, lately

    def num_open(self) -> int:
        return len(self.pending) + len(self.fresh) + sum(bool(worker.calls) for worker in self.workers)

    def num_wanted(self) -> int:
        """Workers; those that idle cannot take what waits for a new one."""
        return self.num_workers if self.fresh else min(self.num_workers, self.num_open())

    def has_call_for(self, worker: _Worker) -> bool:
        return bool(self.pending or (self.fresh and not worker.num_done))


class RewardPool:
    """`with RewardPool(...) as pool: for row, name, outcome in pool.run(calls): ...`

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
        self.lane = {reward.name: together for reward in shared}
        self.lane |= {each.name: _Lane([each], 1, None, START_ALONE_SECONDS) for each in rewards if each.alone}
        self.lanes = list({id(lane): lane for lane in self.lane.values()}.values())

    def __enter__(self) -> "RewardPool":
        self.others = children()
        self.adopted = adopt_orphans()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self.lanes:
            while lane.workers:
                self._end(lane, lane.workers[-1])
        adopt_orphans(self.adopted)

    def load(self) -> None:
        """Start a worker of each kind and wait until it has loaded its functions; UserError where it cannot."""
        for lane in self.lanes:
            if not lane.workers:
                self._start(lane)
        while not all(worker.ready for lane in self.lanes for worker in lane.workers):
            self._step()

    def _start(self, lane: _Lane) -> None:
        process = WorkerProcess(lane.rewards, self.timeout, lane.memory_gib, self.environment)
        lane.workers.append(_Worker(process))

    def run(
        self, calls: Iterable[Call], arguments: Callable[[Any], dict[str, list[Any]]] = lambda content: content
    ) -> Iterator[tuple[int, str, Outcome]]:
        """The outcome of every row of every call, in the order in which they end.

        A call of rows numbered from 32 on gives 32, 33, ... `arguments` makes the lists of a call when its turn comes.
        """
        self.arguments = arguments
        for row, name, content in calls:
            self.lane[name].pending.append(_Todo(row, name, content))
        while any(lane.num_open() for lane in self.lanes):
            yield from self._step()
        del self.arguments  # and the rows behind it

    def _step(self) -> list[tuple[int, str, Outcome]]:
        """Hand out calls, wait for lines until the nearest deadline, replace the workers that hang or died."""
        busy: list[tuple[_Lane, _Worker]] = []
        for lane in self.lanes:
            while len(lane.workers) < lane.num_wanted():
                self._start(lane)
            for worker in list(lane.workers):
                if worker.ready and not worker.calls and lane.has_call_for(worker):
                    self._send(lane, worker)
            busy += [(lane, worker) for worker in lane.workers if worker.calls or not worker.ready]
        if not busy:
            return []  # the worker that had idled was dead; another starts
        nearest = min(self._deadline(lane, worker) for lane, worker in busy) - time.monotonic()
        readable = wait([worker.process.socket for _, worker in busy], max(0.0, min(nearest, GLANCE_SECONDS)))
        outcomes: list[tuple[int, str, Outcome]] = []
        for lane, worker in busy:
            died = worker.process.has_ended()  # asked before the last look for what it may have said
            try:
                for line in worker.process.lines():
                    self._receive(lane, worker, line, outcomes)
                    if worker not in lane.workers:
                        break
            except Broken as why:
                self._lost(lane, worker, str(why), outcomes)
            if worker not in lane.workers or worker.process.socket in readable:
                continue
            if died:
                self._lost(lane, worker, "", outcomes)
            elif time.monotonic() > self._deadline(lane, worker):
                self._late(lane, worker, outcomes)
        return outcomes

    def _deadline(self, lane: _Lane, worker: _Worker) -> float:
        if not worker.ready:
            return worker.started + lane.start_seconds
        return worker.started + self._limit(worker.calls[0].name) if worker.calls else float("inf")

    def _limit(self, name: str) -> float:
        return self.rewards[name].timeout_seconds or self.timeout

    def _send(self, lane: _Lane, worker: _Worker) -> None:
        """Hand a worker as many calls as take a moment; one that failed in another worker goes first and alone."""
        if lane.fresh and not worker.num_done:
            todos, most = lane.fresh, 1
        else:
            todos, most = lane.pending, min(MESSAGE_CALLS, max(1, int(MESSAGE_SECONDS / lane.seconds)))
        message: list[tuple[str, bytes]] = []
        rows: dict[str, list[Any]] = {}
        pickled, size = b"", 0
        while todos and len(message) < most and size < MESSAGE_BYTES:
            todo = todos.popleft()
            before, rows = rows, self._rows(todo)
            if rows is not before:  # functions of the same rows share what is sent, not what they get
                pickled = pickle.dumps(rows)
                size += len(pickled)
            message.append((todo.name, pickled))
            worker.calls.append(replace(todo, num_rows=len(rows["completions"])))
        taken = worker.process.send(message)
        worker.started = time.monotonic()
        if not taken and worker.num_done:  # it ended while it idled, which is no fault of these calls
            lane.pending.extendleft(reversed(worker.calls))
            self._end(lane, worker)

    def _rows(self, todo: _Todo) -> dict[str, list[Any]]:
        rows = self.arguments(todo.content)
        at = todo.position
        return rows if at is None else {name: values[at : at + 1] for name, values in rows.items()}

    def _receive(
        self, lane: _Lane, worker: _Worker, line: Line | None, outcomes: list[tuple[int, str, Outcome]]
    ) -> None:
        """Take what a worker said: that it is ready, or what became of its first call."""
        worker.started = time.monotonic()
        if line is None:
            worker.ready = True
            return
        if not worker.calls or (not line.whole and len(line.entries) != worker.calls[0].num_rows):
            raise Broken(GARBAGE)
        todo = worker.calls[0]
        lane.seconds += 0.1 * (max(line.seconds, 1e-6) - lane.seconds)
        if line.again == "memory" and worker.num_done:
            self._renew(lane, worker, todo)
            return
        worker.calls.popleft()
        worker.num_done += 1
        self._settle(lane, todo, line, outcomes)
        if line.again:
            lane.pending.extendleft(reversed(worker.calls))
            self._end(lane, worker)

    def _settle(self, lane: _Lane, todo: _Todo, line: Line, outcomes: list[tuple[int, str, Outcome]]) -> None:
        """Note the outcomes of a call's rows; or, where all of several failed at once, put them back one by one."""
        if line.whole and todo.num_rows > 1 and self.rewards[todo.name].batch != "group":
            each = [replace(todo, row=todo.row + at, position=at, num_rows=1) for at in range(todo.num_rows)]
            lane.pending.extendleft(reversed(each))
            return
        entries = line.entries * todo.num_rows if line.whole else line.entries
        outcomes.extend((todo.row + at, todo.name, Outcome(*entry, line.seconds)) for at, entry in enumerate(entries))

    def _renew(self, lane: _Lane, worker: _Worker, todo: _Todo) -> None:
        """Try the call that a worker was at in a new worker; its other calls go back to the queue."""
        worker.calls.popleft()
        lane.fresh.append(todo)
        lane.pending.extendleft(reversed(worker.calls))
        self._end(lane, worker)

    def _lost(self, lane: _Lane, worker: _Worker, why: str, outcomes: list[tuple[int, str, Outcome]]) -> None:
        """A worker died, or no longer speaks as it should."""
        if not worker.ready:
            cause = why or worker.process.death(" while loading")
            self._end(lane, worker)
            raise UserError(_unloaded(lane, cause))
        if not worker.calls:
            self._end(lane, worker)
        elif worker.num_done:
            self._renew(lane, worker, worker.calls[0])
        else:
            seconds, cause = time.monotonic() - worker.started, why or worker.process.death()
            line = Line(seconds, None, True, [(None, "error", f"the worker process {cause}")])
            self._fail(lane, worker, line, outcomes)

    def _late(self, lane: _Lane, worker: _Worker, outcomes: list[tuple[int, str, Outcome]]) -> None:
        if not worker.ready:
            self._end(lane, worker)
            raise UserError(_unloaded(lane, f"did not finish loading within {lane.start_seconds:g} s"))
        seconds = self._limit(worker.calls[0].name)
        line = Line(seconds, None, True, [(None, "timeout", f"no result after {seconds:g} s")])
        self._fail(lane, worker, line, outcomes)

    def _fail(self, lane: _Lane, worker: _Worker, line: Line, outcomes: list[tuple[int, str, Outcome]]) -> None:
        todo = worker.calls.popleft()
        lane.pending.extendleft(reversed(worker.calls))
        self._end(lane, worker)
        self._settle(lane, todo, line, outcomes)

    def _end(self, lane: _Lane, worker: _Worker) -> None:
        """Kill a worker and all that it started, in its group or out of it."""
        lane.workers.remove(worker)
        worker.process.kill()
        kill_children(self.others | {each.process.pid for lane in self.lanes for each in lane.workers})


def _unloaded(lane: _Lane, what: str) -> str:
    names = ", ".join(reward.file or reward.function for reward in lane.rewards)
    return f"params.yaml: score.rewards: the worker {what}; try `python` and import {names}"
