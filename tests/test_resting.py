"""Workers that rest between the stages of one `gift repro`: kept, taken again, or ended; nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mini
import psutil
import pytest

from gift.project.console import Progress
from gift.project.errors import UserError
from gift.workers import local
from gift.workers.link import Job
from gift.workers.preload import kept_in, preloaded
from gift.workers.served import KEEP, PRELOADED, SERVER
from gift.workers.settings import Workers
from gift.workers.start import open_pool, pool_for
from tests.test_workers import parts_of

HERE = Workers()
STAGE = """
import sys
from functools import partial
from pathlib import Path
from gift.project.console import Progress, end_with_parent
from gift.workers import local
from gift.workers.link import Job, Part
from gift.workers.settings import Workers
from gift.workers.start import open_pool
local.MODULE = "tests.hands"
folder = Path(sys.argv[1])
(folder / "made").mkdir(exist_ok=True)
job = Job("generate", "generate@r2", "toy", {"folder": str(folder)}, number=1, key="k")
parts = [Part(0, partial(dict, index=0, do=sys.argv[2], text="x"), folder / "made/0.txt")]
with open_pool(job, Workers()) as pool, Progress("generate@r2", 1, "parts") as shown:
    print(*[facts["pid"] for _, facts in pool.run(parts, shown)], flush=True)
"""


@pytest.fixture(params=[(), ("colorsys",)], ids=["anew", "forks"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that workers rest with, where they start anew, and where they are forks; at the end none may be left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(mini.ROOT))
    monkeypatch.setattr(local, "MODULE", "tests.hands")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with preloaded(request.param, dict(os.environ), "any") as own:
        assert (PRELOADED in own) == bool(request.param)
        monkeypatch.setenv(SERVER, own[SERVER])
        yield tmp_path
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not psutil.wait_procs(left, 5)[1], "processes are left"


def stage(folder: Path, *does: str, key: str | None = "k", number: int = 1, **setup: Any) -> list[dict[str, Any]]:
    """What is said of each part of a stage with such workers."""
    job = Job("generate", "generate@r1", "toy", {"folder": str(folder), **setup}, number=number, key=key)
    with open_pool(job, HERE) as pool, Progress("generate@r1", len(does), "parts") as shown:
        return [facts for _, facts in pool.run(parts_of(folder, *does), shown)]


def test_a_worker_stays_for_the_next_stage(server: Path) -> None:
    facts = [stage(server, "", "")[0] for _ in range(3)]
    assert len({each["pid"] for each in facts}) == 1
    assert [each["rests"] for each in facts] == [0, 1, 2]


def test_workers_of_several_shares_stay_each_in_its_own(server: Path) -> None:
    one, two = ({each["pid"] for each in stage(server, *["sleep 0.3"] * 4, number=2)} for _ in range(2))
    assert one == two
    assert len(one) == 2


def test_what_has_another_key_makes_room(server: Path) -> None:
    (first,) = stage(server, "")
    (other,) = stage(server, "", key="another")
    assert not psutil.pid_exists(first["pid"])
    (again,) = stage(server, "")
    assert again["rests"] == other["rests"] == 0


def test_a_stage_that_keeps_nothing_leaves_who_rests(server: Path) -> None:
    (first,) = stage(server, "")
    (other,) = stage(server, "", key=None)
    assert other["pid"] != first["pid"]
    assert not psutil.pid_exists(other["pid"])
    assert stage(server, "")[0]["pid"] == first["pid"]


def test_one_that_died_while_it_rested_is_not_missed(server: Path) -> None:
    (first,) = stage(server, "")
    os.kill(first["pid"], signal.SIGKILL)
    time.sleep(0.2)
    (second,) = stage(server, "")
    assert second["rests"] == 0


@pytest.mark.parametrize("again", ["break", "die", "fail", "unfit"])
def test_one_that_cannot_be_taken_over_makes_room_for_a_fresh_one(
    server: Path, again: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often: a stale engine is no error of the stage's."""
    numbers = [each["pid"] for each in stage(server, *["sleep 0.3"] * 3, number=2)]
    if again == "fail":  # what a user did is said as always
        with pytest.raises(UserError, match=r"params\.yaml: a mistake"):
            stage(server, "", number=2, again=again)
        return
    facts = stage(server, *["sleep 0.3"] * 3, number=2, again=again)
    assert {each["rests"] for each in facts} == {0}
    assert not {each["pid"] for each in facts} & set(numbers)
    assert capsys.readouterr().err.count("the engine of the stage before is not used") == 2


