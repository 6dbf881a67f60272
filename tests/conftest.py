"""Fixtures that several test files share."""

import os
import shutil
from pathlib import Path

import mini
import pytest

# No test needs a network, no library's progress bar is part of what a stage says, and so small models have no work for
# two threads. Set before they are imported.
os.environ.update(mini.QUIET)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project after one real round, from the prompts to the report; to be read, never changed."""
    folder = mini.make_project(tmp_path_factory.mktemp("world"))
    mini.run_stages(folder)
    return folder


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    """A copy of that project, to be changed."""
    return Path(shutil.copytree(world, tmp_path / "project"))
