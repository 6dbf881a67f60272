"""The worker's side: one process that loads what a job needs, then makes the parts that the stage gives it."""

import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from gift.project.code import fingerprint
from gift.project.console import heard_by
from gift.project.errors import UserError, in_a_line, refused
from gift.project.machine import versions
from gift.workers.channel import PROTOCOL, Channel, Gone

GIVEN_BACK = 143
"""Exit code of a worker that was told to end (128 + SIGTERM)."""
TELL_SECONDS = 1.0

Make = Callable[[dict[str, Any], Path], dict[str, Any]]
"""Makes the part that a task (JSON) describes as a file in a folder; returns what is to be said of it: its `tokens`."""


class Work(NamedTuple):
    """What a worker has loaded for a job: what makes a part; a note for the user; how it rests between two stages.

    `rest` lets go of what is of no use to another stage, and returns what opens the next job with the rest.
    """

    make: Make
    note: str | None = None
    rest: "Callable[[], Open] | None" = None


Open = Callable[[dict[str, Any]], Work]
"""Loads what a job needs, as its setup (JSON) says."""


class Ended(Exception):
    """The stage needs no more; `rests`: another of the same `gift repro` may."""

    def __init__(self, rests: bool) -> None:
        self.rests = rests


class Unfit(Exception):
    """What has rested is of no use for another job, as is found when it is taken over, or at its first part."""


class Refused(UserError):
    """The stage takes no such worker."""


def identity(stage: str) -> dict[str, Any]:
    """What must be the same of a worker and of its stage, for the same bytes."""
    return {"code": fingerprint(stage), "versions": versions()}


def serve(channel: Channel, kinds: Mapping[str, str]) -> int:
    """Work for the stage at the other end until it needs no more, or is gone; returns the exit code.

    kinds: the module of each kind of work, whose `open_job` is an `Open`.
    """
    os.register_at_fork(after_in_child=channel.connection.close)  # or the stage would not see that this one has ended
    told = _GiveBack(channel)
    signal.signal(signal.SIGTERM, told)
    again: Open | None = None
    try:
        while True:
            kind, setup = _greet(channel)
            if not again:  # not before: who is refused shall hear why
                watch = threading.Thread(
                    target=_end_with_channel, args=(channel.connection.fileno(), told), daemon=True
                )
                watch.start()
            work = _taken_over(again, setup) if again else importlib.import_module(kinds[kind]).open_job(setup)
            channel.send(ready=True, note=work.note)
            rests = _make_parts(channel, work.make)
            if not rests or not work.rest:
                return 0
            again = work.rest()
            channel.send(rests=True)
    except (Ended, Gone):  # a stage that is gone has no ear for more
        return 0
    except Refused:
        raise
    except Unfit as error:  # the stage says so, and has it done by a worker that starts anew
        with suppress(Gone):
            channel.send(unfit=str(error))
        return 1
    except Exception as error:
        line = error if isinstance(error, UserError) else refused(error)
        if line is None:
            with suppress(Gone):
                channel.send(broke=in_a_line(error))
            raise
        with suppress(Gone):
            channel.send(failed=line.message)
        return 1


def _end_with_channel(descriptor: int, told: "_GiveBack") -> None:
    """End this process where the stage has closed the channel: it is gone, or has given up on this worker."""
    watched = select.poll()
    watched.register(descriptor, select.POLLRDHUP)
    watched.poll()
    os._exit(told.code)


def _taken_over(again: Open, setup: dict[str, Any]) -> Work:
    try:
        return again(setup)
    except (UserError, Unfit):
        raise
    except Exception as error:
        raise Unfit(in_a_line(error)) from None


def _make_parts(channel: Channel, make: Make) -> bool:
    """As many as the stage wants; whether this worker is to rest then."""
    while True:
        try:
            message = _next(channel)
        except Ended as end:
            return end.rests
        path = Path(message["file"])
        with heard_by(_Told(channel)):
            facts = make(message["task"], path.parent)
        _flush(path)
        channel.send(done=message["part"], facts=facts)


def _greet(channel: Channel) -> tuple[str, dict[str, Any]]:
    """Say who this is; the kind of work, and what it needs, come back."""
    stage = _next(channel)
    if stage.get("protocol") != PROTOCOL:
        raise UserError(f"the stage speaks to workers in another version ({stage.get('protocol')}, here {PROTOCOL})")
    channel.send(protocol=PROTOCOL, host=socket.gethostname(), pid=os.getpid(), **identity(stage["stage"]))
    job = _next(channel)
    return job["kind"], job["setup"]


def _next(channel: Channel) -> dict[str, Any]:
    message = channel.receive()
    if "refused" in message:
        raise Refused(message["refused"])
    if "end" in message:
        raise Ended(bool(message.get("rests")))
    return message


def _flush(path: Path) -> None:
    """To the disk, so that another host which shares it finds all of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class _Told:
    """Hands on how far a part is, once a second."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.last = channel, 0.0

    def within(self, share: float, tokens: int = 0) -> None:
        now = time.monotonic()
        if now - self.last >= TELL_SECONDS:
            self.last = now
            self.channel.send(share=share, tokens=tokens)


class _GiveBack:
    """On SIGTERM (preemption) the part that is being made goes back at once, and the process ends."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.code = channel, 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.code = GIVEN_BACK  # the stage may close the channel before this has ended
        # In the middle of a message its end is not ours to write: the stage then takes it for a death.
        if self.channel.lock.acquire(blocking=False):
            self.channel.lock.release()
            with suppress(Gone):
                self.channel.send(back=True)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, RuntimeError):
                stream.flush()
        os._exit(GIVEN_BACK)
