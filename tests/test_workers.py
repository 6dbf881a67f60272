"""Workers: the same files whoever makes them; a death, a hang, a stranger, another version; nothing is left behind."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import mini
import psutil
import pytest

from gift.project.console import Progress
from gift.project.errors import UserError
from gift.workers import local, pool
from gift.workers.channel import Channel, Door, Gone, connect, make_token, read_token
from gift.workers.link import Job, Part
from gift.workers.local import shares, work_here
from gift.workers.pool import Pool
from gift.workers.remote import TOKEN
from gift.workers.settings import Workers
from gift.workers.start import alone, open_pool

ROOT = mini.ROOT
HERE = Workers()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, and toy workers; no process of theirs may be left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(local, "MODULE", "tests.hands")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield tmp_path
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not psutil.wait_procs(left, 5)[1], "processes are left"


def job_of(folder: Path, number: int | None = 2, **setup: Any) -> Job:
    return Job("generate", "generate@r1", "toy", {"folder": str(folder), **setup}, number=number)


def parts_of(folder: Path, *does: str) -> list[Part]:
    """A part for each thing to do; its text is its number, many times."""
    (folder / "made").mkdir(exist_ok=True)
    tasks = [{"index": index, "do": do, "text": f"{index} " * (index + 1)} for index, do in enumerate(does)]
    return [Part(task["index"], partial(dict, task), folder / f"made/{task['index']}.txt") for task in tasks]


def run(
    folder: Path, *does: str, workers: Workers = HERE, number: int | None = 2, **setup: Any
) -> dict[int, dict[str, Any]]:
    """Have the parts made; by part what its worker said of it."""
    with (
        open_pool(job_of(folder, number, **setup), workers) as made,
        Progress("generate@r1", len(does), "parts") as shown,
    ):
        return {part.index: facts for part, facts in made.run(parts_of(folder, *does), shown)}


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / "made").iterdir())}


WHOLE = {f"{index}.txt": f"{index} " * (index + 1) for index in range(5)}


@pytest.mark.parametrize("number", [1, 3])
def test_any_number_of_workers_makes_the_same_files(folder: Path, number: int) -> None:
    facts = run(folder, *[""] * 5, number=number)
    assert texts(folder) == WHOLE
    assert [facts[index]["tokens"] for index in range(5)] == [len(text) for text in WHOLE.values()]
    assert 1 <= len({each["pid"] for each in facts.values()}) <= number
    assert not list(pool.SCRATCH.iterdir()), "what workers wrote is in its place, and nothing else is left"


def test_no_more_workers_start_than_there_are_parts(folder: Path) -> None:
    assert len({each["pid"] for each in run(folder, "sleep 0.5", number=9).values()}) == 1


def test_workers_stay_for_the_next_parts(folder: Path) -> None:
    with open_pool(job_of(folder, 1), HERE) as made, Progress("generate@r1", 4, "parts") as shown:
        pids = {facts["pid"] for _ in range(2) for _, facts in made.run(parts_of(folder, "", ""), shown)}
    assert len(pids) == 1


def test_the_part_of_a_worker_that_dies_goes_to_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "", "once die", "", "", "")
    assert texts(folder) == WHOLE
    assert "died at part 1 (SIGKILL, perhaps for its memory); it goes to another" in capsys.readouterr().err


def test_a_second_death_at_a_part_names_it(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"generate@r1: part 1 \(.*made/1\.txt\): 2 workers died at it, the last: SIGKILL"
    ):
        run(folder, "", "die", "")
    assert "1.txt" not in texts(folder)


def test_an_error_of_a_bug_says_what_it_was(folder: Path) -> None:
    with pytest.raises(UserError, match=r"part 0 .* 2 workers died at it, the last: ValueError: a bug; GIFT_VERBOSE=1"):
        run(folder, "break")


def test_a_users_mistake_ends_the_stage_in_its_own_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: a mistake$"):
        run(folder, "", "fail", "")


@pytest.mark.parametrize("way", ["hang", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_worker_that_hangs_is_given_up(folder: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "", f"once {way}", "", "", "", workers=Workers(timeout_minutes=0.05))
    assert texts(folder) == WHOLE
    assert (
        "died at part 1 (no progress for 0.05 minutes (launch.yaml: workers.timeout_minutes))"
        in capsys.readouterr().err
    )


def test_workers_that_do_not_load_end_the_stage(folder: Path) -> None:
    with pytest.raises(UserError, match="2 workers ended before they had loaded, the last: SIGKILL"):
        run(folder, "", "", start="die")


def test_what_loading_has_to_say_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "sleep 0.3", "sleep 0.3", note="tokens are padded")
    assert capsys.readouterr().err.count("generate@r1: tokens are padded\n") == 1


def test_people_see_what_is_sampled_inside_a_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_pool(job_of(folder), HERE) as made, Progress("generate@r1", 2, "parts") as shown:
        shown.terminal = True
        for _ in made.run(parts_of(folder, "sleep 1.5", "sleep 1.5"), shown):
            pass
    assert "generate@r1: 1.0/2 parts, 14 tokens, " in capsys.readouterr().err


def toy(*way: str, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.hands", *way], env={**os.environ, **env})


def listening(folder: Path, *does: str) -> tuple[Callable[[], Any], Pool, str]:
    """A stage that waits for who connects: what makes its parts, its pool and its address."""
    made = open_pool(job_of(folder), Workers(kind="connect", listen="127.0.0.1:0"))

    def go() -> dict[int, dict[str, Any]]:
        with made, Progress("generate@r1", len(does), "parts") as shown:
            return {part.index: facts for part, facts in made.run(parts_of(folder, *does), shown)}

    source: Any = made.sources[0]
    return go, made, source.door.address


def test_workers_connect_with_the_token_and_are_told_when_they_are_not_needed(folder: Path) -> None:
    go, _, address = listening(folder, *[""] * 5)
    hands = [toy("--connect", address, "--token", str(TOKEN)) for _ in range(2)]
    go()
    assert texts(folder) == WHOLE
    assert [each.wait(20) for each in hands] == [0, 0]


def test_a_part_comes_back_at_once_from_a_worker_that_is_told_to_end(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that is no death: its part may be given back as often as machines are taken away."""
    go, _, address = listening(folder, "3 times hang")
    ended = []

    def preempt() -> None:
        for _ in range(3):
            worker = toy("--connect", address, "--token", str(TOKEN))
            while not (mark := folder / "hang").exists() or mark.read_text() != str(worker.pid):
                time.sleep(0.05)
            worker.send_signal(signal.SIGTERM)
            ended.append(worker.wait(2))
        toy("--connect", address, "--token", str(TOKEN)).wait()

    then = threading.Thread(target=preempt)
    then.start()
    go()
    then.join()
    assert ended == [143] * 3
    said = capsys.readouterr().err
    assert said.count("was told to end; part 0 goes to another") == 3
    assert "died" not in said