def test_after_an_error_nobody_rests(server: Path) -> None:
    (first,) = stage(server, "")
    with pytest.raises(UserError, match="a mistake"):
        stage(server, "fail")
    assert not psutil.pid_exists(first["pid"])


@pytest.mark.parametrize("rest", ["die", "break", "hang"])
def test_one_that_does_not_come_to_rest_is_ended(server: Path, rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gift.workers.pool.END_SECONDS", 1.0)
    (first,) = stage(server, "", rest=rest)
    assert not psutil.pid_exists(first["pid"])
    assert stage(server, "")[0]["rests"] == 0


def test_a_stage_that_is_killed_takes_its_worker_along(server: Path) -> None:
    (first,) = stage(server, "")
    killed = subprocess.Popen([sys.executable, "-c", STAGE, str(server), "hang"])
    while not (server / "hang").exists():
        time.sleep(0.02)
    assert (server / "hang").read_text() == str(first["pid"])
    worker = psutil.Process(first["pid"])
    killed.kill()
    killed.wait()
    assert not psutil.wait_procs([worker], 5)[1]
    assert stage(server, "")[0]["rests"] == 0


def test_who_rests_is_handed_from_process_to_process(server: Path) -> None:
    done = [
        subprocess.run([sys.executable, "-c", STAGE, str(server), ""], stdout=subprocess.PIPE, text=True, check=True)
        for _ in range(3)
    ]
    assert len({each.stdout for each in done}) == 1


def test_what_a_stage_leaves_is_there_for_one_that_waits_already(server: Path) -> None:
    """The server may be busy, with an import of seconds, while one stage ends and the next begins."""
    (first,) = stage(server, "")
    (busy,) = [each for each in psutil.Process().children() if "gift.workers.server" in each.cmdline()]
    other = subprocess.Popen([sys.executable, "-c", STAGE, str(server), "sleep 0.5"], stdout=subprocess.PIPE, text=True)
    while not (server / "sleep 0.5").exists():
        time.sleep(0.02)
    busy.suspend()
    threading.Timer(2.0, busy.resume).start()
    said, _ = other.communicate()
    assert said.split() == [str(first["pid"])]
    assert stage(server, "")[0]["pid"] == first["pid"]


def test_a_worker_ends_with_the_server_also_when_that_is_killed(server: Path) -> None:
    (first,) = stage(server, "")
    resting = psutil.Process(first["pid"])
    resting.parent().kill()
    assert not psutil.wait_procs([resting], 5)[1]
    assert stage(server, "")[0]["rests"] == 0, "without a server a worker is the stage's own"


def test_nobody_is_kept_where_there_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(mini.ROOT))
    monkeypatch.setattr(local, "MODULE", "tests.hands")
    monkeypatch.delenv(SERVER, raising=False)
    (first,) = stage(tmp_path, "")
    assert not psutil.pid_exists(first["pid"])


@pytest.mark.parametrize(
    ("stages", "wanted", "on_gpu", "keep"),
    [
        (["generate@r1", "update@r1", "generate_eval@r1"], None, False, "small"),
        (["generate@r1", "update@r1", "generate_eval@r1"], None, True, None),
        (["generate@r1", "generate@r2"], True, True, "any"),
        (["generate@r1", "generate@r2"], False, False, None),
        (["generate@r1", "reference@r1", "evaluate@r1"], True, False, None),
        (["generate_eval_base", "generate@r1"], None, False, "small"),
    ],
)
def test_engines_are_kept_where_several_stages_sample(
    stages: list[str], wanted: bool | None, on_gpu: bool, keep: str | None
) -> None:
    assert kept_in(stages, wanted, on_gpu) == keep


def test_who_is_to_rest_is_a_process_of_its_own() -> None:
    assert pool_for(Job("generate", "g", "toy", {}, number=1), HERE) is None
    assert pool_for(Job("generate", "g", "toy", {}, number=1, key="k"), HERE) is not None
    assert KEEP not in os.environ
