"""Rounds made elsewhere: in a clone that fetched one policy, and in two clones with one cache at the same time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills import make_project
from gift.project.graph import read_lock

pytestmark = pytest.mark.slow
ALONE = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTHONPATH"))}


def own(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), ALONE["PATH"]])
    return {**ALONE, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "PATH": path, "OMP_NUM_THREADS": "1"}


def run(folder: Path, *words: str) -> str:
    """A command of the project in `folder`, by its own code; it must end well."""
    done = subprocess.run(words, cwd=folder, env=own(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(
        command, cwd=folder, env=own(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


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
    assert "remote: has all outputs" in python(home, "gift.cli", "verify", "--remote")
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

    whole = tmp_path / "whole"
    run(tmp_path, "git", "clone", "-q", str(home), str(whole))
    python(whole, "dvc", "pull")
    (whole / "launch.yaml").write_text('{"score": {"workers": 1}, "repro": {"ask_from_minutes": 0}}')
    said = python(whole, "gift.cli", "repro")  # which would stop if a round had to run again
    assert "the base policy is missing, and DVC keeps no copy: it is made first" in said
    assert "nothing that is finished would run again" in said
    assert {address: each.outs for address, each in read_lock(whole / "dvc.lock").items()} == {
        address: each.outs for address, each in before.items()
    }


def test_two_clones_with_one_cache_make_their_rounds_at_the_same_time(tmp_path: Path) -> None:
    """What one has made the other takes from the cache; each makes its own round as it would alone."""
    home, one, two, cache = (tmp_path / name for name in ("home", "one", "two", "cache"))
    make_project(home, ranks=1)
    python(home, "dvc", "cache", "dir", str(cache))
    python(home, "gift.cli", "repro")
    git(home, "add", "-A")
    git(home, "commit", "-qm", "a round")
    before = read_lock(home / "dvc.lock")
    for clone in (one, two):
        run(tmp_path, "git", "clone", "-q", str(home), str(clone))
        python(clone, "dvc", "checkout")
    (one / "rounds.yaml").write_text("rounds:\n  r1: {from: base}\n  r2: {from: r1}\n")
    (two / "rounds.yaml").write_text("rounds:\n  r1: {from: base}\n  r2: {from: r1, update: {lr: 0.001}}\n")
    runs = [start(clone, "gift.cli", "repro") for clone in (one, two)]
    said = [each.communicate()[0] for each in runs]
    assert [each.returncode for each in runs] == [0, 0], said
    assert all("Running stage 'generate@r1'" not in each for each in said)
    locks = [read_lock(clone / "dvc.lock") for clone in (one, two)]
    shared = [address for address in before if not address.startswith(("code", "doctor", "report"))]
    assert all(lock[address].outs == before[address].outs for lock in locks for address in shared)
    same = [lock["generate@r2"].outs for lock in locks]
    assert same[0] == same[1], "rollouts of one policy, by one seed"
    assert locks[0]["update@r2"].outs != locks[1]["update@r2"].outs
    for clone in (one, two):
        assert "wrong" not in python(clone, "gift.cli", "verify", "r1", "r2", "--rows", "4")
    # All of it again with a cache of its own: no clone changed a byte of what the other made.
    (home / "rounds.yaml").write_text((one / "rounds.yaml").read_text())
    python(home, "dvc", "cache", "dir", "--local", str(tmp_path / "own"))
    python(home, "gift.cli", "repro")
    assert read_lock(home / "dvc.lock")["update@r2"].outs == locks[0]["update@r2"].outs
