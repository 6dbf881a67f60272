"""The gift command: rounds keep comments and branches; inspect shows what the tables hold."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from gift.cli import main
from gift.report.history import read_history
from gift.report.inspect import clean
from gift.report.outcome import outcomes
from gift.tables.parquet import read_file, write_file


def test_rounds_extends_the_chain_and_keeps_comments_and_branches(tmp_path: Path) -> None:
    file = tmp_path / "rounds.yaml"
    file.write_text("# keep me\nrounds:\n  r1: {from: base}  # first\n  r1b: {from: base}\n")
    done = CliRunner().invoke(main, ["rounds", "3", "--file", str(file)])
    assert done.exit_code == 0, done.output
    text = file.read_text()
    assert "# keep me" in text
    assert "# first" in text
    assert YAML(typ="safe").load(text)["rounds"] == {
        "r1": {"from": "base"},
        "r1b": {"from": "base"},
        "r2": {"from": "r1"},
        "r3": {"from": "r2"},
    }
    assert "  r3: {from: r2}\n" in text
    CliRunner().invoke(main, ["rounds", "2", "--file", str(file)])
    assert file.read_text() == text
    missing = CliRunner().invoke(main, ["rounds", "2", "--file", str(tmp_path / "none.yaml")])
    assert missing.exit_code == 1
    assert missing.output.startswith("error: ")


def test_inspect_shows_prompts_completions_and_rewards(world: Path) -> None:
    import pandas as pd

    folder = world / "data" / "rounds" / "r1"
    rollouts = pd.read_parquet(folder / "rollouts")
    chosen = rollouts["prompt_id"].iloc[-1]
    done = CliRunner().invoke(main, ["inspect", str(folder), "--prompt-id", chosen])
    assert done.exit_code == 0, done.output
    for text in rollouts.loc[rollouts["prompt_id"] == chosen, "completion"]:
        assert clean(text, None) in done.output
    assert "reward " in done.output
    assert CliRunner().invoke(main, ["inspect", str(world / "data")]).exit_code == 1


def test_inspect_says_that_the_prompts_are_others(copied: Path) -> None:
    path = copied / "data/prompts/train.parquet"
    table, metadata = read_file(path)
    write_file(path, table.slice(table.num_rows - 1), metadata)
    result = CliRunner().invoke(main, ["inspect", str(copied / "data/rounds/r1")])
    assert result.exit_code == 1
    assert f"{path}: has no prompt_id=" in result.output
    assert "it was made again since then" in result.output


def test_report_rows_have_every_key_and_steps_their_round(world: Path) -> None:
    rounds, steps = read_history(world / "data" / "history", {"r1": ["base", "r1"]})
    assert [row["name"] for row in rounds] == ["base", "r1"]
    assert rounds[0].keys() == rounds[1].keys()
    assert rounds[0]["reward"] is None  # no rollouts trained the base policy: null, not 0
    assert rounds[1]["num_completions"] == 64
    assert {step["round"] for step in steps} == {1}
    assert steps[0]["correlation"] is None


def test_a_run_ends_with_what_came_out(noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {
        name: json.loads(Path(f"data/rounds/{name}/metrics/evaluate.json").read_text()) for name in ("base", "r1")
    }
    monkeypatch.setattr("gift.upkeep.repro.repro", lambda *_: 0)
    monkeypatch.setattr("gift.report.page.watch.report_kept_new", nullcontext)
    done = CliRunner().invoke(main, ["repro"])
    assert done.exit_code == 0, done.output
    result, look = done.output.splitlines()
    base, last = (
        f"{each['eval/accuracy_greedy']:.3g} ± {each['eval/accuracy_greedy_se']:.2g}" for each in numbers.values()
    )
    assert result.startswith(f"r1: held-out accuracy {last} (base {base}), reward ")
    assert look.startswith("look: `gift inspect r1`")
    monkeypatch.setattr("gift.upkeep.repro.repro", lambda *_: 3)
    done = CliRunner().invoke(main, ["repro"])
    assert (done.exit_code, done.output) == (3, "")


def test_each_branch_has_a_line_and_what_is_not_evaluated_none(tmp_path: Path) -> None:
    rows = {"base": 0.25, "r1": 0.5, "r2": 0.75, "r2b": 0.625}
    for name, accuracy in rows.items():
        row = {"name": name, "round": len(name), "eval/accuracy_greedy": accuracy}
        (tmp_path / f"{name}.json").write_text(json.dumps({"round": row, "steps": []}))
    lines = {"r1": ["base", "r1", "r2", "r3"], "r2b": ["r1", "r2b"], "r3b": ["r2", "r3b"]}
    assert list(outcomes(tmp_path, lines)) == [
        "r2: held-out accuracy 0.75 (base 0.25)",
        "r2b: held-out accuracy 0.625 (r1 0.5)",
    ]
