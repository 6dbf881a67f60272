"""The stage's side: parts are given to workers, and go back from those that die; what they made is put in its place."""

import os
import shutil
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from gift.project.console import Progress
from gift.project.errors import UserError
from gift.project.work import whole_file
from gift.workers.channel import PROTOCOL, Channel, Gone, heard
from gift.workers.link import Job, Link, Part, Source
from gift.workers.worker import identity

SCRATCH = Path("data/.cache/workers")
"""Where workers write: DVC does not know it, and no table is in it."""
GLANCE_SECONDS = 0.2
END_SECONDS = 10.0
MOST_DEATHS = 2
"""At one part, or in a row before any worker has loaded: then it is no accident."""


class Pool:
    """`with Pool(job, sources, minutes) as pool: for part in pool.run(parts, progress): ...`, as often as you like.

    A part is always made whole by one worker, so that its bytes do not depend on who made it, or how many there are.
    """

    def __init__(self, job: Job, sources: Sequence[Source], timeout_minutes: float) -> None:
        self.job, self.sources, self.timeout = job, sources, 60 * timeout_minutes
        self.identity = identity(job.stage)
        self.folder = SCRATCH / job.label
        self.links: list[Link] = []
        self.pending: deque[Part] = deque()
        self.deaths: Counter[int] = Counter()
        self.failed_starts = self.num_files = 0
        self.notes: set[str] = set()
        self.agents: list[Channel] = []  # of hosts, which hear on them when the stage has ended

    def __enter__(self) -> "Pool":
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *raised: object) -> None:
        for link in self.links:
            rests = link.rest is not None and link.state == "ready" and not link.part and not raised[0]
            with suppress(Gone):
                link.channel.send(end=True, rests=rests)
        deadline = time.monotonic() + (0 if raised[0] else END_SECONDS)
        while any(link.state != "waiting" for link in self.links) and (left := deadline - time.monotonic()) > 0:
            by_channel = {link.channel: link for link in self.links}
            for link in (by_channel[channel] for channel in heard(by_channel, left)):
                try:
                    said = link.channel.receive()  # its last words
                except Gone:
                    said = {}
                    link.kill()
                if link.rest and "rests" in said:
                    link.rest()
                if not said or "rests" in said:
                    self.links.remove(link)
        for link in self.links:
            link.kill()
            link.channel.close()
        for channel in self.agents:
            channel.close()
        for source in self.sources:
            source.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, parts: Sequence[Part], progress: Progress) -> Iterator[tuple[Part, dict[str, Any]]]:
        """Have the parts made; each is given back, with what its worker says of it, when its file is in its place."""
        self.deaths.clear()
        self.pending.extend(parts)
        while self.pending or any(link.part for link in self.links):
            for part, facts in self._step():
                yield part, facts
                progress.advance(part.count, facts["tokens"])
            busy = [link for link in self.links if link.part]
            progress.open_parts([(link.part.count, link.share, link.tokens) for link in busy if link.part])

    def _step(self) -> list[tuple[Part, dict[str, Any]]]:
        """Greet who is new, hand out parts, hear what workers say, and end those that hang."""
        for source in self.sources:
            for link in source.links(len(self.pending)):
                self._greet(link)
        made: list[tuple[Part, dict[str, Any]]] = []
        by_channel = {link.channel: link for link in self.links}
        for link in (by_channel[channel] for channel in heard(by_channel, self._patience())):
            try:
                made += self._hear(link, link.channel.receive())
            except Gone:
                self._lose(link, link.how())
        for link in [link for link in self.links if link.state == "ready" and not link.part][: len(self.pending)]:
            self._give(link, self.pending.popleft())
        now = time.monotonic()
        for link in [each for each in self.links if now - each.heard > self.timeout]:
            if link.state in ("greeted", "loading") or link.part:
                link.kill()
                self._lose(
                    link, f"no progress for {self.timeout / 60:g} minutes (launch.yaml: workers.timeout_minutes)"
                )
        return made

    def _patience(self) -> float:
        """Seconds to listen: none where a part can be given, for which first all that was said is heard."""
        free = any(link.state == "ready" and not link.part for link in self.links)
        if not self.links:
            time.sleep(GLANCE_SECONDS)
        return 0.0 if self.pending and free else GLANCE_SECONDS

    def _greet(self, link: Link) -> None:
        self.links.append(link)
        with suppress(Gone):  # then the look at its channel finds it lost
            link.channel.send(protocol=PROTOCOL, stage=self.job.stage, gpus=self.job.gpus, number=self.job.number)

    def _give(self, link: Link, part: Part) -> None:
        """Each file has a name of its own: a worker that was given up, and goes on, writes into nobody's part."""
        self.num_files += 1
        path = self.folder / f"{self.num_files}.{link.pid}" / part.path.name
        path.parent.mkdir()
        link.part, link.file, link.heard, link.share, link.tokens = part, path, time.monotonic(), 0.0, 0
        task = part.task()
        with suppress(Gone):
            link.channel.send(part=part.index, task=task, file=str(path))

    def _hear(self, link: Link, message: dict[str, Any]) -> list[tuple[Part, dict[str, Any]]]:
        if "agent" in message:
            self.agents.append(link.channel)
            self._forget(link, close=False)
        elif "host" in message:
            self._admit(link, message)
        elif "ready" in message:
            link.state, link.heard, self.failed_starts = "ready", time.monotonic(), 0
            if (note := message.get("note")) and note not in self.notes:
                self.notes.add(note)
                click.echo(f"{self.job.label}: {note}", err=True)
        elif "share" in message:
            link.got_on(float(message["share"]), int(message["tokens"]))
        elif "failed" in message:
            self._refuse(link, message["failed"])
        elif "broke" in message:
            link.how = lambda: str(message["broke"])
        elif "unfit" in message:
            link.how, link.is_unfit = lambda: str(message["unfit"]), True
        elif "back" in message:
            self._take_back(link)
        elif "done" in message and link.part:
            part, link.part = link.part, None
            self._adopt(link, part)
            return [(part, message["facts"])]
        return []

    def _refuse(self, link: Link, why: str) -> None:
        """A user's mistake ends the stage; where another worker has loaded the same, this one's host is at fault."""
        if link.state != "ready" and any(each.state == "ready" for each in self.links):
            link.how = lambda: why
            return
        raise UserError(why if link.host in ("", socket.gethostname()) else f"{link.name}: {why}")

    def _admit(self, link: Link, message: dict[str, Any]) -> None:
        """A worker that would make other bytes is refused, with what differs."""
        link.pid, link.host = message["pid"], message["host"]
        link.name = f"worker {link.host}:{link.pid}"
        if (problem := self._unlike(message)) is not None:
            click.echo(f"{self.job.label}: {link.name} is refused: {problem}", err=True)
            with suppress(Gone):
                link.channel.send(refused=problem)
            self._forget(link)
            return
        link.state, link.heard = "loading", time.monotonic()
        with suppress(Gone):
            link.channel.send(kind=self.job.kind, setup=self.job.setup)

    def _unlike(self, message: dict[str, Any]) -> str | None:
        if message.get("protocol") != PROTOCOL:
            return (
                f"it speaks version {message.get('protocol')} to stages, and this one {PROTOCOL}: give both one commit"
            )
        if message.get("code") != self.identity["code"]:
            return f"its code of {self.job.stage} is another ({message.get('code')}, here {self.identity['code']})"
        here, there = self.identity["versions"], message.get("versions", {})
        others = [
            f"{name} {there.get(name, 'is missing')} (here {here.get(name, 'missing')})"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]
        return f"its packages are others: {', '.join(others[:5])}" if others else None

    def _take_back(self, link: Link) -> None:
        """A worker that was told to end says so: no fault of its part."""
        part, link.part = link.part, None
        to = f"; part {part.index} goes to another" if part else ""
        click.echo(f"{self.job.label}: {link.name} was told to end{to}", err=True)
        self._forget(link)
        if part:
            self.pending.appendleft(part)

    def _lose(self, link: Link, why: str) -> None:
        """A worker died: its part goes to another, and a second death there is no accident."""
        part, link.part = link.part, None
        started = link.state == "ready"
        self._forget(link)
        if link.is_unfit or (link.has_rested and not started):
            click.echo(f"{self.job.label}: the engine of the stage before is not used: {why}", err=True)
            self.pending.extendleft([part] if part else [])
        elif part:
            self.deaths[part.index] += 1
            if self.deaths[part.index] >= MOST_DEATHS:
                raise UserError(
                    f"{self.job.label}: part {part.index} ({part.path}): {MOST_DEATHS} workers died at it, the last: "
                    f"{why}; GIFT_VERBOSE=1 shows what they say. Finished parts are kept"
                )
            click.echo(f"{self.job.label}: {link.name} died at part {part.index} ({why}); it goes to another", err=True)
            self.pending.appendleft(part)
        elif not started:
            self.failed_starts += 1
            if self.failed_starts >= MOST_DEATHS and not any(each.state == "ready" for each in self.links):
                raise UserError(
                    f"{self.job.label}: {self.failed_starts} workers ended before they had loaded, the last: {why}; "
                    "GIFT_VERBOSE=1 shows what they say"
                )
            click.echo(f"{self.job.label}: {link.name} ended before it had loaded ({why})", err=True)

    def _forget(self, link: Link, close: bool = True) -> None:
        self.links.remove(link)
        if close:
            link.channel.close()
        for source in self.sources:
            source.lost(link)

    def _adopt(self, link: Link, part: Part) -> None:
        """Put what a worker made in its place; this process alone writes there, and notes it."""
        with whole_file(part.path) as temporary:
            try:
                os.replace(link.file, temporary)
            except FileNotFoundError:
                raise UserError(
                    f"{link.file}: {link.name} wrote it, and it is not here: all hosts must see the project's folder "
                    "at the same path"
                ) from None
        with suppress(OSError):  # NFS may keep what is open elsewhere
            link.file.parent.rmdir()
