"""The reward for mathematics against hand-judged pairs: each disagreement of the verifier is known, with its reason."""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import mini
import pytest

from gift.rewards.math_answer import MAX_ANSWER, TAIL, boxed_answer, math_answer

GSM8K = mini.ROOT.parent / "shared" / "data" / "gsm8k" / "test.jsonl"
PAIRS = mini.read_yaml(Path(__file__).parent / "math_pairs.yaml")

# Where the reward differs from the hand's verdict: (gold, said), and why. docs/rewards.md counts both kinds.
FALSE_POSITIVES = {
    (r"50\%", "50"): "Math-Verify takes a percentage and its number for one answer",
    ("50", r"50\%"): "the same",
    (r"(1, 2, 3)", r"\{1, 2, 3\}"): "a set is compared with a tuple in the order in which it is written",
    (r"5 \text{ cm}", r"5 \text{ m}"): "units are dropped, not compared",
    ("5", "9=5"): "of an equation whose left side is no variable the right side counts",
    ("2", "x^2+y^2=2"): "the same",
    ("1, 2", "1 < x < 2"): "the range is an open interval, (1, 2), and that is taken for the list",
    ("1 < x < 2", "1, 2"): "the same",
    ("2", "Let $n = 2$ be the first. Then we are lost"): "without a box the last formula counts, whatever it is",
}
FALSE_NEGATIVES = {
    ("0.5", "0,5"): "a comma between digits separates the elements of a list",
    (r"\sqrt{2}", "2^{0.5}"): "a root as a decimal power is compared to 15 digits and misses",
    (r"\frac{\pi}{3}", r"60^\circ"): "the degree sign is dropped",
    (r"\sin 30^\circ", r"\frac{1}{2}"): "the same: this is the sine of 30 radians",
    ("i", r"\sqrt{-1}"): "a lone i is a variable",
    ("1 < x < 2", "2 > x > 1"): "chains are compared link by link, in order",
    ("x^2 < 4", "-2 < x < 2"): "inequalities are not solved where one of them is a chain",
    (r"5 \text{ cm}", r"50 \text{ mm}"): "units are dropped, not converted",
}


def one(text: Any, gold: Any, **settings: Any) -> Any:
    (value,) = math_answer(["?"], [text], [[1]], answer=[gold], **settings)
    return value


def completion(kind: str, said: str) -> str:
    return said if kind == "texts" else f"We add 19 and 23, and so it is $\\boxed{{{said}}}$."


def test_hand_judged_pairs() -> None:
    positives, negatives, num_equal, num_other = set(), set(), 0, 0
    for kind, pairs in PAIRS.items():
        for gold, said, verdict in pairs:
            assert verdict in ("equal", "different", "malformed"), (gold, said, verdict)
            value = one(completion(kind, said), gold)
            assert value in (0.0, 1.0), (gold, said, value)
            num_equal += verdict == "equal"
            num_other += verdict != "equal"
            if value == 1 and verdict != "equal":
                positives.add((gold, said))
            if value == 0 and verdict == "equal":
                negatives.add((gold, said))
    assert positives == set(FALSE_POSITIVES)
    assert negatives == set(FALSE_NEGATIVES)
    docs = " ".join((mini.ROOT / "docs" / "rewards.md").read_text(encoding="utf-8").split())
    assert f"{len(positives)} of {num_other} pairs that differ" in docs
    assert f"{len(negatives)} of {num_equal} that are equal" in docs


def test_no_pair_is_there_twice() -> None:
    pairs = [(gold, said) for rows in PAIRS.values() for gold, said, _ in rows]
    assert len(set(pairs)) == len(pairs) >= 150


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        (r"We have $2x = 7$, so $x = \boxed{\frac{7}{2}}$.", "3.5"),
        (r"Then $x$ is $\boxed{3}$ or $\boxed{4}$, since $x^2 - 7x + 12 = 0$.", r"\{3, 4\}"),
        (r"$x=2$", "2"),
        (r"\(x=2\)", "2"),
        (r"\[x=2\]", "2"),
        ("The answer is 72.", "72"),
        ("She sold 24 in May.\n24 + 48 = <<24+48=72>>72.\n#### 72", "72"),
        ("#### 1,072", "1072"),
        ("72", "72"),
        ("$72", "72"),
        (r"\$72", "72"),
        (r"\text{no real solutions}", r"\text{no real solutions}"),
        (72, "72"),
        (72.0, "72"),
        (0.5, r"\frac{1}{2}"),
        (["72"], "72"),
        (["71", r"\frac{144}{2}"], "72"),
        ("-3", "-3"),
        (r"$5$;$10$", "5, 10"),
        (r"$5$, $6$ and $10$", r"\{5, 6, 10\}"),
        (r"$1.1\%$", r"1.1\%"),
        (r"$\frac{1}{2}$ percent", r"\frac{1}{2}\%"),
        ("$18$ dollars", "18"),
        (r"Area: $6m$", "6m"),
        (r"$x=0, x=\pm 2\sqrt{2}$", r"0, 2\sqrt{2}, -2\sqrt{2}"),
        (r"$4-\mathrm{i}$", "4-i"),
        (r"It is $5$. So the answer is $6$.", "6"),
        ("About 30.12 miles per hour", "30.12"),
        ("She sold 24 in May and 48 in June, so the answer is 72.", "72"),
        (r"\boxed{5} is too small. Then it is \boxed{6}.", "6"),
        ("18 million", "18000000"),
        ("$18$ million", "18000000"),
        (r"\boxed{18} million dollars", "18000000"),
    ],
)
def test_golds_of_every_form(gold: Any, said: str) -> None:
    assert one(completion("", said), gold) == 1
    assert one(completion("", "1234567"), gold) == 0


