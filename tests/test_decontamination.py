"""When two prompts are the same: typography does not matter, formulas do; a run of shared words is a match."""

import itertools
import random
import time

import pytest

from gift.prompts.decontamination import normalized, shared_runs, units


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  2+2?", "what is 2+2"),
        ("“Tom” has 3 apples.", '"Tom" has 3 apples'),
        ("Tom’s apples", "tom's apples"),
        ("first, second; third", "first second third"),
        ("ﬁnd Ｘ", "find x"),
        ("一加一等于几？", "一加一等于几"),
        ("What is 2 + 2 = ?", "What is 2+2=?"),
        ("f (x) = ( 1 , 2 )", "f(x)=(1, 2)"),
        ("\ufeffFind\u200b the so\u00adlution\u200f", "find the solution"),
    ],
)
def test_typography_makes_no_other_prompt(one: str, other: str) -> None:
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12/4?", "What is 12*4?"),
        ("What is 3-4?", "What is 3+4?"),
        ("What is 3.5 times 2?", "What is 35 times 2?"),
        ("What is 3.5 times 2?", "What is 3 5 times 2?"),
        ("Solve f'(x) = 0", "Solve f(x) = 0"),
        ("What is 3! ?", "What is 3?"),
        ("the ratio 1:2", "the ratio 1 2"),
        ("x^2", "x2"),
    ],
)
def test_formulas_that_differ_stay_apart(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)


def test_units_are_words_and_in_scripts_without_spaces_characters() -> None:
    assert units("Find \\frac{1}{2}, don't!") == ["find", "frac", "1", "2", "don", "t"]
    assert units("求x的值") == ["求", "x", "的", "值"]
    assert units("ราคา 5") == [*"ราคา", "5"]
    assert units("한국어 문장") == ["한국어", "문장"]  # Korean has spaces


WORDS = ["one", "day", "a", "farmer", "with", "seven", "red", "hens", "went", "to", "the", "old", "market", "us"]


def test_a_run_of_n_units_is_a_match_and_one_less_is_not() -> None:
    eval_text = "Yes: " + " ".join(WORDS[:8]) + ", and so on."
    near = "zzz " + " ".join(WORDS[:8]).upper() + "! yyy"
    far = "zzz " + " ".join(WORDS[:7]) + " yyy"
    assert shared_runs([near, far], [eval_text], 8, 10) == [" ".join(WORDS[:8]), None]
    assert shared_runs([near, far], [eval_text], 7, 10) == [" ".join(WORDS[:7])] * 2


def test_short_prompts_compare_whole() -> None:
    held_out = ["What is 12/4?", "Name the capital of France."]
    train = ["what is 12/4", "What is 12*4?", "Please, what is 12/4?", "name the capital of france", "of France"]
    found = [run is not None for run in shared_runs(train, held_out, 8, 10)]
    assert found == [True, False, False, True, False]


def test_a_phrase_and_a_common_first_word_are_no_match() -> None:
    """Eight words of a phrase and one of the problem are not nine words of the problem."""
    phrase = " ".join(WORDS[:9])
    held_out = [f"{phrase} let {number} be {' '.join(WORDS[::-1])} {number}" for number in range(20)]
    held_out += [f"{phrase} find {' '.join(WORDS[3::-1])}"]
    assert shared_runs([f"{phrase} find another way to do it, or do not try"], held_out, 9, 10) == [None]


def test_a_phrase_of_many_eval_prompts_is_no_match() -> None:
    phrase = " ".join(WORDS[:9])
    held_out = [f"{phrase} {' '.join(f'{word}{number}' for word in WORDS)}" for number in range(3)]
    train = [f"{phrase} something else", f"{held_out[1]} again"]
    assert [run is not None for run in shared_runs(train, held_out, 9, 3)] == [True, True]
    found = shared_runs(train, held_out, 9, 2)
    assert found == [None, " ".join(f"{word}1" for word in WORDS[:9])]  # what only one of the eval prompts has
    # A phrase that one prompt repeats is in one prompt.
    assert shared_runs([phrase], [f"{phrase} {phrase}"], 9, 1) == [phrase]


def by_definition(train: list[str], held_out: list[str], ngram: int, limit: int) -> list[bool]:
    def windows(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[start : start + ngram]) for start in range(len(words)) if start + ngram <= len(words)]

    def num_with(run: tuple[str, ...], texts: list[list[str]]) -> int:
        return sum(run in windows(words) for words in texts)

    def own(text: str) -> list[str]:
        words, all_words = text.split(), [each.split() for each in held_out]
        gone = {
            start + step
            for start, run in enumerate(windows(words))
            for step in range(ngram)
            if num_with(run, all_words) > limit
        }
        return [word for place, word in enumerate(words) if place not in gone]

    owns = [own(text) for text in held_out]
    short = [text for text, words in zip(held_out, owns, strict=True) if len(words) < ngram]
    found = []
    for text in train:
        runs = windows(own(text))
        found.append(any(0 < num_with(run, owns) <= limit for run in runs) if runs else text in short)
    return found


def test_it_is_the_plain_definition() -> None:
    """Against all pairs of all windows, on texts of few words, so that matches are common."""
    texts = [" ".join(words) for words in itertools.product("abcd", repeat=6)]
    random.Random(0).shuffle(texts)
    texts = texts[:100]
    outcomes = set()
    train, held_out = texts[::2], texts[1::2]
    for ngram, limit in ((4, 1), (4, 3), (5, 10)):
        expected = by_definition(train, held_out, ngram, limit)
        assert [run is not None for run in shared_runs(train, held_out, ngram, limit)] == expected
        outcomes |= set(expected)
    assert outcomes == {True, False}


def test_the_time_is_linear_in_the_text() -> None:
    def seconds(num: int) -> float:
        train = [f"{' '.join(WORDS)} {number} {' '.join(WORDS)}" for number in range(num)]
        start = time.process_time()
        shared_runs(train, [f"{' '.join(WORDS[::-1])} {number}" for number in range(num)], 13, 10)
        return time.process_time() - start

    short = min(seconds(500) for _ in range(3))
    assert seconds(5000) < 30 * short
