"""Workers as processes of this machine, each with its own GPUs or its share of the cores; and those of another host."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import click

from gift.project.console import end_with_parent
from gift.project.errors import UserError, counted
from gift.project.machine import visible_gpus, with_our_code
from gift.workers import served
from gift.workers.channel import ANSWER_SECONDS, PROTOCOL, Channel, Gone, channel_of, connect, pair, read_token
from gift.workers.link import Job, Link, Process, ending
from gift.workers.worker import GIVEN_BACK

WAIT_SECONDS = 2.0
RETRIES = 2
SOON_SECONDS = 60.0
"""Who works so long has loaded, or was loading something large."""
MODULE = "gift.worker"


def shares(gpus: int, number: int | None) -> list[dict[str, str]]:
    """The environment of each worker of this machine: `gpus` of its GPUs, or of its cores as many as the others have.

    number: of workers, None: as many as there are GPUs for, and one where there are none.
    """
    visible = visible_gpus()
    if visible:
        if problem := gpus_problem(len(visible), gpus, number):
            raise UserError(f"launch.yaml: {problem}")
        groups = [visible[start : start + gpus] for start in range(0, len(visible) - gpus + 1, gpus)]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups[:number]]
    cores, count = sorted(os.sched_getaffinity(0)), number or 1
    cuts = [len(cores) * index // count for index in range(count + 1)]
    own = [cores[start:stop] or [cores[start % len(cores)]] for start, stop in pairwise(cuts)]
    return [
        {"GIFT_CORES": ",".join(map(str, each)), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(each)))}
        for each in own
    ]


def gpus_problem(there: int, gpus: int, number: int | None) -> str | None:
    """Fewer GPUs than the workers of this machine take."""
    if (number or 1) * gpus <= there:
        return None
    return (
        f"{counted(number or 1, 'worker')} of {counted(gpus, 'GPU')} each, and this machine has "
        f"{counted(there, 'GPU')}; lower the number of workers, or tensor_parallel_size"
    )


def start_worker(way: list[str], environment: dict[str, str], *descriptors: int) -> "subprocess.Popen[bytes]":
    """A fresh interpreter that works for a stage, in a session of its own; it ends with this process."""
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *way],
        pass_fds=descriptors,
        env={**with_our_code(), **environment},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_us,
    )


def _end_with_us() -> None:
    end_with_parent(signal.SIGKILL)


def kill(process: Process) -> None:
    """With all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Share:
    """What a worker of this machine has of it, and how many in a row did not get to work with that."""

    environment: dict[str, str]
    failures: int = 0

    @property
    def name(self) -> str:
        gpus = self.environment.get("CUDA_VISIBLE_DEVICES")
        return f"GPU {gpus}" if gpus else f"cores {self.environment['GIFT_CORES']}"

    def ended(self, has_worked: bool) -> None:
        self.failures = 0 if has_worked else self.failures + 1


class LocalWorkers:
    """A process for each share of this machine, over a socket that nobody else can reach."""

    def __init__(self, job: Job) -> None:
        self.label, self.key, self.free = job.label, job.key, [Share(each) for each in shares(job.gpus, job.number)]
        self.of: dict[Link, tuple[Process, Share]] = {}

    def links(self, num_open: int) -> list[Link]:
        """As many as there are parts for: to load a policy for nothing helps nobody."""
        idle = sum(link.part is None for link in self.of)
        new: list[Link] = []
        while self.free and len(new) + idle < num_open:
            share = self.free.pop(0)
            process, channel, has_rested = self._resting(share) or self._started(share)
            link = Link(channel, kill=partial(kill, process), how=partial(ending, process), has_rested=has_rested)
            if self.key and isinstance(process, served.Served):
                link.rest = partial(self._rest, link)
            self.of[link] = process, share
            new.append(link)
        return new

    def _resting(self, share: Share) -> tuple[Process, Channel, bool] | None:
        """A worker that a stage before left; one of no use is ended, for its memory."""
        found = served.take(_slot(share), self.key) if self.key else None
        return found and (found[0], channel_of(found[1], ANSWER_SECONDS), True)

    def _started(self, share: Share) -> tuple[Process, Channel, bool]:
        ours, theirs = pair()
        with theirs:
            started = served.start([MODULE], {**with_our_code(), **share.environment}, theirs.fileno())
            own = ["--fd", str(theirs.fileno())]
            return started or start_worker(own, share.environment, theirs.fileno()), ours, False

    def _rest(self, link: Link) -> None:
        process, share = self.of.pop(link)
        if isinstance(process, served.Served):
            process.rest(_slot(share), self.key or "", link.channel.connection.fileno())
        link.channel.connection.close()

    def lost(self, link: Link) -> None:
        if link in self.of:
            process, share = self.of.pop(link)
            kill(process)
            share.ended(link.state == "ready")
            if share.failures < RETRIES or not (self.of or self.free):
                self.free.append(share)
            else:
                click.echo(f"{self.label}: no more workers with {share.name}, where none loads", err=True)

    def close(self) -> None:
        for process, _ in self.of.values():
            kill(process)


