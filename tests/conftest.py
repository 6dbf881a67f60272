"""Fixtures that several test files share."""

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import mini
import pytest
from filelock import FileLock

# No test needs a network, no library's progress bar is part of what a stage says, and so small models have no work for
# two threads. Set before they are imported.
os.environ.update(mini.QUIET)

# The files that take longest: begun first, so that no worker still has one of them when the others are done.
LONGEST = (
    "test_reruns.py",
    "test_launch.py",
    "test_trainer.py",
    "test_deepspeed.py",
    "test_doctor.py",
    "test_kill.py",
    "test_lora.py",
    "test_vllm.py",
    "test_score.py",
    "test_reward_laws.py",
    "test_bad_input.py",
    "test_update_ranks.py",
    "test_given.py",
    "test_where.py",
    "test_engine.py",
    "test_same_bytes.py",
    "test_workers.py",
    "test_checkpointing.py",
    "test_worker_stages.py",
    "test_judge_vllm.py",
    "test_reward_calls.py",
    "test_report.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def no_garbage() -> None:
    """DeepSpeed looks for garbage whenever ZeRO 3 starts: not again in what was there before this file's tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def own_environment() -> Iterator[None]:
    """A group of processes leaves LOCAL_RANK and more behind; the next file starts programs that would believe it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"})


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project after one real round, from the prompts to the report; to be read, never changed.

    The first worker of pytest-xdist that asks for it makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "world"
    with FileLock(f"{folder}.lock"):
        if not (folder / "data/report").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            mini.run_stages(mini.make_project(folder))
    return folder


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    """A copy of that project, to be changed."""
    return Path(shutil.copytree(world, tmp_path / "project"))


@pytest.fixture
def noted(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Such a copy as the working folder, with the dvc.lock that DVC would have left."""
    from gift.project import door
    from gift.project.graph import read_graph

    monkeypatch.chdir(copied)
    for checked in read_graph()["doctor"].outs:  # a stage that the miniature leaves out
        Path(checked).write_text("ok\n")
    stages = {
        address: {"cmd": stage.cmd, "outs": [{"path": out, "md5": door.md5_of(Path(out))} for out in stage.outs]}
        for address, stage in read_graph().items()
        if all(Path(out).exists() for out in stage.outs)
    }
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}), encoding="utf-8")
    yield copied
    door._seen.clear()
