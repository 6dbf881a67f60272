"""Workers of other hosts: they connect to the stage, started by a step of SLURM's or by whoever has the token."""

import os
import queue
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

from gift.project.console import end_with_parent
from gift.project.errors import UserError
from gift.project.machine import with_our_code
from gift.workers.channel import Channel, Door, make_token
from gift.workers.link import Job, Link, ending
from gift.workers.settings import Workers

TOKEN = Path("data/.cache/workers.token")
"""On the folder that all hosts share, for its owner's eyes alone."""
SAY_SECONDS = 60.0


class RemoteWorkers:
    """Whoever connects to `workers.listen` with the token in `TOKEN`, while the stage lasts."""

    def __init__(self, job: Job, listen: str) -> None:
        self.job, self.waiting = job, queue.SimpleQueue[Channel]()
        self.door = Door(listen, make_token(TOKEN), self.waiting.put)
        self.live: set[Link] = set()
        self.said = 0.0

    def links(self, num_open: int) -> list[Link]:
        new = []
        while not self.waiting.empty():
            new.append(Link(self.waiting.get()))
        self.live.update(new)
        if not self.live and num_open and time.monotonic() - self.said > SAY_SECONDS:
            self.said = time.monotonic()
            click.echo(f"{self.job.label}: waits for workers at {self.door.address} (token: {TOKEN})", err=True)
        return new

    def lost(self, link: Link) -> None:
        """Whoever comes next takes its place."""
        self.live.discard(link)

    def close(self) -> None:
        self.door.close()
        while not self.waiting.empty():
            self.waiting.get().close()


class SlurmWorkers(RemoteWorkers):
    """The same, started by one `srun` in the allocation around the stage: a task on each host keeps its workers."""

    def __init__(self, job: Job, listen: str, words: list[str]) -> None:
        if problem := slurm_problem():
            raise UserError(problem)
        super().__init__(job, listen)
        work = [
            sys.executable,
            "-m",
            "gift.cli",
            "worker",
            "--connect",
            self.door.address,
            "--token",
            str(TOKEN.absolute()),
        ]
        command = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--wait=0", *words, *work]
        print(shlex.join(command), file=sys.stderr, flush=True)
        self.step = subprocess.Popen(command, env=with_our_code(), stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)

    def links(self, num_open: int) -> list[Link]:
        if num_open and self.step.poll() is not None:
            raise UserError(
                f"{self.job.label}: srun ended before all parts were made ({ending(self.step)}; above is why)"
            )
        return super().links(num_open)

    def close(self) -> None:
        super().close()
        self.step.terminate()
        try:
            self.step.wait(30)
        except subprocess.TimeoutExpired:
            self.step.kill()


def slurm_problem() -> str | None:
    """srun needs an allocation of SLURM's around `dvc repro`."""
    if "SLURM_JOB_NODELIST" not in os.environ:
        return "launch.yaml: workers.kind: srun: no SLURM allocation; start `dvc repro` in sbatch or salloc"
    if not shutil.which("srun"):
        return "launch.yaml: workers.kind: srun: `srun` is not on this machine's PATH"
    return None


def listen_problem(workers: Workers) -> str | None:
    """Workers of other hosts need a place to connect to, which nobody but the user opens."""
    if workers.kind in ("srun", "connect") and workers.listen is None:
        return (
            f"launch.yaml: workers.kind: {workers.kind}: workers connect to the stage, and it listens nowhere; set "
            "workers.listen, for example to 0.0.0.0:0"
        )
    return None