@pytest.mark.parametrize(
    "gold",
    [
        "",
        None,
        float("nan"),
        "???",
        "\\frac{",
        "72 72",
        "no number at all",
        "12:00",
        "\\frac{1}{0}",
        "x" * (MAX_ANSWER + 1),
        # A number in it would be paid to everybody who says it.
        r"$\{x \mid x \geq 1\}$",
        r"The set is $\{x \mid x \geq 1\}$.",
        r"The answer is $\{x \mid x \geq 1\}$.",
        r"\[R=1, I=(-1,1)\]",
        r"\(x \neq \pm 5\)",
        r"$5$ when $a=2$",
        "$x=1$ where it is odd, and $x=2$ where it is even",
        "$\\{x \\mid x \\geq 1\\}$, so 5",
        "1.5 meters wide by 1.25 meters tall",
        "Answers may vary: $x=1$ where it is odd, or $x=2$",
        r"\boxed{1} papers and \boxed{2} bins",
        "1:58 am",
        r"1:58 \text{ p.m.}",
        r"$\frac{1}{2}$ million",
        r"\boxed{\frac{1}{2}} million",
    ],
)
def test_a_gold_that_cannot_be_read_is_an_error_of_its_row(gold: Any) -> None:
    for said in ("\\boxed{72}", "", str(gold), f"\\boxed{{{gold}}}"):
        value = one(said, gold)
        assert isinstance(value, ValueError)
        assert "cannot be read as mathematics" in str(value) or "is no text and no list of texts" in str(value)


CONVENTIONS = [
    (r"5 \text{ cm}^2", r"5 \text{ cm}^3", 1),
    ("16, 3, 1, 1", "16, 3, 1", 1),
    ("81", "(x+y)^2=81", 1),
    ("18", "18 dollars", 0),
    ("18", "18 km/h", 0),
    ("18", "18 apples", 1),
    ("18", "18 hours", 1),
    ("18", r"18\text{ dollars}", 1),
    ("5 m", "5", 0),
    (r"5 \text{ m}", "5", 1),
    (r"5 \text{ m}", "5m", 1),
    ("5", "5 or so", 0),
]


@pytest.mark.parametrize(("gold", "said", "value"), CONVENTIONS)
def test_conventions_that_the_docs_name(gold: str, said: str, value: int) -> None:
    assert one(completion("", said), gold) == value


def test_settings() -> None:
    assert one("The answer is 72.", "72") == 1
    assert one("The answer is 72.", "72", require_boxed=True) == 0
    assert one("The answer is \\boxed{72}.", "72", require_boxed=True) == 1
    assert one("\\boxed{5 or so}", "5") == 0
    assert one("#### Step 1\n2 + 3 = 5\n#### The answer is 5", "5") == 1
    thought = "<think>\\boxed{71}</think> \\boxed{72}"
    assert one(thought, "72", after="</think>") == 1
    assert one(thought, "71", before="</think>") == 1
    assert one("<think>\\boxed{72}", "72", after="</think>") == 0
    assert math_answer(["?"], ["72"], [[1]], column="label", label=["72"]) == [1.0]
    with pytest.raises(
        ValueError, match=r"settings.column: the prompts table has no column 'label'; its columns: answer"
    ):
        math_answer([], [], [], column="label", answer=[])


@pytest.mark.parametrize("text", [r"\infty", r"-\infty", r"(-\infty, 2]", r"\{\infty\}", r"0", r"\pi", r"x = \infty"])
def test_an_answer_equals_itself(text: str) -> None:
    assert one(f"\\boxed{{{text}}}", text) == 1


