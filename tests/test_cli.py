"""The gift command: rounds keep comments and branches; inspect shows what the tables hold."""

from pathlib import Path

from click.testing import CliRunner
from ruamel.yaml import YAML

from gift.cli import main
from gift.report.history import read_history
from gift.report.inspect import clean
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
