"""A few kills of the benchmark that makes 200: each run is killed at another moment, and the next one mends it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.kills import main


@pytest.mark.slow
def test_one_run_mends_what_a_kill_left(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    words = ["--trials", "6", "--seed", "7", "--stage", "update@r1", "--stage", "score@r1", "--out", str(out)]
    result = CliRunner().invoke(main, words)
    trials = json.loads(out.read_text())["trials"]
    assert [each["findings"] for each in trials] == [[]] * 6, trials
    assert len({(each["target"], each["aim"]) for each in trials}) >= 3
    assert result.exit_code == 0