def _slot(share: Share) -> str:
    return json.dumps([str(Path.cwd()), sorted(share.environment.items())])


def work_here(address: str, token: Path, number: int | None, wait: float, stay: bool) -> int:
    """Work for the stage that listens at `address` with all GPUs of this host, until it has ended; its exit code.

    wait: seconds to look for it; stay: then work for the next stage that listens there, too.
    """
    ended: list[int] = []
    for number_of in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_of, lambda *_: ended.append(1))
    deadline = time.monotonic() + wait
    while not ended:
        try:
            if not token.exists() and (stay or time.monotonic() <= deadline):
                raise Gone(f"no {token} yet")
            channel = connect(address, read_token(token))
        except Gone as error:
            if time.monotonic() > deadline and not stay:
                raise UserError(
                    f"{address}: no stage listens there ({error}); is it running? (--wait SECONDS)"
                ) from None
            time.sleep(WAIT_SECONDS)
            continue
        _work_for(channel, address, token, number, ended)
        if not stay:
            break
        deadline = time.monotonic() + wait
    return GIVEN_BACK if ended else 0


def _work_for(channel: Channel, address: str, token: Path, number: int | None, ended: list[int]) -> None:
    """Keep a worker on each share of this host until the stage closes the channel, or this host is told to end."""
    while not channel.connection.poll(0.2):  # the stage may do something else first
        if ended:
            channel.close()
            return
    try:
        greeting = channel.receive()
    except Gone:  # the stage has ended meanwhile
        return
    if greeting.get("protocol") != PROTOCOL:
        raise UserError(f"{address}: the stage speaks to workers in another version; give both one commit")
    with suppress(Gone):
        channel.send(agent=True, protocol=PROTOCOL, name=socket.gethostname())
    free = [Share(each) for each in shares(greeting["gpus"], number or greeting["number"])]
    click.echo(f"{counted(len(free), 'worker')} for {greeting['stage']} at {address}", err=True)
    way = ["--connect", address, "--token", str(token)]
    running: dict[subprocess.Popen[bytes], tuple[Share, float]] = {}
    while not ended and not channel.connection.poll(0) and (free or running):
        while free:
            share = free.pop()
            running[start_worker(way, share.environment)] = share, time.monotonic()
        time.sleep(0.2)
        for process in [each for each in running if each.poll() is not None]:
            share, begun = running.pop(process)
            kill(process)
            share.ended(process.returncode in (0, GIVEN_BACK) or time.monotonic() - begun > SOON_SECONDS)
            if share.failures < RETRIES:
                free.append(share)
            else:
                click.echo(f"no more workers with {share.name}: {share.failures} ended soon (above)", err=True)
    for process in running:
        process.terminate()
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        kill(process)
    gone = bool(ended) or channel.connection.poll(0)
    channel.close()
    if not gone:
        raise UserError(f"no worker of this host gets to work for {address} (above)")
