"""A round made elsewhere: a clone that fetched one policy makes the next round, and nothing that was finished."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills import make_project
from gift.project.graph import read_lock

pytestmark = pytest.mark.slow
ALONE = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTHONPATH"))}


def run(folder: Path, *words: str) -> str:
    """A command of the project in `folder`, by its own code; it must end well."""
    path = os.pathsep.join([str(Path(sys.executable).parent), ALONE["PATH"]])
    env = {**ALONE, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def python(folder: Path, *words: str) -> str:
    return run(folder, sys.executable, "-m", *words)


def git(folder: Path, *words: str) -> str:
    return run(folder, "git", "-c", "user.name=x", "-c", "user.email=x@localhost", *words)


def test_a_clone_with_one_policy_makes_the_next_round(tmp_path: Path) -> None:
    home, clone = tmp_path / "home", tmp_path / "clone"
    make_project(home, ranks=1)
    python(home, "gift.cli", "repro")
    python(home, "dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    git(home, "add", "-A")
    git(home, "commit", "-qm", "a round")
    python(home, "dvc", "push")
    run(tmp_path, "git", "clone", "-q", str(home), str(clone))
    before = read_lock(home / "dvc.lock")
    python(clone, "dvc", "pull", "update@r1")
    python(clone, "gift.cli", "rounds", "2")
    said = python(clone, "gift.cli", "repro", "--pull", "update@r2")
    after = read_lock(clone / "dvc.lock")
    assert {address for address in after if address.endswith("@r2")} >= {"generate@r2", "update@r2"}
    assert {address: after[address].outs for address in before} == {
        address: each.outs for address, each in before.items()
    }
    assert "generate@r1" not in said.replace("Stage 'generate@r1' didn't change", "")
    assert (clone / "data/rounds/r2/policy/gift.json").exists()
    assert not (clone / "data/rounds/r1/rollouts").exists(), "what no stage reads was fetched"
