"""Worker processes for reward functions, killed at the time limit: a hang or a crash costs one row of one function.

Each worker has a socket of its own, so that the call a dead worker was at is known exactly. (A pool with one shared
channel, pebble's, was measured first: after about one in a thousand crashes it waits for ever; docs/log.md.)

What became of a row depends on the row alone, never on what a worker did before: a call that ends its worker is tried
again as the first call of a new one before it counts; a call of several rows, row by row.
"""

import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

from gift.project.errors import UserError
from gift.scoring.loading import Loaded
from gift.scoring.process import GARBAGE, Broken, Call, Lane, Line, Worker
from gift.scoring.worker import Entry, Outcome, adopt_orphans, children, kill_children

START_SECONDS, START_ALONE_SECONDS = 120.0, 1800.0
MESSAGE_ROWS = 64
GLANCE_SECONDS = 0.5
Found = tuple[str, int, Outcome]  # what a reward made of a row


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
        self.groups = {reward.name for reward in rewards if reward.batch == "group"}
        environment = {} if judge_endpoint is None else {"GIFT_JUDGE_ENDPOINT": judge_endpoint}
        limits = timeout_seconds, environment
        apart = [Lane([each], 1, None, START_ALONE_SECONDS, *limits) for each in rewards if each.alone]
        shared = [reward for reward in rewards if not reward.alone]
        self.lanes = [Lane(shared, workers, memory_gib, START_SECONDS, *limits), *apart] if shared else apart
        self.lane = {reward.name: lane for lane in self.lanes for reward in lane.rewards}

    def __enter__(self) -> "RewardPool":
        self.others = children()
        self.adopted = adopt_orphans()
        return self

    def __exit__(self, *raised: object) -> None:
        for worker in self._workers():
            self._end(worker)
        adopt_orphans(self.adopted)

    def load(self) -> None:
        """Start a worker of each kind and wait until it has loaded its functions; UserError where it cannot."""
        for lane in self.lanes:
            if not lane.workers:
                Worker(lane)
        while not all(worker.ready for worker in self._workers()):
            self._step()

    def run(self, calls: Iterable[Call], arguments: Callable[[list[int]], dict[str, list[Any]]]) -> Iterator[Found]:
        """The outcome of every row of every call, as they end; `arguments` makes a call's lists when its turn comes."""
        self.arguments = arguments
        for name, rows in calls:
            self.lane[name].pending.append((name, rows))
        while any(lane.num_open() for lane in self.lanes):
            yield from self._step()
        del self.arguments  # and the rows behind it

    def _workers(self) -> list[Worker]:
        return [worker for lane in self.lanes for worker in lane.workers]

    def _step(self) -> list[Found]:
        """Hand out calls, wait for lines until the nearest deadline, replace the workers that hang or died."""
        for lane in self.lanes:
            while len(lane.workers) < min(lane.num_workers, lane.num_open()):
                Worker(lane)
            for worker in list(lane.workers):
                if lane.pending and worker.ready and not worker.calls:
                    self._take(worker)
        busy = [worker for worker in self._workers() if worker.calls or not worker.ready]
        if not busy:
            return []  # the worker that had idled was dead; another starts
        nearest = min(worker.deadline() for worker in busy) - time.monotonic()
        readable = wait([worker.socket for worker in busy], max(0.0, min(nearest, GLANCE_SECONDS)))
        found: list[Found] = []
        for worker in busy:
            has_ended = worker.process.poll() is not None  # asked before the last look for what it may have said
            try:
                for line in worker.lines():
                    found += self._receive(worker, line)
                if has_ended and worker.socket not in readable:
                    raise Broken
            except Broken as why:
                found += self._lost(worker, "error", str(why) or worker.death())
                continue
            if worker.socket not in readable and time.monotonic() > worker.deadline():
                found += self._lost(worker, "timeout", worker.lateness())
        return found

    def _take(self, worker: Worker) -> None:
        """Hand a worker its next calls: some rows at a time, fewer towards the end, so that all end together."""
        pending = worker.lane.pending
        most = 1 + len(pending) // (2 * worker.lane.num_workers)
        while pending and len(worker.calls) < most and sum(len(rows) for _, rows in worker.calls) < MESSAGE_ROWS:
            worker.calls.append(pending.popleft())
        self._send(worker)

    def _send(self, worker: Worker) -> None:
        message: list[tuple[str, bytes]] = []
        last: list[int] = []
        for name, rows in worker.calls:
            if rows != last:  # functions of the same rows share what is sent, not what they get
                last, pickled = rows, pickle.dumps(self.arguments(rows))
            message.append((name, pickled))
        taken = worker.send(message)
        worker.started = time.monotonic()
        if not taken and worker.num_done:  # it ended while it idled, which is no fault of these calls
            self._end(worker)

    def _receive(self, worker: Worker, line: Line | None) -> list[Found]:
        """Take what a worker said: that it is ready, or what became of its first call."""
        worker.started = time.monotonic()
        if line is None:
            if worker.calls:
                self._send(worker)
            return []
        if not worker.calls or len(line[1]) not in (1, len(worker.calls[0][1])):
            raise Broken(GARBAGE)
        return self._settle(worker, *line)

    def _settle(self, worker: Worker, seconds: float, entries: list[Entry]) -> list[Found]:
        """The outcomes of the rows of a worker's first call; where all of several failed at once, they wait again."""
        name, rows = worker.calls.popleft()
        if len(entries) < len(rows):
            if name not in self.groups:
                worker.lane.pending.extendleft((name, [row]) for row in reversed(rows))
                return []
            entries = entries * len(rows)
        return [(name, row, Outcome(*entry, seconds=seconds)) for row, entry in zip(rows, entries, strict=True)]

    def _lost(self, worker: Worker, status: str, cause: str) -> list[Found]:
        """End a worker that died, hangs, or no longer speaks as it should; the call it was at has failed."""
        found: list[Found] = []
        # A death after other calls is no fault of this one, which is tried again in a new worker.
        again = [worker.calls.popleft()] if worker.calls and worker.num_done and status == "error" else []
        if not again and worker.calls:
            seconds = time.monotonic() - worker.started
            found = self._settle(worker, seconds, [(None, status, cause)])
        self._end(worker)
        if not worker.ready:
            names = ", ".join(reward.file or reward.function for reward in worker.lane.rewards)
            raise UserError(f"params.yaml: score.rewards: {cause}; try `python` and import {names}")
        for call in again:
            Worker(worker.lane, call)
        return found

    def _end(self, worker: Worker) -> None:
        """Kill a worker and all that it started, in its group or out of it; its calls wait for another."""
        worker.lane.pending.extendleft(reversed(worker.calls))
        worker.lane.workers.remove(worker)
        worker.kill()
        kill_children(self.others | {each.pid for each in self._workers()})
