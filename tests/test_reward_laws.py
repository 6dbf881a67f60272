"""Laws of every built-in reward: pure, row by row, both of TRL's forms, any text; and bombs, in the real pool."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gift.rewards.names import REWARDS
from gift.scoring.loading import Loaded
from gift.scoring.pool import RewardPool
from gift.scoring.worker import Outcome

# Each function with settings, the gold that it reads, a completion worth more than another, and its range.
EXAMPLES: dict[str, tuple[dict[str, Any], str, str, str, tuple[float, float]]] = {
    "arithmetic_answer": ({}, "17", "7+5=12 12+5=17 #17", "#16", (0, 1)),
    "arithmetic_format": ({}, "17", "7+5=12 12+5=17 #17", "#17", (0, 1)),
    "arithmetic_near": ({"within": 4}, "17", "#17", "7+5=12 12+5=15 #15", (0, 1)),
    "arithmetic_steps": ({}, "17", "7+5=12 12+5=17 #17", "7+5=12 12+4=16 #16", (0, 1)),
    "cosine_length": ({"max_tokens": 9, "start": 2.0, "end": -1.0, "beyond": -3.0}, "", "a", "a" * 12, (-3, 2)),
    "exact_match": ({}, "Paris", " Paris", "paris", (0, 1)),
    "gsm8k_answer": ({"last_number": True}, "9 * 8 #### 72", "#### 72", "#### 73", (0, 1)),
    "length": ({"max_tokens": 9, "target_tokens": 0}, "", "a", "a" * 12, (0, 1)),
    "math_answer": ({}, r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{2}", (0, 1)),
    "multiple_choice": ({}, "C", "Answer: C", "Answer: B", (0, 1)),
    "ngram_diversity": ({"n": 2, "of": "characters"}, "", "abcd", "aaaa", (0, 1)),
    "normalized_match": ({"drop_words": ["the"], "contains": True}, "Paris", "the PARIS", "Rome", (0, 1)),
    "overlong": ({"max_tokens": 9, "cache_tokens": 8}, "", "a", "a" * 12, (-1, 0)),
    "regex_match": ({"pattern": r"(\d+)\D*", "group": 1, "column": "answer"}, "72", "so 72.", "so 7.", (0, 1)),
    "repetition": ({"n": 2, "of": "words", "max_penalty": 2.0}, "", "a b c d", "a a a a", (-2, 0)),
    "tag_format": ({"soft": True}, "", "<think>a</think><answer>b</answer>", "<think>a", (0, 1)),
    "text_format": ({"pattern": r"(\w+ ?)*"}, "", "a b", "a!", (0, 1)),
}
ASKED = "7+5+5="
CAN_ABSTAIN = {"ngram_diversity"}
READS_GOLD = {
    "arithmetic_answer",
    "arithmetic_near",
    "exact_match",
    "gsm8k_answer",
    "math_answer",
    "multiple_choice",
    "normalized_match",
    "regex_match",
}
NAMES = sorted(EXAMPLES)


def call(name: str, texts: list[Any], golds: list[Any], chat: bool = False) -> list[Any]:
    """The function on rows of these texts; a character counts as a token."""
    return list(REWARDS[name](**arguments(texts, golds, chat), **EXAMPLES[name][0]))


def arguments(texts: list[str], golds: list[Any], chat: bool = False) -> dict[str, list[Any]]:
    asked: Any = [{"role": "user", "content": ASKED}] if chat else ASKED
    return {
        "prompts": [asked] * len(texts),
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
        "completion_ids": [[ord(letter) for letter in text] for text in texts],
        "answer": golds,
        "prompt_id": [f"p{number}" for number in range(len(texts))],
        "generation_prompt": ["<|im_start|>assistant\n" if chat else ""] * len(texts),
        "unused": [None] * len(texts),
    }


def shown(values: list[Any]) -> list[Any]:
    """Values with errors as texts, so that they can be compared."""
    return [repr(value) if isinstance(value, Exception) else value for value in values]


def test_every_function_has_an_example() -> None:
    """Those that need a model, a server or a sandbox have files of their own."""
    assert set(EXAMPLES) == set(REWARDS) - {"reward_model", "judge", "code_tests"}


@pytest.mark.parametrize("name", NAMES)
def test_a_better_completion_gets_more_in_both_forms(name: str) -> None:
    _, gold, good, bad, (low, high) = EXAMPLES[name]
    better, worse = call(name, [good, bad], [gold, gold])
    assert low <= worse < better <= high
    assert call(name, [good, bad], [gold, gold], chat=True) == [better, worse]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_see_the_other_rows(name: str) -> None:
    _, gold, good, bad, _ = EXAMPLES[name]
    texts, golds = [good, bad, "", "\n\n", good], [gold, gold, gold, "\u2205 nothing", gold]
    alone = [call(name, [text], [each])[0] for text, each in zip(texts, golds, strict=True)]
    assert shown(call(name, texts, golds)) == shown(alone) == shown(call(name, texts, golds))
    assert shown(call(name, texts[::-1], golds[::-1])) == shown(alone)[::-1]
    assert call(name, [], []) == []


@pytest.mark.parametrize("name", sorted(READS_GOLD - {"exact_match", "normalized_match", "regex_match"}))
def test_a_gold_that_cannot_be_read_is_an_error_whatever_is_said(name: str) -> None:
    _, gold, good, _, _ = EXAMPLES[name]
    for unreadable in ("", None, "\u2205 nothing", "???"):
        first, second, third = call(name, [good, str(unreadable), good], [unreadable, unreadable, gold])
        assert isinstance(first, Exception), unreadable
        assert isinstance(second, Exception), unreadable
        assert third == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["\x00", "\ud800 \udfff", "Ã©Â½\x85", "\ufffe\u202e72", "\U0010ffff" * 9])
def test_texts_that_no_encoding_holds_are_texts(name: str, text: str) -> None:
    """Tables cannot hold half of a surrogate pair, but a function may be called without one."""
    _, gold, good, _, (low, high) = EXAMPLES[name]
    for said in (text, text + good, good + text):
        (value,) = call(name, [said], [gold])
        assert low <= value <= high if value is not None else name in CAN_ABSTAIN, said


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(max_size=300))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_any_text_gives_a_number_in_range_or_abstains(name: str, text: str) -> None:
    _, gold, good, _, (low, high) = EXAMPLES[name]
    for said in (text, text + good, good + text, f"\\boxed{{{text}}}", f"Answer: ${text}$", f"<think>{text}</think>"):
        (value,) = call(name, [said], [gold])
        assert low <= value <= high if value is not None else name in CAN_ABSTAIN, said


ODD = "\x00\x01\x1b[31m\u202e\u05d0\u0627\ufeff\u200d\U0001f468\u200d\U0001f469\u0e01\u0301\ufffd\uffff\r\n\t\u2028"


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(alphabet=st.sampled_from(ODD + r"\${}[]()^_&%#.,-=<>/012Aaix "), max_size=60))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_control_characters_markup_and_half_latex_are_text_too(name: str, text: str) -> None:
    _, gold, good, _, (low, high) = EXAMPLES[name]
    for said in (text, f"\\boxed{{{text}}}", f"#### {text}\n", good + text):
        (value,) = call(name, [said], [gold])
        assert low <= value <= high if value is not None else name in CAN_ABSTAIN, said


BOMBS = {
    "tower": r"\boxed{9^{9^{9^{9^{9}}}}}",
    "power": r"The answer is $9^{9^{9^{9}}}$.",
    "plain": "answer: 9**9**9**9 = 9^9^9^9",
    "factorial": r"\boxed{99999999!!}",
    "roots": "\\boxed{" + "\\sqrt{" * 2000 + "2" + "}" * 2000 + "}",
    "few roots": "\\boxed{" + "\\sqrt{" * 140 + "2" + "}" * 140 + "}",
    "fractions": "\\boxed{" + "\\frac{1}{" * 60 + "2" + "}" * 60 + "}",
    "braces": "\\boxed{" + "{" * 10_000 + "2" + "}" * 10_000 + "}",
    "few braces": "\\boxed{" + "{" * 450 + "2" + "}" * 450 + "}",
    "parentheses": "\\boxed{" + "(" * 450 + "2" + ")" * 450 + "}",
    "open": "{" * 10_000 + "\\boxed{" * 10_000,
    "boxes": "\\boxed{1}, " * 50_000,
    "dollars": "$$ \\[ \\( $ " * 5000,
    "regex": "a" * 60 + "b",
    "megabyte": "The answer is 1. \n" * 60_000,
    "digits": "#### -" + "9" * 1_100_000,
    "line": "1a" * 500_000,
    "spaces": " " * 1_000_000,
    "tags": "<think></think><answer>" * 50_000,
}
# Numbers too large to work out, and a pattern of exponential time: these rows are the pool's to end.
ENDLESS = {"math_answer": {"tower", "power", "plain", "factorial"}, "regex_match": {"regex"}, "text_format": {"regex"}}
SLOW_PATTERN = {"pattern": r"(a+)+$"}


def pooled(name: str, settings: dict[str, Any], texts: list[str], gold: str) -> list[Outcome]:
    """What the real pool makes of one function on these texts."""
    reward = Loaded(name, None, name, settings, list(arguments([], [])))
    calls = [(name, [number]) for number in range(len(texts))]
    limit = 1.5 if name in ENDLESS else 20.0
    with RewardPool([reward], 1, limit) as pool:
        found = pool.run(calls, lambda rows: arguments([texts[rows[0]]], [gold]))
        outcomes = {number: outcome for _, number, outcome in found}
    return [outcomes[number] for number in range(len(texts))]


@pytest.mark.parametrize(
    "name", [each if each == "regex_match" else pytest.param(each, marks=pytest.mark.slow) for each in NAMES]
)
def test_a_bomb_is_answered_or_costs_its_own_row(name: str) -> None:
    given, gold, good, bad, (low, high) = EXAMPLES[name]
    settings = SLOW_PATTERN if "pattern" in given else given
    expected = REWARDS[name](**arguments([good, bad], [gold, gold]), **settings)
    first, *outcomes, last = pooled(name, settings, [good, *BOMBS.values(), bad], gold)
    assert [first.value, last.value] == expected
    ended = set()
    for bomb, outcome in zip(BOMBS, outcomes, strict=True):
        if outcome.status == "timeout":
            ended.add(bomb)
        else:
            assert outcome.status in ("ok", "abstain"), (bomb, outcome)
            assert outcome.value is None or low <= outcome.value <= high, (bomb, outcome)
    assert ended == ENDLESS.get(name, set())
