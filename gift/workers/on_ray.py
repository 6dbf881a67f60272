"""Workers on a Ray cluster: Ray places each as an actor of its own placement group, and says when its node is lost."""

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from gift.project.console import Guard
from gift.project.errors import UserError, counted
from gift.project.machine import PROJECT
from gift.workers.channel import ANSWER_SECONDS, Channel, Gone, channel_of, pair
from gift.workers.link import Job, Link
from gift.workers.remote import SAY_SECONDS
from gift.workers.settings import Workers

LISTEN_SECONDS = 1.0


class Seat:
    """What the actor is: it starts a worker on its node, and hands on what the two sides say to each other."""

    def __init__(self, root: str, folder: str, environment: Mapping[str, str]) -> None:
        sys.path.insert(0, root)
        os.chdir(folder)
        from gift.workers.channel import pair
        from gift.workers.local import start_worker

        self.channel, theirs = pair()
        with theirs:
            self.process = start_worker(["--fd", str(theirs.fileno())], dict(environment), theirs.fileno())

    def say(self, message: dict[str, Any]) -> None:
        self.channel.send(**message)

    def listen(self) -> dict[str, Any] | None:
        """What the worker says next, None: nothing for a second; raises EOFError where it has ended."""
        if not self.channel.connection.poll(LISTEN_SECONDS):
            return None
        return self.channel.receive()

    def ended(self) -> str:
        from gift.workers.link import ending

        return ending(self.process)


class RayWorkers:
    """As many actors as `job.number`, or as the cluster has GPUs for; each joins when Ray has room for it."""

    def __init__(self, job: Job, settings: Workers) -> None:
        if problem := ray_problem():
            raise UserError(problem)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray, self.job = ray, job
        loud, before = os.environ.get("GIFT_VERBOSE") == "1", Guard.started()
        try:
            ray.init(
                settings.address,
                include_dashboard=None if settings.address else False,
                log_to_driver=loud,
                logging_level="INFO" if loud else "ERROR",
                configure_logging=loud,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"launch.yaml: workers.address: {settings.address}: no Ray cluster there ({first}); start one (`ray "
                "start --head`), or set null for one on this machine"
            ) from None
        gpus = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
        on_gpus = max(gpus, default=0) >= 1
        room = sum(each // job.gpus for each in gpus) if on_gpus else 1
        if room < 1:
            ray.shutdown()
            raise UserError(
                f"launch.yaml: workers.kind: ray: a worker takes {job.gpus} GPUs of one host, and the cluster has none "
                f"with more than {max(gpus)}; lower tensor_parallel_size"
            )
        # Two agents of Ray's would stay for a minute: they report the loss of their node to its server, which is gone.
        self.guard = None if settings.address else Guard(before)
        self.number, self.said = job.number or room, 0.0
        self.bundle = {"CPU": 1, "GPU": job.gpus} if on_gpus else {"CPU": 1}
        self.groups: dict[Link, Any] = {}

    def links(self, num_open: int) -> list[Link]:
        now, waiting = time.monotonic(), [link for link in self.groups if link.state == "waiting"]
        if waiting and now - max(self.said, waiting[0].heard) > SAY_SECONDS:
            self.said = now
            number = counted(len(waiting), "worker")
            click.echo(f"{self.job.label}: waits for room on the Ray cluster for {number}", err=True)
        idle = sum(link.part is None for link in self.groups)
        count = min(self.number - len(self.groups), num_open - idle)
        return [self._place() for _ in range(count)]

    def _place(self) -> Link:
        """An actor where Ray has room, now or later; its words come through a socket pair, as those of any worker."""
        group = self.ray.util.placement_group([self.bundle], strategy="STRICT_PACK")
        strategy = self.ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
        own = {name: value for name, value in os.environ.items() if name.startswith(("GIFT_", "VLLM_", "OMP_", "HF_"))}
        # By value: the nodes' Python need not know this package when it starts.
        seat = self.ray.remote(max_concurrency=2, num_cpus=1, num_gpus=self.bundle.get("GPU", 0))(_by_value(Seat))
        actor = seat.options(scheduling_strategy=strategy).remote(str(PROJECT), str(Path.cwd()), own)
        ours, theirs = pair()
        inner = channel_of(theirs)
        why = ["its node or its actor was lost"]
        link = Link(ours, kill=lambda: self._kill(actor), how=lambda: why[0], state="waiting")
        threading.Thread(target=self._speak, args=(actor, inner), daemon=True).start()
        threading.Thread(target=self._hear, args=(actor, group, link, inner, why), daemon=True).start()
        self.groups[link] = group
        return link

    def _speak(self, actor: Any, inner: Channel) -> None:
        """From the stage to the worker."""
        with suppress(Gone, self.ray.exceptions.RayError):
            while True:
                self.ray.get(actor.say.remote(inner.receive()))

    def _hear(self, actor: Any, group: Any, link: Link, inner: Channel, why: list[str]) -> None:
        """From the worker to the stage; its end closes the channel."""
        try:
            self.ray.get(group.ready())  # where Ray has no room, it waits
            link.state, link.heard = "greeted", time.monotonic()
            while True:
                if (message := self.ray.get(actor.listen.remote())) is not None:
                    inner.send(**message)
        except self.ray.exceptions.RayTaskError:  # the worker ended, its actor lives
            with suppress(self.ray.exceptions.RayError):
                why[0] = self.ray.get(actor.ended.remote(), timeout=ANSWER_SECONDS)
        except self.ray.exceptions.RayError as error:  # the last line says what the others are about
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            why[0] = f"its node or its actor was lost: {last.strip()}"[:300]
        except Gone:
            pass
        inner.close()

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):
            self.ray.kill(actor)

    def lost(self, link: Link) -> None:
        if link in self.groups:
            link.kill()
            self.ray.util.remove_placement_group(self.groups.pop(link))

    def close(self) -> None:
        for link in list(self.groups):
            self.lost(link)
        self.ray.shutdown()
        if self.guard:
            self.guard.close()


def _by_value(kind: type) -> type:
    return type(kind.__name__, (), {**kind.__dict__, "__module__": "__main__"})


def ray_problem() -> str | None:
    """Ray is an extra."""
    if importlib.util.find_spec("ray") is None:
        return "launch.yaml: workers.kind: ray: no Ray; put `ray==2.60.0` in requirements/own.txt, then `make env`"
    return None
