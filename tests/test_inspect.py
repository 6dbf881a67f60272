"""`gift inspect`: what it shows is what the tables hold, in the order asked for; and no text moves the terminal."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from gift.cli import inspect, main
from gift.evaluation.paired import paired
from gift.report.inspect import MAX_TEXT, clean
from gift.report.rows import BY, Places, rights_of
from gift.tables.parquet import read_file, write_file

WIDTH = {"COLUMNS": "200", "NO_COLOR": "1"}


def run(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(main, ["inspect", str(folder), *words], env=WIDTH)
    assert done.exit_code == 0, done.output
    return done.output


def refused(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(main, ["inspect", str(folder), *words], env=WIDTH)
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    return done.output


def table(folder: Path, rollouts: str = "rollouts", scores: str = "scores") -> pd.DataFrame:
    both = [pd.read_parquet(folder / name) for name in (rollouts, scores)]
    found = both[0].merge(both[1], on=["prompt_id", "sample"])
    found["length"] = found["completion_ids"].map(len)
    return found


@pytest.fixture
def r1(world: Path) -> Path:
    return world / "data/rounds/r1"


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("by", BY)
def test_prompts_stand_in_the_order_asked_for(r1: Path, by: str, ascending: bool) -> None:
    groups = table(r1).groupby("prompt_id")
    wanted = {
        "reward": groups["reward"].mean(),
        "spread": groups["reward"].std(ddof=0),
        "length": groups["length"].mean(),
    }[by]
    said = run(r1, "--by", by, "--num", "100", *(["--ascending"] if ascending else []))
    shown = re.findall(r"^(\w{16}), ", said, re.MULTILINE)
    assert sorted(shown) == sorted(wanted.index)
    values = [wanted[prompt_id] for prompt_id in shown]
    assert values == pytest.approx(sorted(values, reverse=not ascending))


@pytest.mark.parametrize("only", ["best", "worst", "failed", "truncated"])
def test_only_some_completions(copied: Path, only: str) -> None:
    r1 = copied / "data/rounds/r1"
    path = r1 / "scores/part-00000.parquet"
    scores, metadata = read_file(path)
    values = scores["reward"].to_pylist()
    write_file(path, scores.set_column(2, scores.schema.field("reward"), [[None, *values[1:]]]), metadata)
    rows = table(r1)
    wanted = {
        "best": rows["prompt_id"].nunique(),
        "worst": rows["prompt_id"].nunique(),
        "failed": 1,
        "truncated": int((rows["finish_reason"] == "length").sum()),
    }[only]
    said = run(r1, "--only", only, "--num", "1000")
    assert len(re.findall(r"^ *\[\d+\] ", said, re.MULTILINE)) == wanted
    assert f"{wanted:,} of {wanted:,} completions" in said
    if only == "failed":
        assert "no reward" in said
        assert "1 without a reward" in said


def test_a_text_is_searched_in_completions_and_prompts(r1: Path) -> None:
    rows = table(r1)
    word = rows["completion"].iloc[3][:3]
    prompts = pd.read_parquet(r1.parents[1] / "prompts/train.parquet").set_index("prompt_id")["prompt"]
    has = rows["completion"].str.contains(word, case=False, regex=False) | rows["prompt_id"].map(prompts).str.contains(
        word, case=False, regex=False
    )
    assert f"{has.sum():,} of {has.sum():,} completions" in run(r1, "--search", word, "--num", "1000")
    assert "none of the completions is such a one" in run(r1, "--search", "no such words")


def test_held_out_answers_are_right_as_often_as_evaluate_says(r1: Path) -> None:
    numbers = json.loads((r1 / "metrics/evaluate.json").read_text())
    said = {only: run(r1, "--answers", "--only", only, "--num", "1000") for only in ("right", "wrong")}
    greedy = {only: len(re.findall(rf"^ *\[0\] {only}, ", text, re.MULTILINE)) for only, text in said.items()}
    assert sum(greedy.values()) == numbers["eval/num_prompts"]
    assert greedy["right"] / numbers["eval/num_prompts"] == pytest.approx(numbers["eval/accuracy_greedy"])


def test_two_rounds_stand_side_by_side(r1: Path) -> None:
    base = r1.parent / "base"
    rights = [rights_of(Places.of(folder, answers=True).scores) for folder in (base, r1)]
    found = paired(*rights, greedy=True)
    said = run(r1, "--answers", "--against", str(base), "--num", "1000", "--only", "gained")
    assert f"r1 less base, greedy answers: {found.mean:+.3f} (95 % interval" in said
    assert f"{len(found.gained)} became right, {len(found.lost)} wrong" in said
    gained = {key for key, right in rights[1].items() if (rights[0].get(key), right) == (0, 1)}
    assert (f"{len(gained):,} of {len(gained):,} answers" if gained else "none of the answers is such a one") in said
    assert len(re.findall(r"\] wrong, .*\] right, ", said)) == len(gained)
    others = run(r1, "--answers", "--against", str(base), "--num", "1000", "--only", "lost")
    assert len(re.findall(r"\] right, .*\] wrong, ", others)) == sum(
        (rights[0].get(key), right) == (1, 0) for key, right in rights[1].items()
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--only", "right"], "does not say what is right; add --answers"),
        (["--answers", "--only", "lost"], "--only lost: since which round? Add --against ROUND"),
        (["--prompt-id", "x"], "prompt_id=x: not among the "),
        (["--against", "data/rounds/none"], "data/rounds/none/scores: no such table"),
    ],
)
def test_what_cannot_be_shown_is_one_line(r1: Path, words: list[str], line: str) -> None:
    assert line in refused(r1, *words)
    assert "is the round itself" in refused(r1, "--against", str(r1))


HOSTILE = "<script>\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] \u202egnirts\u200b\r\n" + "ab " * 100_000


def test_no_text_moves_the_terminal(copied: Path) -> None:
    r1 = copied / "data/rounds/r1"
    path = r1 / "rollouts/part-00000.parquet"
    rollouts, metadata = read_file(path)
    place = rollouts.schema.get_field_index("completion")
    texts: list[Any] = [HOSTILE] * rollouts.num_rows
    write_file(path, rollouts.set_column(place, rollouts.schema.field(place), [texts]), metadata)
    said = run(r1)
    assert not set(said) & set("\x1b\x07\u202e\u200b\r")
    assert "<script>\\u001b[31mred\\u001b]0;title\\u0007 [bold]x[/bold] \\u202egnirts\\u200b" in said
    assert f"{len(HOSTILE) - MAX_TEXT:,} characters more; --whole shows them" in " ".join(said.split())
    assert clean(HOSTILE, None).count("ab ") == 100_000


def test_every_word_of_the_command_is_known_to_the_query(r1: Path) -> None:
    choices = {param.name: list(param.type.choices) for param in inspect.params if param.name in ("by", "only")}
    assert choices["by"] == list(BY)
    for only in choices["only"]:
        said = run(r1, "--answers", "--against", str(r1.parent / "base"), "--only", only)
        assert " answers, " in said.splitlines()[-1] or said.endswith("none of the answers is such a one\n")


def test_a_round_that_there_is_not_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    for words, line in {
        ("r9",): "r9: no such round in rounds.yaml; known: base, r1",
        ("base",): "base: nothing was sampled for training on the way to it; --answers shows its held-out answers",
    }.items():
        done = CliRunner().invoke(main, ["inspect", *words], env=WIDTH)
        assert done.exit_code == 1
        assert line in done.output
    assert CliRunner().invoke(main, ["inspect", "base", "--answers"], env=WIDTH).exit_code == 0