def test_a_full_disk_is_a_line_of_its_own(folder: Path) -> None:
    with pytest.raises(UserError, match="no room left"):
        run(folder, "full")


def test_an_error_in_what_a_worker_is_told_ends_the_stage(folder: Path) -> None:
    def task() -> dict[str, Any]:
        raise OSError(28, "No space left on device", "requests")

    parts = [Part(0, task, folder / "made/0.txt")]
    with pytest.raises(OSError, match="No space"), open_pool(job_of(folder), HERE) as made:
        list(made.run(parts, Progress("generate@r1", 1, "parts")))


def test_a_worker_that_died_between_two_passes_costs_no_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_pool(job_of(folder, 1, start="once sleep 0"), HERE) as made, Progress("generate@r1", 2, "parts") as shown:
        (facts,) = [facts for _, facts in made.run(parts_of(folder, ""), shown)]
        os.kill(facts["pid"], signal.SIGKILL)
        time.sleep(0.3)
        assert [part.index for part, _ in made.run(parts_of(folder, ""), shown)] == [0]
    assert "died at part" not in capsys.readouterr().err


@pytest.mark.parametrize(("how", "why"), [("ends", "exit code 1"), ("refuses", "no room on this host")])
def test_a_share_on_which_no_worker_loads_is_left_out(
    folder: Path, how: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One GPU of two is broken: the other makes all parts, and nobody starts workers for ever."""
    both = [{"GIFT_CORES": "0", "OMP_NUM_THREADS": "1"}, {"GIFT_CORES": "0", "OMP_NUM_THREADS": "1", "BROKEN": how}]
    monkeypatch.setattr(local, "shares", lambda *_: both)
    starts = []
    start = local.start_worker
    monkeypatch.setattr(local, "start_worker", lambda way, env, *more: starts.append(env) or start(way, env, *more))
    run(folder, *["sleep 0.5"] * 5)
    assert texts(folder) == WHOLE
    assert len(starts) == 3
    assert capsys.readouterr().err.count(f"ended before it had loaded ({why})") == 2


def test_what_another_host_refuses_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(UserError, match=rf"^worker {os.uname().nodename}:\d+: params.yaml: a mistake"):
        run(folder, "fail")


def test_a_remote_worker_that_hangs_ends_and_another_is_waited_for(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = open_pool(job_of(folder), Workers(kind="connect", listen="127.0.0.1:0", timeout_minutes=0.05))
    source: Any = made.sources[0]
    code = (
        "from gift.workers import local; local.MODULE = 'tests.hands'; from pathlib import Path; "
        f"raise SystemExit(local.work_here('{source.door.address}', Path('{TOKEN}'), 1, 10, False))"
    )
    host = subprocess.Popen([sys.executable, "-c", code])
    with made, Progress("generate@r1", 2, "parts") as shown:
        assert len(list(made.run(parts_of(folder, "once hang", ""), shown))) == 2
    assert host.wait(20) == 0
    assert "no progress for 0.05 minutes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"code": "000000000000"}, "its code of generate is another (000000000000, here "),
        ({"versions": {"python": "2.7"}}, "its packages are others: "),
    ],
)
def test_a_worker_of_another_version_is_refused(
    folder: Path, other: dict[str, Any], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    go, _, address = listening(folder, "")
    way = ("--connect", address, "--token", str(TOKEN))
    old = toy(*way, OTHER_VERSION=json.dumps(other))
    right: list[subprocess.Popen[bytes]] = []
    then = threading.Thread(target=lambda: (old.wait(), right.append(toy(*way))))
    then.start()
    go()
    then.join()
    assert (old.wait(20), right[0].wait(20)) == (1, 0)
    said = capfd.readouterr().err
    assert f"is refused: {why}" in said
    assert f"error: {why}" in said, "the worker says it, too"


def test_a_stranger_is_let_go_and_keeps_nobody_out(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One with another token, one that says nothing, one that speaks HTTP, and one that guesses."""
    go, made, address = listening(folder, "")
    host, _, port = address.rpartition(":")
    silent = socket.create_connection((host, int(port)))
    web = socket.create_connection((host, int(port)))
    web.sendall(b"GET / HTTP/1.1\r\n\r\n")
    (folder / "wrong").write_text("0" * 64)
    (folder / "wrong").chmod(0o600)
    wrong = toy("--connect", address, "--token", "wrong")
    with pytest.raises(Exception, match=r"digest|Connection|closed|^$"):
        Client((host, int(port)), authkey=b"guess")
    right = toy("--connect", address, "--token", str(TOKEN))
    go()
    assert (wrong.wait(20), right.wait(20)) == (1, 0)
    source: Any = made.sources[0]
    assert source.door.refused >= 3
    assert f"error: {address}: the stage there has another token" in capfd.readouterr().err
    silent.close()
    web.close()


def test_the_token_is_for_its_owner_alone(folder: Path) -> None:
    token = make_token(folder / "token")
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert len(token) == 64
    assert make_token(folder / "token") == token, "of all stages, so that a machine can stay"
    (folder / "token").chmod(0o640)
    with pytest.raises(UserError, match="others can read it"):
        read_token(folder / "token")
    (folder / "token").chmod(0o600)
    (folder / "token").write_text("short")
    with pytest.raises(UserError, match="no token of workers"):
        read_token(folder / "token")


def test_nothing_listens_unless_a_launch_key_says_so(folder: Path) -> None:
    def listeners() -> list[Any]:
        own = psutil.Process()
        sockets = [each for process in (own, *own.children(recursive=True)) for each in process.net_connections("inet")]
        return [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN]

    before = listeners()
    with open_pool(job_of(folder), HERE) as made, Progress("generate@r1", 2, "parts") as shown:
        for _ in made.run(parts_of(folder, "", "sleep 0.3"), shown):
            assert listeners() == before
    door = Door("127.0.0.1:0", b"x" * 64, lambda channel: None)
    assert [each.ip for each in listeners() if each not in before] == ["127.0.0.1"]
    door.close()


STAGE = """
import sys
from pathlib import Path
from functools import partial
from gift.project.console import Progress
from gift.workers import local
from gift.workers.link import Job, Part
from gift.workers.settings import Workers
from gift.workers.start import open_pool

local.MODULE = "tests.hands"
job = Job("generate", "generate@r1", "toy", {"folder": "."}, number=2)
parts = [Part(i, partial(dict, index=i, do=f"sleep 6{i}", text=""), Path(f"made/{i}.txt")) for i in range(2)]
with open_pool(job, Workers()) as pool, Progress("generate@r1", 2, "parts") as shown:
    for _ in pool.run(parts, shown):
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_workers_end_with_their_stage(folder: Path, number: signal.Signals) -> None:
    stage = subprocess.Popen([sys.executable, "-c", STAGE])
    while not all(
        (folder / f"sleep 6{part}").exists() and (folder / f"sleep 6{part}").read_text() for part in range(2)
    ):
        time.sleep(0.05)
    hands = [psutil.Process(int((folder / f"sleep 6{part}").read_text())) for part in range(2)]
    stage.send_signal(number)
    stage.wait()
    assert not psutil.wait_procs(hands, 10)[1]


@pytest.mark.parametrize(
    ("visible", "gpus", "number", "found"),
    [
        ("0,1,2,3", 1, None, ["0", "1", "2", "3"]),
        ("0,1,2,3", 2, None, ["0,1", "2,3"]),
        ("0,1,2", 2, None, ["0,1"]),
        ("GPU-a,GPU-b", 1, None, ["GPU-a", "GPU-b"]),
        ("0,1,2,3", 1, 2, ["0", "1"]),
    ],
)
def test_each_worker_has_gpus_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int, number: int | None, found: Sequence[str]
) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: visible.split(","))
    assert [each["CUDA_VISIBLE_DEVICES"] for each in shares(gpus, number)] == list(found)
    assert alone(Job("generate", "g", "toy", {}, gpus, number), HERE) == (len(found) == 1)


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1"])
    with pytest.raises(UserError, match="3 workers of 1 GPU each, and this machine has 2 GPUs"):
        shares(1, 3)
    with pytest.raises(UserError, match="1 worker of 4 GPUs each"):
        shares(4, None)


def test_workers_of_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    assert [each["GIFT_CORES"] for each in shares(1, 2)] == ["0,1", "2,3,4"]
    assert [each["OMP_NUM_THREADS"] for each in shares(1, 2)] == ["2", "3"]
    assert [each["GIFT_CORES"] for each in shares(1, 7)] == ["0", "0", "1", "2", "2", "3", "4"]
    assert len(shares(1, None)) == 1


def test_a_host_works_until_the_stage_has_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, _, address = listening(folder, *[""] * 5)
    host = host_of(address, stays=False)
    go()
    assert host.wait(20) == 0
    assert texts(folder) == WHOLE


def host_of(address: str, stays: bool) -> subprocess.Popen[bytes]:
    """`gift worker --connect` with toy workers; it does not wait for a stage."""
    code = (
        "from gift.workers import local; local.MODULE = 'tests.hands'; from pathlib import Path; "
        f"raise SystemExit(local.work_here('{address}', Path('{TOKEN}'), 2, 0, {stays}))"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_host_that_stays_waits_for_the_first_token(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host = host_of(address, stays=True)
    with pytest.raises(subprocess.TimeoutExpired):
        host.wait(1.5)
    run(folder, *[""] * 5, workers=Workers(kind="connect", listen=address))
    assert texts(folder) == WHOLE
    host.terminate()
    assert host.wait(20) == 143


def test_a_host_ends_where_the_stage_does_something_else_first(folder: Path) -> None:
    """It is let in, and nobody speaks to it yet."""
    _, made, address = listening(folder)
    source: Any = made.sources[0]
    host = host_of(address, stays=False)
    while source.waiting.empty():
        time.sleep(0.02)
    host.terminate()
    assert host.wait(5) == 143
    source.close()


def test_a_door_opens_again_where_a_connection_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, for one: those who come later are let in."""
    welcome: queue.SimpleQueue[Channel] = queue.SimpleQueue()
    door = Door("127.0.0.1:0", make_token(TOKEN), welcome.put)
    taken = door.socket

    class Full:
        def accept(self) -> Any:
            door.socket = taken
            raise OSError(24, "Too many open files")

    door.socket = Full()  # type: ignore[assignment]
    ends = [connect(door.address, read_token(TOKEN)) for _ in range(2)]
    for end in (*ends, welcome.get(timeout=5), welcome.get(timeout=5)):
        end.close()
    assert door.socket is taken
    door.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError(111, ""), "Connection refused"),
    ],
)
def test_why_nobody_is_reached_is_in_words(error: OSError, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "create_connection", fails)
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: fails())
    with pytest.raises(Gone, match=words):
        connect("nohost:1", b"token")
    with pytest.raises(UserError, match=rf"nohost:1: cannot listen there \({words}\)"):
        Door("nohost:1", b"token", lambda channel: None)


def test_a_host_that_finds_no_stage_says_so(folder: Path) -> None:
    make_token(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match=f"127.0.0.1:{port}: no stage listens there"):
        work_here(f"127.0.0.1:{port}", TOKEN, 1, 0, False)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"kind": "connect"},
            "launch.yaml: workers.kind: connect: workers connect to the stage, and it listens nowhere",
        ),
        ({"kind": "srun"}, "launch.yaml: workers.kind: srun: workers connect to the stage, and it listens nowhere"),
        ({"kind": "srun", "listen": "127.0.0.1:0"}, "launch.yaml: workers.kind: srun: no SLURM allocation"),
        ({"listen": "203.0.113.1:0"}, "launch.yaml: workers.listen: 203.0.113.1:0: cannot listen there"),
    ],
)
def test_what_cannot_start_is_one_line(folder: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line.replace(".", r"\.")):
        open_pool(job_of(folder), Workers(**settings))


@pytest.mark.parametrize("listen", ["7070", "host", "host:port", ":7070", "a:99999"])
def test_an_address_has_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(ValueError, match="must be host:port"):
        Workers(listen=listen)
