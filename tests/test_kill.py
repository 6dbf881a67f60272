"""A stage that is killed goes on where it was, and ends with the same bytes as one that nobody disturbed.

Run as a script, in a project: each stage named is started, stopped by itself at one exact moment and killed with its
group; then it runs again to its end. What each run finished is noted in units.json.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mini
import pytest

NOTES = Path("units.json")
UNIT = ("part-", "checkpoint.safetensors")
INTERRUPTED = (
    "base",
    "generate_eval@r1",
    "generate@r1",
    "score@r1",
    "reference@r1",
    "update@r1",
    "evaluate@r1",
)


def watch(stop: str | None) -> None:
    """Note every finished unit (a part, a checkpoint); at `stop` this process stops until it is killed.

    'second unit': one unit is finished, the next is written but not yet renamed. 'publishing': of several outputs the
    first is in its place.
    """
    replace, rename = os.replace, os.rename
    published: list[Path] = []

    def noting_replace(source: Path, target: Path) -> None:
        if not Path(target).name.startswith(UNIT):
            replace(source, target)
            return
        notes = json.loads(NOTES.read_text())
        if stop == "second unit" and notes[-1]["units"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        replace(source, target)
        notes[-1]["units"].append([str(target), Path(target).stat().st_ino, Path(target).stat().st_mtime_ns])
        NOTES.write_text(json.dumps(notes))

    def noting_rename(source: Path, target: Path) -> None:
        if stop == "publishing" and published:
            os.kill(os.getpid(), signal.SIGSTOP)
        rename(source, target)
        published.append(target)

    os.replace, os.rename = noting_replace, noting_rename


def begin(address: str, stop: str | None) -> int:
    notes = [*json.loads(NOTES.read_text()), {"address": address, "stop": stop, "units": []}]
    NOTES.write_text(json.dumps(notes))
    return mini.fork_stage(address, lambda: watch(stop))


def kill_at(address: str, stop: str) -> None:
    """Run a stage up to `stop`, kill its group, and note what lies in its work folder and in its outputs."""
    pid = begin(address, stop)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        sys.exit(f"{address}: ended with {status} before the moment '{stop}' came")
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    notes = json.loads(NOTES.read_text())
    notes[-1]["work"] = sorted(path.name for path in Path(f"data/.work/{address}").rglob("*"))
    notes[-1]["published"] = sum(path.exists() for path in mini.outputs(Path(), address))
    NOTES.write_text(json.dumps(notes))


def main(addresses: list[str]) -> None:
    mini.share_imports()
    NOTES.write_text("[]")
    for address in addresses:
        if address in INTERRUPTED:
            kill_at(address, "second unit")
        if address == "update@r1":
            kill_at(address, "publishing")
            mini.remove_outputs(Path(), address)
        with edited(Path("gift/training/round.py")) if address == "generate@r1" else contextlib.nullcontext():
            mini.finish(begin(address, None), address)


@contextlib.contextmanager
def edited(path: Path) -> Iterator[None]:
    """Code that the killed stage does not run: it goes on all the same."""
    text = path.read_text()
    path.write_text(f"{text}\nMORE = 1\n")
    yield
    path.write_text(text)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project like `world`, but nearly every stage of it was killed once (the update twice)."""
    folder = mini.make_project(tmp_path_factory.mktemp("disturbed"))
    mini.run_stages(folder, script=__file__)
    return folder


def runs(folder: Path, address: str) -> list[dict]:
    return [note for note in json.loads((folder / NOTES).read_text()) if note["address"] == address]


@pytest.mark.parametrize("address", INTERRUPTED)
def test_the_kill_came_in_the_middle(disturbed: Path, address: str) -> None:
    first = runs(disturbed, address)[0]
    assert len(first["units"]) == 1
    finished = Path(first["units"][0][0]).name
    half_done = {name for name in first["work"] if name.endswith((".tmp", ".partial"))}
    assert finished in first["work"]
    assert len(half_done) == 1
    assert first["published"] == 0, "something stood in an output before all was done"


@pytest.mark.parametrize("address", INTERRUPTED)
def test_what_was_finished_is_not_done_again(disturbed: Path, address: str) -> None:
    units = [unit for note in runs(disturbed, address) for unit, _, _ in note["units"]]
    if address in ("score@r1", "evaluate@r1"):  # their tables are cut from the one whose values were called for
        units = [unit for unit in units if "/everything/" in unit]
    if address == "base":
        assert len(units) == 2  # checkpoints after 100 and 200 of 210 steps
    elif address == "update@r1":
        metrics = json.loads((disturbed / "data/rounds/r1/metrics/update.json").read_text())
        assert len(units) == metrics["num_steps"] - 1  # a checkpoint after every step but the last, over three runs
    else:
        assert units == [f"data/.work/{address}/{table_of(address)}/part-{index:05d}.parquet" for index in range(4)]


def table_of(address: str) -> str:
    tables = {"generate": "rollouts", "generate_eval": "rollouts", "score": "everything", "evaluate": "everything"}
    return tables.get(address.split("@")[0], "reference")


@pytest.mark.parametrize(("address", "table"), [("generate@r1", "rollouts"), ("reference@r1", "reference")])
def test_a_finished_part_is_published_as_it_was(disturbed: Path, address: str, table: str) -> None:
    ((_, inode, time_ns),) = runs(disturbed, address)[0]["units"]
    part = (disturbed / "data/rounds/r1" / table / "part-00000.parquet").stat()
    assert (part.st_ino, part.st_mtime_ns) == (inode, time_ns)


def test_a_kill_while_publishing_leaves_only_whole_outputs(disturbed: Path) -> None:
    assert runs(disturbed, "update@r1")[1]["published"] == 1


def test_everything_published_is_as_if_nothing_had_happened(disturbed: Path, world: Path) -> None:
    killed, whole = mini.made(disturbed / "data"), mini.made(world / "data")
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []


def test_nothing_is_left_behind(disturbed: Path) -> None:
    assert list((disturbed / "data/.work").iterdir()) == []
    for _ in range(100):  # reward workers see that their pool is gone, and end
        left = [path.parent.name for path in Path("/proc").glob("[0-9]*/cwd") if _is_in(path, disturbed)]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"processes {left} live on in {disturbed}")


def _is_in(cwd: Path, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return cwd.readlink() == folder
    return False


def test_unfinished_work_of_other_settings_is_not_used(world: Path, tmp_path: Path) -> None:
    """The parts of one temperature must never end up in the rollouts of another."""
    folder = Path(shutil.copytree(world, tmp_path / "project"))
    mini.remove_outputs(folder, "generate@r1")
    work = folder / "data/.work/generate@r1"
    shutil.copytree(world / "data/rounds/r1/rollouts", work / "rollouts")
    (work / "fingerprint").write_text("of other settings")
    mini.write_params(folder, {"generate": {"temperature": 0.5}})
    mini.run_stages(folder, ["generate@r1"])
    before, after = (mini.content(each / "data/rounds/r1/rollouts") for each in (world, folder))
    assert [name for name in before if before[name] == after[name]] == []


if __name__ == "__main__":
    main(sys.argv[1:])
