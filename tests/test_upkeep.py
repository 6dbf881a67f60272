"""What a kill leaves behind, and who mends it: DVC's own files, unfinished work, finished work that nobody noted."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from gift.cli import main
from gift.project import door
from gift.project.errors import UserError, refused
from gift.project.graph import read_lock
from gift.project.work import ROOT, Work, forget_noted, hold, publish_again, whole_file
from gift.upkeep.gc import unused
from gift.upkeep.heal import RWLOCK, heal, running
from gift.upkeep.plan import md5_of_text
from gift.upkeep.repro import check_files, linked_data, repro

CACHE = Path(".dvc/cache")
ALONE = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))},
    "DVC_NO_ANALYTICS": "1",
}


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty project with one stage, `report`, that depends on a file and a setting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path(".dvc/tmp").mkdir(parents=True)
    Path("data").mkdir()
    Path("seen.txt").write_text("seen")
    Path("params.yaml").write_text("lr: 1\n")
    graph = {"report": {"cmd": "true", "deps": ["seen.txt"], "params": ["lr"], "outs": ["data/out", "data/out.json"]}}
    Path("dvc.yaml").write_text(json.dumps({"stages": graph}))
    yield
    door._seen.clear()


def noted(*addresses: str) -> str:
    """A dvc.lock with these stages."""
    return json.dumps({"schema": "2.0", "stages": {each: {"cmd": "true"} for each in addresses}}, indent=1) + "\n"


def rwlock(pid: int, cmd: str) -> None:
    RWLOCK.write_text(json.dumps({"write": {"data/out": {"pid": pid, "cmd": cmd}}, "read": {}}))


@pytest.mark.parametrize("text", ["", '{"write": {"data/o', "[]", '{"read": {"x": [1]}}'])
def test_a_torn_rwlock_is_removed(text: str) -> None:
    RWLOCK.write_text(text)
    assert [*heal(CACHE)] == [f"{RWLOCK}: was cut by a kill; removed"]
    assert not RWLOCK.exists()


def test_an_rwlock_of_the_dead_or_of_another_process_is_removed_and_that_of_the_living_stays() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    for pid in (done.pid, os.getpid()):
        rwlock(pid, "dvc repro of another day")
        assert running() == {}
        assert [*heal(CACHE)] == []
        assert not RWLOCK.exists()
    with subprocess.Popen(["sleep", "60"]) as living:
        rwlock(living.pid, "sleep 60")
        assert running() == {living.pid: "sleep 60"}
        assert [*heal(CACHE)] == []
        assert RWLOCK.exists()
        living.kill()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_a_cut_lock_comes_back_as_the_last_stage_found_it(share: float) -> None:
    text = noted(*(f"update@r{number}" for number in range(300)))
    door.LOCK_COPY.parent.mkdir(parents=True)
    door.LOCK_COPY.write_text(text)
    Path("dvc.lock").write_text(text[: int(share * len(text))])
    assert "was cut by a kill" in next(heal(CACHE))
    assert Path("dvc.lock").read_text() == text


def test_a_lock_that_is_shorter_and_whole_is_a_persons_own() -> None:
    door.LOCK_COPY.parent.mkdir(parents=True)
    door.LOCK_COPY.write_text(noted("update@r1", "update@r2"))
    Path("dvc.lock").write_text(noted("update@r1"))
    assert [*heal(CACHE)] == []
    assert [*read_lock()] == ["update@r1"]


def test_a_cut_lock_without_a_copy_is_one_line_with_the_remedy() -> None:
    Path("dvc.lock").write_text('{"stages": {"upd')
    with pytest.raises(UserError, match=r"dvc.lock: damaged.*`git checkout dvc.lock`"):
        next(heal(CACHE))


def test_empty_folders_of_the_run_cache_and_leftovers_are_removed() -> None:
    (CACHE / "runs/ab/abcd").mkdir(parents=True)
    for name in ("data/prompts/.aBcD1234efgh.tmp", "data/.cache/seconds/update.json.tmp"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    assert len([*heal(CACHE)]) == 3
    assert not (CACHE / "runs/ab/abcd").exists()
    assert not [*Path("data").rglob("*.tmp")]


def test_a_work_folder_belongs_to_one_process_and_the_other_is_named() -> None:
    script = "from gift.project.work import hold; hold('update@r1'); print('has it', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        hold("update@r2")
        with pytest.raises(UserError, match=f"update@r1: process {other.pid} is making it.*kill {other.pid}"):
            hold("update@r1")
        other.send_signal(signal.SIGKILL)
        other.wait()
        hold("update@r1")  # a killed process holds nothing
        hold("update@r1")
    assert not any(Path("data").glob(".work/*"))


def test_a_stage_ends_with_the_process_that_started_it() -> None:
    stage = "import click, time; from gift.project import console; print('runs', flush=True)\n"
    stage += "console.run(click.command()(lambda: time.sleep(60)))"
    starter = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); "
    starter += "print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", starter, stage], stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        said = sorted(parent.stdout.readline() for _ in range(2))
        assert said[1] == "runs\n"
        time.sleep(0.5)  # until it has asked the kernel
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{said[0].strip()}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("it goes on alone")


def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.setattr("gift.project.work.check_code", lambda stage: "the code")
    monkeypatch.setattr("gift.project.door.check_code", lambda stage, before: "the code")
    monkeypatch.setattr("gift.project.work.code_of", lambda *_: "1")
    return Work("report", {"seed": 0})


def write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text)


def test_damaged_units_of_unfinished_work_are_made_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work(monkeypatch).folder
    for name in ("part-0", "part-1", "checkpoint"):
        write(folder / name, "first")
    write(folder / "checkpoint", "second")
    times = (folder / "part-1").stat()
    (folder / "part-1").write_text("fjrst")  # as large, and of the same time
    os.utime(folder / "part-1", ns=(times.st_atime_ns, times.st_mtime_ns))
    (folder / "optimizer").mkdir()
    for name in ("checkpoint.tmp", "optimizer/.tmpAbC123"):
        (folder / name).write_text("half")
    assert work(monkeypatch).folder == folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"part-0", "checkpoint", "fingerprint", "begun", "units"}
    assert "part-1: is not what was written before the stage was stopped" in capsys.readouterr().err


def publish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "report")
    door.enter()
    made = work(monkeypatch)
    write(made.folder / "out" / "part", "a part")
    write(made.folder / "out.json", "numbers")
    made.publish({made.folder / "out": Path("data/out"), made.folder / "out.json": Path("data/out.json")})
    door._seen.clear()


def remove_outputs() -> None:
    """As DVC does before it runs a stage again."""
    shutil.rmtree("data/out")
    Path("data/out.json").unlink()


def test_finished_work_that_dvc_did_not_note_is_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch)
    remove_outputs()
    assert publish_again() == "report"
    assert Path("data/out/part").read_text() == "a part"
    assert Path("data/out.json").read_text() == "numbers"


@pytest.mark.parametrize("change", ["seen.txt", "params.yaml"])
def test_and_not_where_an_input_is_another(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    publish(monkeypatch)
    Path(change).write_text(Path(change).read_text().replace("1", "2").replace("seen", "other"))
    assert publish_again() is None


def test_and_no_more_when_dvc_has_noted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch)
    assert Path("data/.work/report").exists()
    Path("dvc.lock").write_text(noted("report"))
    forget_noted()
    assert not Path("data/.work/report").exists()
    assert publish_again() is None
    made = json.loads(Path("data/made/report.json").read_text())
    assert made["inputs"] == {"seed": 0}
    assert made["code"] == {"results": "1", "fingerprint": "the code"}


def test_and_all_the_same_when_dvc_notes_another_stage_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that was made before stands in dvc.lock with what it was made of then."""
    Path("dvc.lock").write_text(noted("report"))
    publish(monkeypatch)
    Path("dvc.lock").write_text(noted("report", "doctor"))
    forget_noted()
    remove_outputs()
    assert publish_again() == "report"


