"""A second look at rewards: values that change from call to call, one value for everybody, numbers beyond all scale."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_score import refusal, run_stage, score_of, scored, write_project

from gift.scoring.cache import RewardCache, row_keys
from gift.scoring.loading import Loaded
from gift.scoring.looks import calls_again, is_change
from gift.scoring.settings import Reward
from gift.scoring.worker import MOST, Outcome
from gift.tables.parquet import part_paths

REWARDS = """
import itertools, os, random, time
from itertools import count

CALLS = count()

def note(prompt_id):
    with open("calls.txt", "a") as file:
        file.write(f"{prompt_id}\\n")

def dice(prompts, completions, completion_ids, **columns):
    return [random.random() for _ in completions]

def clock(prompts, completions, completion_ids, **columns):
    return [time.perf_counter() % 1 for _ in completions]

def counter(prompts, completions, completion_ids, **columns):
    return [float(next(CALLS)) for _ in completions]

def shy(prompts, completions, completion_ids, **columns):
    return [None if next(CALLS) % 5 else 1.0 for _ in completions]

def noisy(prompts, completions, completion_ids, **columns):
    return [1.0 + random.random() / 1e6 for _ in completions]

def once(prompts, completions, completion_ids, **columns):
    if next(CALLS) in (4, 5, 6, 7):
        raise ValueError("only once")
    return [1.0]

def steady(prompts, completions, completion_ids, prompt_id, mode, **columns):
    note(prompt_id[0])
    return [float(mode[0]) for _ in completions]

def slow(prompts, completions, completion_ids, prompt_id, **columns):
    note(prompt_id[0])
    time.sleep(0.15)
    return [1.0 for _ in completions]

def given(prompts, completions, completion_ids, mode, **columns):
    return [eval(each) for each in mode]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("rewards").mkdir()
    Path("rewards/mine.py").write_text(REWARDS)
    return tmp_path


def own(name: str, **more: Any) -> dict[str, Any]:
    return {"function": f"rewards/mine.py:{name}", **more}


@pytest.mark.parametrize("name", ["dice", "clock", "counter", "shy"])
@pytest.mark.parametrize("batch", [1, 3, "group"])
def test_a_reward_that_says_something_else_of_the_same_arguments_is_refused(name: str, batch: Any) -> None:
    message = refusal(["fine"] * 6, score_of(mine=own(name, batch=batch)))
    assert message.startswith(f"score.rewards.mine (rewards/mine.py:{name}): prompt_id=p00")
    assert " when it was called again with the same arguments; " in message
    assert message.endswith("clocks and counters out of it, or seed them with the arguments")
    assert "\n" not in message
    assert not Path("scores").exists()


def test_such_values_are_not_kept_so_the_next_run_ends_the_same_way() -> None:
    write_project(score_of(mine=own("dice"), other=own("steady")), ["1", "2", "3"])
    for _ in range(2):
        result = run_stage()
        assert result.exit_code == 1
        assert result.output.startswith("error: score.rewards.mine (rewards/mine.py:dice): prompt_id=p00")
        assert "when it was called again with the same arguments" in result.output
    assert not Path("data/rounds").exists()


@pytest.mark.parametrize("name", ["noisy", "once"])
def test_rounding_and_a_second_call_that_fails_say_nothing(name: str) -> None:
    rows = scored(["fine"] * 6, score_of(mine=own(name)), workers=1)
    assert [round(row["mine"], 4) for row in rows] == [1.0] * 12


def test_a_good_reward_is_called_for_eight_rows_more_once_and_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes, score = [str(number) for number in range(20)], score_of(mine=own("steady"))
    scored(modes, score, folder="one")
    twice = Path("calls.txt").read_text().split()
    assert len(twice) == 40 + 4  # a part has four rows
    Path("calls.txt").unlink()
    monkeypatch.setattr("gift.scoring.looks.NUM_ROWS", 0)
    scored(modes, score, folder="two")
    assert len(Path("calls.txt").read_text().split()) == 40
    one, two = ([path.read_bytes() for path in part_paths(Path(name))] for name in ("one", "two"))
    assert one == two


def test_a_slow_call_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gift.scoring.looks.MAX_SECONDS", 0.1)
    scored(["fine"] * 3, score_of(mine=own("slow")))
    assert len(Path("calls.txt").read_text().split()) == 6


