"""Ray's workers without a stage: what is said where a cluster has no room, and where an actor cannot start."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gift.project.errors import UserError
from gift.workers import on_ray
from gift.workers.link import Job
from gift.workers.pool import Pool
from gift.workers.settings import Workers

pytestmark = pytest.mark.slow
GPUS_OF_THE_HOST = 2


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One core, and two GPUs that nobody looks for."""
    import ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(on_ray.PROJECT))
    start = ray.init

    def small(address: str | None, **settings: object) -> object:
        return start(address, num_cpus=1, num_gpus=GPUS_OF_THE_HOST, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(ray, "init", small)
    yield
    ray.shutdown()


def job(gpus: int, number: int | None = None) -> Job:
    return Job("generate", "generate@r1", "sample", {}, gpus=gpus, number=number)


def test_a_cluster_without_room_says_that_it_is_waited_for_and_costs_no_time_at_the_end(
    cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two workers of a GPU each one has the core."""
    monkeypatch.setattr(on_ray, "SAY_SECONDS", 1.0)
    workers = on_ray.RayWorkers(job(1), Workers(kind="ray"))
    pool = Pool(job(1), [workers], 30.0)
    assert workers.number == 2
    with pool:
        pool.links += workers.links(2)
        while sorted(link.state for link in pool.links) != ["greeted", "waiting"]:
            time.sleep(0.05)
        for link in pool.links:
            link.channel.send(protocol=0)  # whoever has started ends
        time.sleep(1.1)
        workers.links(0)
        assert "generate@r1: waits for room on the Ray cluster for 1 worker\n" in capsys.readouterr().err
        begun = time.monotonic()
    assert time.monotonic() - begun < 8


def test_the_guard_ends_nobody_else(cluster: None) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    workers = on_ray.RayWorkers(job(1), Workers(kind="ray"))
    workers.close()
    assert other.poll() is None
    other.communicate(b"\n")


def test_gpus_of_several_hosts_are_not_one_workers(cluster: None) -> None:
    with pytest.raises(UserError, match="a worker takes 4 GPUs of one host, and the cluster has none with more than 2"):
        on_ray.RayWorkers(job(4), Workers(kind="ray"))


def test_an_actor_that_cannot_start_says_why(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host does not see the project's folder."""
    workers = on_ray.RayWorkers(job(1, number=1), Workers(kind="ray"))
    with monkeypatch.context() as away:
        away.setattr(on_ray.Path, "cwd", lambda: Path("/nowhere/at/all"))
        (link,) = workers.links(1)
    assert link.channel.connection.poll(60)
    assert "No such file or directory: '/nowhere/at/all'" in link.how()
    workers.lost(link)
    workers.close()