def test_and_not_where_what_it_wrote_of_that_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch)
    Path("data/.work/report/finished.json").write_text('{"inputs": {')
    assert publish_again() is None


def test_work_that_was_made_again_as_it_was_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    outs = [{"path": "data/out.json", "md5": md5_of_text("numbers")}]
    lock = {"schema": "2.0", "stages": {"report": {"cmd": "true", "outs": outs}}}
    Path("dvc.lock").write_text(json.dumps(lock, indent=1) + "\n")
    publish(monkeypatch)
    forget_noted()
    assert not Path("data/.work/report").exists()


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True, env=ALONE)


def test_gc_takes_what_no_lock_and_no_commit_needs_and_says_first_how_much() -> None:
    shutil.rmtree(".dvc")
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init")
    graph = {"stages": {"one": {"cmd": "cp seen.txt data/out", "deps": ["seen.txt"], "outs": ["data/out"]}}}
    Path("dvc.yaml").write_text(json.dumps(graph))
    for number, text in enumerate(("first", "second", "third")):
        Path("seen.txt").write_text(text)
        dvc("repro")
        if number == 0:
            subprocess.run(["git", "add", "."], check=True)
            name = ["-c", "user.name=a", "-c", "user.email=a@b"]
            subprocess.run(["git", *name, "commit", "-qm", "one"], check=True)
    left = ROOT / "generate@r9/part"
    left.parent.mkdir(parents=True)
    left.write_text("left")

    def kept() -> set[str]:
        return {path.read_text() for path in Path(".dvc/cache/files").rglob("*") if path.is_file()}

    said = CliRunner().invoke(main, ["gc"], input="n\n").output
    assert said.splitlines()[0] == "DVC's cache: 1 files, 6 B"
    assert "data/.work/generate@r9: 4 B, of no stage in dvc.yaml" in said
    assert kept() == {"first", "second", "third"}
    assert CliRunner().invoke(main, ["gc", "--yes"]).exit_code == 0
    assert kept() == {"first", "third"}
    assert not left.parent.exists()
    assert CliRunner().invoke(main, ["gc", "--yes", "--workspace"]).exit_code == 0
    assert kept() == {"third"}
    assert "nothing to remove" in CliRunner().invoke(main, ["gc"]).output