def test_infinities_have_signs() -> None:
    assert one(r"\boxed{-\infty}", r"\infty") == 0
    assert one(r"\boxed{10^{300}}", r"\infty") == 0
    assert one(r"\boxed{\infty}", r"5") == 0
    assert one(r"\boxed{+\infty}", r"\infty") == 1


def test_what_cannot_be_compared_is_not_equal_but_a_lack_of_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: Any, **settings: Any) -> bool:
        raise fault

    monkeypatch.setattr("math_verify.verify", verify)
    fault: Exception = TypeError("cannot compare")
    assert one("\\boxed{72}", "72") == 0
    fault = MemoryError()
    assert one("\\boxed{72}", "72") is fault


def test_boxes_that_stand_side_by_side_are_one_answer() -> None:
    assert boxed_answer(r"\boxed{3} and \boxed{4}.") == "3, 4"
    assert boxed_answer(r"$\boxed{3}$, $\boxed{4}$ or $\boxed{5}$") == "3, 4, 5"
    assert boxed_answer(r"\boxed{3} \boxed{3}") == "3"
    assert boxed_answer(r"\boxed{3}; no, it is \boxed{4}") == "4"
    assert boxed_answer("3") is None


@pytest.mark.parametrize(
    ("gold", "same"),
    [
        ("5", ["\uff15", "\u0665", "\u096b", "\U0001d7d3", "\u200b5", "\u061c\u0665", "5\ufeff", "\u200c5"]),
        ("1234", ["\uff11\uff12\uff13\uff14", "\uff11\uff0c\uff12\uff13\uff14", "\u0661\u066c\u0662\u0663\u0664"]),
        ("-3.5", ["\uff0d\uff13\uff0e\uff15", "-\u0663\u066b\u0665"]),
        ("(1, 2)", ["\uff08\uff11\uff0c\uff12\uff09", "(1\uff0c2)"]),
        ("50\\%", ["\uff15\uff10\uff05", "\u0665\u0660\u066a"]),
    ],
)
def test_digits_of_every_script_count_and_marks_that_nobody_sees_do_not(gold: str, same: list[str]) -> None:
    for each in same:
        assert one(completion("", each), gold) == one(completion("", gold), each) == 1, (gold, each)
        assert one(completion("", each), "77") == 0


def test_what_is_no_digit_keeps_its_meaning() -> None:
    for said, gold in (
        ("x\u00b2", "x2"),
        ("5\u00b2", "52"),
        ("1\u00bd", "11/2"),
        ("\u2464", "5"),
        ("1\uff0c234", "1234"),
    ):
        assert one(completion("", said), gold) == 0, said


def test_a_box_without_braces() -> None:
    assert one(r"So it is $\boxed5$.", "5", require_boxed=True) == 1
    assert one(r"First 6, then $\boxed 5$.", "6") == 0
    assert one(r"So it is $\boxed72$.", "7") == one(r"\boxed x^2", "x") == 0


def test_only_the_end_of_a_long_completion_is_searched_for_an_answer_without_a_box() -> None:
    filler = "Let us think on. \n" * (TAIL // 10)
    assert one(f"The answer is 72. {filler}", "72") == 0
    assert one(f"{filler}The answer is 72.", "72") == 1
    assert one(f"\\boxed{{72}} {filler}", "72") == 1
    assert one(f"\\boxed{{{' ' * MAX_ANSWER}72}}", "72") == 1
    assert one(f"\\boxed{{{'0' * MAX_ANSWER}72}}", "72") == 0


def test_math_verifys_alarm_is_off(caplog: pytest.LogCaptureFixture) -> None:
    """A limit by alarm works in the main thread only, and would end the one that the worker has set."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        assert one("\\boxed{0.5}", "1/2") == 1
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert 50 < left <= 60
    assert not rung
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.skipif(not GSM8K.exists(), reason=f"GSM8K is not at {GSM8K}")
def test_gsm8k_gold_solutions_are_right_and_the_next_problems_are_wrong() -> None:
    golds = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    numbers = [gold.rpartition("#### ")[2].replace(",", "") for gold in golds]
    ids = [[0]] * len(golds)
    assert math_answer(golds, golds, ids, answer=golds) == [1.0] * len(golds)
    others = [*golds[1:], golds[0]]
    same = [float(mine == other) for mine, other in zip(numbers, [*numbers[1:], numbers[0]], strict=True)]
    assert math_answer(golds, others, ids, answer=golds) == same
    assert 0 < sum(same) < 100
    boxed = [f"So $\\boxed{{{number}}}$." for number in numbers]
    assert math_answer(golds, boxed, ids, answer=numbers) == [1.0] * len(golds)
