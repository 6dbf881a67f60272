"""Rewards: hand-made answers and GSM8K's own; a gold answer that cannot be read is an error, never 0 or 1."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from gift.embedded.task import completion, problems
from gift.rewards.answers import gsm8k_answer
from gift.rewards.arithmetic import arithmetic_answer, arithmetic_format, arithmetic_near, arithmetic_steps
from gift.rewards.form import text_format
from gift.rewards.names import REWARDS
from rewards.example import brevity

GSM8K = Path(__file__).parents[1] / "../shared/data/gsm8k"


def one(function: Any, text: Any, **columns: Any) -> float:
    return float(item(function, text, **columns))


def item(function: Any, text: Any, **columns: Any) -> Any:
    settings = {name: columns.pop(name) for name in ("last_number", "pattern") if name in columns}
    lists = {name: [value] for name, value in columns.items()}
    (value,) = function(prompts=["?"], completions=[text], completion_ids=[[1]], other=["unused"], **lists, **settings)
    return value


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("#### 1,234", "1234", True),
        ("#### 1234", "1,234", True),
        ("#### $5.00", "5", True),
        ("#### 5.01", "5", False),
        ("#### -3", "-3", True),
        ("#### 3", "-3", False),
        ("#### -$3", "-3", True),
        ("#### $-3", "-3", True),
        ("#### \u22123", "-3", True),
        ("#### 3.50 dollars", "3.5", True),
        ("#### 72.", "72", True),
        ("####72", "72", True),
        ("#### **72**", "72", True),
        ("#### \\boxed{72}", "72", True),
        ("#### 50%", "50", True),
        ("#### .5", "0.5", True),
        ("#### $1,000,000.75.", "1000000.75", True),
        ("so 10 - 7 = 3\n#### 3\nThat is all 99", "3", True),
        ("#### 4\nno, wait\n#### 3", "3", True),
        ("#### 3\nno, wait\n#### 4", "3", False),
        ("#### 3 or 4", "3", False),
        ("#### 3 or 4", "4", False),
        ("#### 7,2", "72", False),
        ("#### 7,2", "2", False),
        ("#### 1,2345", "12345", False),
        ("#### 1e3", "1", False),
        ("#### 12kg5", "12", False),
        ("#### 10-3", "-3", False),
        ("#### ", "0", False),
        ("72", "72", False),
        ("", "0", False),
        ("#### 72", "She has 12 * 6 = <<12*6=72>>72\n#### 72", True),
        ("#### 12", "She has 12 * 6 = <<12*6=72>>72\n#### 72", False),
        ("#### \uff17\uff12", "72", True),
        ("#### 72", "\u0667\u0662", True),
        ("####\u200b\n7\u20602", "72", True),
        ("#### \uff11\uff0c\uff12\uff13\uff14", "1234", True),
        ("#### 1\uff0c234", "1234", False),
        ("#### 7\u00b2", "72", False),
        ("#### 72", 72, True),
        ("#### 72", 72.0, True),
        ("#### 18 million", "18", False),
        ("#### $1.5 million dollars", "1,500,000", True),
        ("#### 2 dozen", "24", True),
        ("#### 3 hundredths", "3", True),
        ("#### 24", "2 dozen", True),
        ("#### not 18", "18", True),
    ],
)
def test_gsm8k_compares_the_marked_number(said: str, gold: Any, right: bool) -> None:
    assert one(gsm8k_answer, said, answer=gold) == float(right)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("It is 70 + 2 = 72.", True),
        ("72 of 100", False),
        ("no number", False),
        ("#### 72\nof 100", True),
        ("9\n####", False),
    ],
)
def test_gsm8k_last_number_is_a_setting(said: str, right: bool) -> None:
    assert one(gsm8k_answer, said, answer="72", last_number=True) == float(right)
    assert one(gsm8k_answer, said, answer="72") == float(right and "####" in said)


def test_gsm8k_reads_the_gold_column_that_its_setting_names() -> None:
    cells = {"answer": ["71", "72"], "solution": ["72", "8 * 9 = 72\n#### 72"]}
    said = ["#### 72"] * 2
    assert gsm8k_answer(["?"] * 2, said, [[1]] * 2, column="solution", **cells) == [1.0, 1.0]
    assert gsm8k_answer(["?"] * 2, said, [[1]] * 2, **cells) == [0.0, 1.0]
    with pytest.raises(ValueError, match=r"settings.column: the prompts table has no column 'gold'; its columns: ans"):
        gsm8k_answer([], [], [], column="gold", **cells)


@pytest.mark.parametrize("gold", ["", "none", None, "#### ", "1 or 2", "seventy", "#### x", "7,2", float("nan")])
def test_gsm8k_refuses_a_gold_that_holds_no_number(gold: Any) -> None:
    for said in ("#### 72", "nothing", str(gold)):
        value = item(gsm8k_answer, said, answer=gold)
        assert isinstance(value, ValueError)
        assert "does not hold one number" in str(value)


@pytest.mark.skipif(not (GSM8K / "test.jsonl").exists(), reason=f"GSM8K is not at {GSM8K}")
def test_gsm8k_on_the_real_file() -> None:
    lines = (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    others = [*golds[1:], golds[0]]
    ids = [[0]] * len(golds)
    assert gsm8k_answer(golds, golds, ids, answer=golds) == [1.0] * 1319
    plain = [gold.rpartition("#### ")[2].replace(",", "") for gold in golds]
    same = [float(mine == other) for mine, other in zip(plain, [*plain[1:], plain[0]], strict=True)]
    assert gsm8k_answer(golds, others, ids, answer=golds) == same
    assert 0 < sum(same) < 100
    no_marker = [
        gold.rpartition("####")[0] + f"The answer is ${mine}." for gold, mine in zip(golds, plain, strict=True)
    ]
    assert gsm8k_answer(golds, no_marker, ids, answer=golds) == [0.0] * 1319
    assert gsm8k_answer(golds, no_marker, ids, answer=golds, last_number=True) == [1.0] * 1319


def test_arithmetic_rewards_on_its_own_styles() -> None:
    rng = random.Random(0)
    for problem in problems(200, 0, 4, "train"):
        worked = completion(problem, "worked", rng)
        assert one(arithmetic_answer, worked, **problem_columns(problem)) == 1
        assert one(arithmetic_format, worked, **problem_columns(problem)) == 1
        wrong = re.sub(r"#.*", f"#{int(problem['answer']) + 1}", worked)
        assert one(arithmetic_answer, wrong, **problem_columns(problem)) == 0
        assert one(arithmetic_format, wrong, **problem_columns(problem)) == 1
        guess = completion(problem, "guess", rng)
        assert one(arithmetic_answer, guess, **problem_columns(problem)) == (guess == f"#{problem['answer']}")
        assert one(arithmetic_format, guess, **problem_columns(problem)) == 0
        malformed = completion(problem, "malformed", rng)
        assert one(arithmetic_answer, malformed, **problem_columns(problem)) == 0
        assert one(arithmetic_format, malformed, **problem_columns(problem)) == 0


def problem_columns(problem: dict[str, str]) -> dict[str, str]:
    return {"answer": problem["answer"]}


def test_arithmetic_format_wants_nothing_besides_steps_and_one_answer() -> None:
    good = "7+5=12 12-3=9 #9"
    assert one(arithmetic_format, good) == 1
    for bad in (good + " #9", good + " ", "x" + good, good[:-3], good.replace(" ", ""), "7+5= #12", "#9 7+5=12", ""):
        assert one(arithmetic_format, bad) == 0, bad


@pytest.mark.parametrize("function", [arithmetic_answer, arithmetic_near])
def test_an_arithmetic_gold_that_is_no_integer_is_refused(function: Any) -> None:
    for gold in ("x", "", None):
        assert isinstance(item(function, "#x", answer=gold), (ValueError, TypeError))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7+5=12 12-3=9 9+8=17 #17", 1),
        ("#17", 1),  # the number counts, however it was found
        ("#14", 0.7),
        ("#20", 0.7),
        ("#8", 0.1),
        ("#7", 0),
        ("#27", 0),
        ("#-17", 0),
        ("17", 0),
        ("#17 ", 0),
        ("#" + "9" * 5000, 0),
    ],
)
def test_a_near_answer_gets_a_part(text: str, value: float) -> None:
    assert one(arithmetic_near, text, answer="17") == pytest.approx(value)


def test_how_far_is_near_is_a_setting() -> None:
    def near(**settings: Any) -> list[Any]:
        return arithmetic_near([""] * 3, ["#17", "#16", "#15"], [[]] * 3, answer=["17"] * 3, **settings)

    assert near(within=2) == [1.0, 0.5, 0.0]
    assert near(within=1) == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"settings.within: 0: must be greater than or equal to 1"):
        near(within=0)


@pytest.mark.parametrize(
    ("text", "right", "of"),
    [
        ("7+5=12 12-3=9 9+8=17 #17", 3, 3),
        ("7+5=12 12-3=9 9+8=17 #4", 3, 3),  # the answer is another reward's
        ("7+5=12 12-3=8 8+8=16 #16", 2, 3),  # the last one goes on well from a wrong number
        ("7+5=12 12-3=8 9+8=17 #17", 1, 3),  # the last one goes on from a number that is not there
        ("7+5=12 12+3=15 15+8=23 #23", 2, 3),  # another term than the prompt's
        ("7+5=12 9+8=17 #17", 1, 3),
        ("7+5=12 12-3=9 9+8=17 17+0=17 #17", 3, 4),  # one too many
        ("7+5=12 #12", 1, 3),
        ("7+5=12 x 12-3=9 #9", 1, 3),
        ("7+5=12 12-3=9 9+8=17", 2, 3),  # no answer: the last one may not be finished
        ("7 + 5 = 12 #12", 0, 5),
        ("#17", 0, 3),
        ("", 0, 3),
        ("7+5=12 12-3=" + "9" * 5000 + " #9", 1, 3),
        ("7+5=12 " + "0+0=0 " * 99 + "#17", 1, 100),
    ],
)
def test_the_share_of_right_steps(text: str, right: int, of: int) -> None:
    asked: list[Any] = ["7+5-3+8=", [{"role": "user", "content": "7+5-3+8="}]]
    said: list[Any] = [text, [{"role": "assistant", "content": text}]]
    assert arithmetic_steps(asked, said, [[], []]) == [pytest.approx(right / of)] * 2


def test_steps_of_a_prompt_without_numbers_are_none() -> None:
    assert arithmetic_steps(["?", "", "7="], ["7+5=12 #12"] * 3, [[]] * 3) == [0.0] * 3


def test_the_graded_rewards_of_worked_answers_with_slips() -> None:
    """Every slip costs its step alone, and the answer is off by the sum of the slips."""
    rng = random.Random(0)
    for problem in problems(200, 0, 4, "train"):
        worked = completion(problem, "worked", rng, slips=0.5)
        slipped = [eval(step.replace("=", "-")) for step in worked.split(" ")[:-1]]
        assert arithmetic_format([problem["prompt"]], [worked], [[]]) == [1.0]
        assert arithmetic_steps([problem["prompt"]], [worked], [[]]) == [pytest.approx(slipped.count(0) / 3)]
        assert one(arithmetic_near, worked, answer=problem["answer"]) == pytest.approx(1 - abs(sum(slipped)) / 10)


def test_text_format_matches_the_whole_completion() -> None:
    pattern = r"<think>.*</think>\d+"
    assert one(text_format, "<think>a\nb</think>12", pattern=pattern) == 1
    assert one(text_format, "<think>a\nb</think>12 ", pattern=pattern) == 0
    assert one(text_format, "so <think>a</think>12", pattern=pattern) == 0


def test_rewards_read_both_of_trls_forms() -> None:
    def chat(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    assert one(gsm8k_answer, chat("#### 7"), answer="7") == 1
    assert one(gsm8k_answer, chat("#### 8"), answer="7") == 0
    assert one(arithmetic_answer, chat("#7"), answer="7") == 1
    assert one(arithmetic_format, chat("3+4=7 #7")) == 1
    assert one(text_format, chat("b"), pattern="b") == 1


def test_every_name_is_the_name_of_its_function() -> None:
    assert {name: function.__name__ for name, function in REWARDS.items()} == {name: name for name in REWARDS}


def test_the_example_reward() -> None:
    prompts, ids = [""] * 4, [[0] * 4, [0] * 6, [0] * 9, [0]]
    assert brevity(prompts, ["a", "b", "c", ""], ids, max_tokens=4, answer=["1"] * 4) == [1.0, 0.5, 0.0, None]
