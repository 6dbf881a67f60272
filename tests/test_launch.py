"""launch.yaml: the same round under DeepSpeed's launcher on two ranks, and one line for what cannot be started."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mini
import pytest
from safetensors.torch import load_file


def launch(folder: Path, settings: dict[str, Any], **env: str) -> subprocess.CompletedProcess[str]:
    """Run update@r1 as launch.yaml says."""
    (folder / "launch.yaml").write_text(json.dumps({"update": settings}), encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, *mini.command(folder, "update@r1")]
    environment = {**mini.environment(), "PATH": path, **env}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_two_ranks_under_the_launcher_make_the_same_round(world: Path, copied: Path) -> None:
    mini.remove_outputs(copied, "update@r1")
    done = launch(copied, {"launcher": "deepspeed", "num_processes": 2, "zero_stage": 3})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("update@r1: num steps"), done.stdout
    alone, both = (folder / "data" / "rounds" / "r1" for folder in (world, copied))
    texts = [(each / "metrics" / "steps.csv").read_text(encoding="utf-8") for each in (alone, both)]
    steps = [list(csv.DictReader(text.splitlines())) for text in texts]
    assert len(steps[0]) == len(steps[1]) >= 3
    for one, two in zip(*steps, strict=True):
        for name in ("loss", "grad_norm", "kl", "num_tokens"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-3, abs=1e-6), name
    weights = [load_file(each / "policy" / "model.safetensors") for each in (alone, both)]
    assert weights[0].keys() == weights[1].keys()
    moved = load_file(world / "data" / "rounds" / "base" / "policy" / "model.safetensors")
    distance = max(float((weights[0][name] - moved[name]).abs().max()) for name in moved)
    gap = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in moved)
    assert gap < 0.02 * distance  # Adam turns rounding into full steps where a gradient is 0; the rest is the same


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "one process means one": ({"num_processes": 2}, "update.num_processes: 2: in_process runs one"),
    "no allocation": ({"launcher": "srun"}, "update.launcher: srun: no SLURM allocation"),
    "no such program": ({"launcher": "deepspeed"}, "`deepspeed` is not on this machine's PATH"),
    "misspelt": ({"zero_stag": 2}, "update.zero_stag: unknown key; did you mean 'zero_stage'?"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_started_is_one_line(copied: Path, name: str) -> None:
    settings, message = CASES[name]
    before = mini.content(copied / "data")
    done = launch(copied, settings, PATH="/nowhere")
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("deepspeed ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: launch.yaml: ")
    assert message in errors[0]
    assert mini.content(copied / "data") == before