def test_gc_waits_for_nobody_and_leaves_a_shared_cache_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as living:
        rwlock(living.pid, "sleep 60")
        with pytest.raises(UserError, match=rf"process {living.pid} works here"):
            unused(CACHE, [], [], everything=False)
        living.kill()
    with pytest.raises(UserError, match=r"is outside of this project, .*--project DIR"):
        unused(Path("../cache"), [], [], everything=False)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "data/x"), r"^data/x: no room left on its disk \(.* free\)"),
        (RuntimeError("Error: No space left on device (os error 28)"), "^no room left, though .*stdout, TMPDIR"),
        (PermissionError(errno.EACCES, "Permission denied", "data/x"), "^data/x: Permission denied; let this user"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "^/x: Read-only file system"),
        (OSError(errno.EMFILE, "Too many open files"), "^too many files are open; `ulimit -n"),
    ],
)
def test_what_the_machine_refuses_is_a_line(error: Exception, line: str) -> None:
    found = refused(error)
    assert found is not None
    assert re.search(line, found.message)
    assert refused(ValueError("a bug")) is None


def test_a_linked_data_folder_is_refused_by_name() -> None:
    assert linked_data() is None
    shutil.rmtree("data")
    Path("elsewhere").mkdir()
    Path("data").symlink_to("elsewhere")
    assert "data: a link to" in str(linked_data())
    with pytest.raises(UserError, match="let the cache lie on the other disk"):
        check_files()


def test_what_dvc_cannot_do_without_is_a_line_before_it_starts() -> None:
    with pytest.raises(UserError, match=r"^no git repository; run `git init`"):
        check_files()
    Path(".git").mkdir()
    shutil.rmtree(".dvc")
    with pytest.raises(UserError, match=r"^no \.dvc folder; run `dvc init`"):
        check_files()


def test_with_nothing_to_do_no_dvc_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(psutil, "Popen", None)
    Path(".git").mkdir()
    Path("rounds.yaml").write_text("rounds: {r1: {from: base}}\n")
    Path("params.yaml").write_text("seed: 0\n")
    asked: list[Sequence[str]] = []
    assert repro(["update@r1"], lambda words: asked.append(words) or []) == 0
    assert asked == [["update@r1"]]
    assert capsys.readouterr().out == "every stage is as dvc.lock has it: nothing to do\n"
