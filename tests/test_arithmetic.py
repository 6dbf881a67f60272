"""Laws of the embedded task: every worked step is true, splits never meet, and a seed gives the same problems."""

import random
import re

import pytest

from gift.embedded.task import CHARACTERS, Arithmetic, completion, problems, slip, split_of, with_solution
from gift.project.errors import UserError
from gift.project.sections import check
from gift.rewards.arithmetic import arithmetic_format, arithmetic_steps, final_answer


def is_worked(text):
    return arithmetic_format([""], [text], [[]]) == [1.0]


SUMS = [(digit, term) for digit in range(10) for term in range(-9, 10) if term]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return problems(2000, seed=0, num_operands=4, split="train")


def test_the_answer_is_the_value_of_the_prompt(rows):
    assert all(eval(row["prompt"].rstrip("=")) == int(row["answer"]) for row in rows)


def test_every_step_of_a_worked_completion_is_true_and_follows_from_the_one_before(rows):
    for row in rows:
        *steps, last = completion(row, "worked", random.Random(0)).split(" ")
        total = row["prompt"][0]
        operands = re.findall(r"[+-]\d", row["prompt"])
        for step, operand in zip(steps, operands, strict=True):
            left, right = step.split("=")
            assert left == total + operand
            assert eval(left) == int(right)
            total = right
        assert last == "#" + total == "#" + row["answer"]


def test_a_worked_completion_of_four_operands_has_20_to_60_tokens_with_its_end_token(rows):
    lengths = [len(completion(row, "worked", random.Random(0))) + 1 for row in rows]
    assert min(lengths) >= 20
    assert max(lengths) <= 60


def test_styles_differ_in_form_and_a_guess_is_right_half_of_the_time(rows):
    rng = random.Random(0)
    guesses = [completion(row, "guess", rng) for row in rows]
    assert all(re.fullmatch(r"#-?\d+", guess) for guess in guesses)
    right = [final_answer(guess) == row["answer"] for guess, row in zip(guesses, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(0.5, abs=0.04)
    for row in rows:
        assert is_worked(completion(row, "worked", rng))
        assert final_answer(completion(row, "malformed", rng)) is None
    assert not any(is_worked(guess) for guess in guesses)


@pytest.mark.parametrize(
    ("text", "answer", "worked"),
    [
        ("7+5=12 12-3=9 #9", "9", True),
        ("3-8=-5 -5+4=-1 #-1", "-1", True),
        ("7+5=13 #4", "4", True),  # wrong numbers, right form
        ("#17", "17", False),
        ("17", None, False),
        ("7+5=12", None, False),
        ("7+5=12 #12 ", None, False),  # the answer must end the text
        ("7+5=12 #12#13", "13", False),
        ("7+5=12  #12", "12", False),
        ("#", None, False),
        ("#--1", None, False),
        ("", None, False),
        ("#17\n", None, False),
    ],
)
def test_reading_a_completion(text, answer, worked):
    assert final_answer(text) == answer
    assert is_worked(text) is worked


def test_everything_is_written_in_the_vocabulary(rows):
    rng = random.Random(0)
    for row in rows[:300]:
        texts = [row["prompt"], *(completion(row, style, rng) for style in ("worked", "guess", "malformed"))]
        assert set("".join(texts)) <= set(CHARACTERS)


def test_steps_slip_by_habit_and_what_follows_goes_on_from_the_wrong_number(rows):
    rng, slipped = random.Random(0), []
    for row in rows:
        text = completion(row, "worked", rng, slips=0.4)
        assert is_worked(text)
        *steps, last = text.split(" ")
        before = row["prompt"][0]
        for step, operand in zip(steps, re.findall(r"[+-]\d", row["prompt"]), strict=True):
            left, right = step.split("=")
            assert left == before + operand
            slipped.append((before[-1] + operand, int(right) - eval(left)))
            before = right
        assert last == "#" + before
    assert sum(off != 0 for _, off in slipped) / len(slipped) == pytest.approx(0.4, abs=0.05)
    habits = {key: {off for each, off in slipped if each == key and off} for key, _ in slipped}
    assert len(habits) == 180
    assert all(len(offs) <= 1 for offs in habits.values())  # a sum has one wrong result
    assert set().union(*habits.values()) == {-3, -2, -1, 1, 2, 3}


def test_how_often_a_sum_slips_goes_from_never_to_twice_the_share():
    draws = [(number + 0.5) / 100 for number in range(100)]
    often = [sum(slip(digit, term, 0.4, draw) != 0 for draw in draws) / 100 for digit, term in SUMS]
    assert sum(often) / len(often) == pytest.approx(0.4, abs=0.05)
    assert min(often) < 0.03
    assert 0.77 < max(often) <= 0.8
    assert [slip(37, -5, 0.4, draw) for draw in draws] == [slip(-7, -5, 0.4, draw) for draw in draws]


def test_without_slips_nothing_more_is_drawn(rows):
    """So a base policy that was trained before there were slips keeps its bytes."""
    rng = random.Random(0)
    state = rng.getstate()
    assert completion(rows[0], "worked", rng) == completion(rows[0], "worked", random.Random(9), slips=0.0)
    assert rng.getstate() == state


def test_a_share_of_slips_above_a_half_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"params.yaml: slips: 0.6: must be less than or equal to 0.5"):
        check(Arithmetic, {"slips": 0.6}, "params.yaml")


@pytest.mark.parametrize("num_operands", [3, 4, 6])
def test_train_and_eval_never_meet_whatever_the_seeds(num_operands):
    num = 100 if num_operands == 3 else 1000
    train = {row["prompt"] for seed in range(3) for row in problems(num, seed, num_operands, "train")}
    held_out = {row["prompt"] for seed in range(3) for row in problems(num, seed, num_operands, "eval")}
    assert not train & held_out
    assert {split_of(prompt.rstrip("=")) for prompt in held_out} == {"eval"}


def test_problems_are_unique_and_depend_on_the_seed_only(rows):
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert rows == problems(2000, seed=0, num_operands=4, split="train")
    assert rows[:50] == problems(50, seed=0, num_operands=4, split="train")
    assert rows != problems(2000, seed=1, num_operands=4, split="train")


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(ValueError, match="9999 eval problems of 3 operands"):
        problems(9999, seed=0, num_operands=3, split="eval")


def test_a_solution_is_the_worked_answer_with_every_step_right(rows):
    for row in rows[:50]:
        whole = with_solution(row)
        assert {**whole, "solution": ""} == {**row, "solution": ""}
        assert whole["solution"].endswith(f" #{row['answer']}")
        assert arithmetic_steps([row["prompt"]], [whole["solution"]], [[]]) == [1.0]
