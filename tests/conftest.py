"""Fixtures that several test files share."""

import os
import shutil
from pathlib import Path

import mini
import pytest
from filelock import FileLock

# No test needs a network, no library's progress bar is part of what a stage says, and so small models have no work for
# two threads. Set before they are imported.
os.environ.update(mini.QUIET)


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
