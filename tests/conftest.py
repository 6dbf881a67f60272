"""Fixtures that several test files share."""

import shutil
from pathlib import Path

import mini
import pytest


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