def test_which_calls_are_made_again() -> None:
    def loaded(name: str, file: str | None = "rewards/mine.py") -> Loaded:
        return Loaded(name, file, "f", {}, [])

    outcomes = {"mine": {row: Outcome(1.0, "ok", None) for row in range(40)}}
    singles = [("mine", [row]) for row in range(40)]
    assert calls_again([loaded("mine")], singles, outcomes) == [("mine", [row]) for row in range(0, 40, 5)]
    assert calls_again([loaded("mine")], singles[:3], outcomes) == singles[:3]
    assert calls_again([loaded("mine", None)], singles, outcomes) == []
    groups = [("mine", list(range(begin, begin + 20))) for begin in (0, 20)]
    assert calls_again([loaded("mine")], groups, outcomes) == groups[:1]
    outcomes["mine"][5] = Outcome(None, "error", "no")
    assert calls_again([loaded("mine")], groups, outcomes) == groups[1:]
    assert calls_again([loaded("mine")], [("other", [0])], outcomes) == []


@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        (1.0, 1.0, False),
        (1.0, 1.0 + 1e-7, False),
        (0.0, 1e-6, False),
        (1e12, 1e12 + 1, False),
        (0.0, 1.0, True),
        (0.5, 0.51, True),
        (None, None, False),
        (None, 0.0, True),
        (0.0, None, True),
    ],
)
def test_what_counts_as_a_change(first: float | None, second: float | None, changed: bool) -> None:
    one, two = (Outcome(value, "abstain" if value is None else "ok", None) for value in (first, second))
    assert is_change(one, two) is changed
    assert not is_change(one, Outcome(None, "timeout", "no result"))


def test_one_value_for_everybody_is_said_in_one_line_a_reward() -> None:
    write_project(score_of(same=own("given"), other=own("steady", weight=0.5)), ["1", "1"])
    result = run_stage()
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "every one of" in line]
    assert [line.split(" got ")[0] for line in said] == [
        "score@r1: score.rewards.same: every one of the 4 completions",
        "score@r1: score.rewards.other: every one of the 4 completions",
    ]
    assert said[0].split(" got ")[1].startswith("1 from rewards/mine.py:given; right where")


@pytest.mark.parametrize("modes", [["1", "2"], ["1"], ["1", "None"]])
def test_of_values_that_differ_or_are_one_groups_nothing_is_said(modes: list[str]) -> None:
    write_project(score_of(mine=own("given")), modes)
    result = run_stage()
    assert result.exit_code == 0, result.output
    assert "every one of" not in result.output


@pytest.mark.parametrize("value", ["1e200", "-1e160", "1.1e15", "10**16"])
def test_a_reward_beyond_all_scale_is_its_rows_fault_in_one_line(value: str) -> None:
    write_project(score_of(max_failed_share=0.1, mine=own("given")), ["1", "1e15", value])
    result = run_stage()
    assert result.exit_code == 1
    # Either of its two completions may be the first to fail: two workers have one each, and the stage stops there.
    assert re.search(r"prompt_id=p002, sample=[01]: invalid: returned ", result.output)
    assert "must lie between -1e+15 and 1e+15" in result.output
    assert "Traceback" not in result.output


def test_numbers_of_the_largest_rewards_are_finite() -> None:
    write_project(score_of(mine=own("given")), ["1e15", "-1e15", "0"])
    assert run_stage().exit_code == 0
    numbers = json.loads(Path("metrics/score.json").read_text())
    assert numbers["rewards/mine/std"] == pytest.approx(8.944e14, rel=1e-3)


def test_a_weighted_sum_beyond_all_scale_is_refused_by_row() -> None:
    message = refusal(["1", "3"], score_of(mine=own("given", weight=5e14)))
    assert message == (
        "score.rewards: prompt_id=p001, sample=0: the weighted sum is 1.5e+15; it must lie between -1e+15 and 1e+15, "
        "as the update squares and adds rewards in float32: lower the weights"
    )
    with pytest.raises(ValueError, match="less than or equal to"):
        Reward(function="length", weight=1e16)


def test_values_beyond_all_scale_that_were_kept_before_do_not_count() -> None:
    reward = Loaded("mine", "rewards/mine.py", "given", {}, [])
    keys = row_keys([b"a" * 16, b"b" * 16], [[0], [1]])
    cache = RewardCache(Path("cache"), "score@r1", [reward], Path("rewards"))
    for value, kept in ((MOST, 2), (2 * MOST, 0)):
        cache.write("mine", 0, keys, {0: Outcome(1.0, "ok", None), 1: Outcome(value, "ok", None)})
        assert len(cache.read("mine", 0, keys)) == kept
