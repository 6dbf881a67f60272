"""The reward functions that read text or lengths: hand numbers, near misses, and settings that are refused."""

import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import Field

from gift.project.errors import UserError
from gift.rewards.answers import exact_match, multiple_choice, normalized_match, regex_match
from gift.rewards.form import cosine_length, length, ngram_diversity, overlong, repetition, tag_format, text_format
from gift.rewards.names import REWARDS
from gift.rewards.signature import wrong_settings
from gift.rewards.text import answer_part, boxes
from gift.scoring.loading import Loaded
from gift.scoring.pool import RewardPool


def one(function: Callable[..., Any], text: Any, *, ids: Any = (1,), prompt: Any = "?", **given: Any) -> Any:
    """The value of one row; `given` holds its columns and the function's settings."""
    parameters = inspect.signature(function).parameters
    settings = {
        name: given.pop(name) for name, each in parameters.items() if name in given and each.kind is each.KEYWORD_ONLY
    }
    columns = {name: [value] for name, value in given.items()}
    (value,) = function(prompts=[prompt], completions=[text], completion_ids=[list(ids)], **columns, **settings)
    return value


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("Answer: C", "C", True),
        ("Answer: C", "B", False),
        ("The answer is C.", "C", True),
        ("The answer is (C).", "C", True),
        ("The answer is **C**", "C", True),
        ("**Answer:** C", "C", True),
        ("**Answer:**\n\nC", "C", True),
        ("### Answer\n(C) 12 cm", "C", True),
        ("The correct answer is option C, 12 cm", "C", True),
        ("A is wrong, B is wrong.\nThe answer is C", "C", True),
        ("Answer: B\nNo. Answer: C", "C", True),
        ("Answer: C\nNo. Answer: B", "C", False),
        ("answer: c", "C", True),
        ("answer: c, since a cat is", "C", False),
        ("Answer: B or C", "C", False),
        ("Answer: B or C", "B", False),
        ("Answer: C (not B)", "C", False),
        ("Answer: C, yes C", "C", True),
        ("Answer: Cat", "C", False),
        ("Answer: C's", "C", False),
        ("Answer: 12", "C", False),
        ("Answer:", "C", False),
        ("Answer: F", "C", False),
        (r"So \boxed{C}", "C", True),
        (r"So \boxed{\text{C}}, and not (D)", "C", True),
        (r"So $\boxed{\textbf{(C) } 12}$", "C", True),
        (r"Not \boxed{B} but \boxed{C}", "C", True),
        (r"So \boxed{B, C}", "B", False),
        (r"So \boxed{12}. Answer: C", "C", False),
        ("C", "C", True),
        ("(C)", "C", True),
        ("c.", "C", True),
        ("C) 12", "C", True),
        ("Let us see.\n\nC. twelve", "C", True),
        ("A) 3  B) 4  C) 5", "A", False),
        ("A dog and C", "A", False),
        ("", "C", False),
        ("\uff21\uff4e\uff53\uff57\uff45\uff52\uff1a\uff08\uff23\uff09", "C", True),
        ("Answer: C", "(C)", True),
        ("Answer: C", "C) 12", True),
        ("Answer: C", "c", True),
        ("Answer: C", 2, True),
        ("Answer: C", 0, False),
    ],
)
def test_multiple_choice_takes_the_one_letter_that_is_chosen(said: str, gold: Any, right: bool) -> None:
    assert one(multiple_choice, said, answer=gold) == float(right)


@pytest.mark.parametrize("gold", ["F", "", None, "AB", "cat", 5, -1, True, 1.5, {"a": 1}])
def test_multiple_choice_refuses_a_gold_that_is_no_letter(gold: Any) -> None:
    assert isinstance(one(multiple_choice, "Answer: C", answer=gold), ValueError)


def test_multiple_choice_settings() -> None:
    assert one(multiple_choice, "Answer: H", answer="H", letters="ABCDEFGHIJ") == 1
    assert one(multiple_choice, "\u7b54\u6848\uff1aC", answer="C", words=["\u7b54\u6848"]) == 1
    assert one(multiple_choice, "\u7b54\u6848\uff1aC", answer="C") == 0
    for said in ("\u7b54\u6848\u662fC\u3002", "\u7b54\u6848\uff1a\u9009C\u9879"):  # "the answer is C", "choose item C"
        assert one(multiple_choice, said, answer="C", words=["\u7b54\u6848"]) == 1
        assert one(multiple_choice, said + "B", answer="C", words=["\u7b54\u6848"]) == 0
    assert one(multiple_choice, "Antwort: ein \u00c4C", answer="C", words=["Antwort"]) == 0
    assert one(multiple_choice, "Answer: B</think>Answer: C", answer="C", after="</think>") == 1
    assert one(multiple_choice, "Answer: C", answer="C", after="</think>") == 0
    assert one(multiple_choice, "Answer: C", label="C", column="label") == 1


def test_the_part_between_markers() -> None:
    text = "<answer>1</answer> no: <answer> 2 </answer>."
    assert answer_part(text, None, None) == text
    assert answer_part(text, "<answer>", "</answer>") == " 2 "
    assert answer_part(text, None, "</answer>") == "<answer>1"
    assert answer_part(text, "<answer>", None) == " 2 </answer>."
    assert answer_part(text, "####", None) is None
    assert answer_part("<answer>2", "<answer>", "</answer>") is None


def test_boxes_are_closed_and_outermost() -> None:
    assert [content for _, _, content in boxes(r"\boxed{1} { \boxed{ \frac{1}{2} } \fbox{\{3\}}")] == [
        "1",
        r"\frac{1}{2}",
        r"\{3\}",
    ]
    assert [content for _, _, content in boxes(r"\boxed{a \boxed{b} c}")] == [r"a \boxed{b} c"]
    assert [content for _, _, content in boxes(r"\boxed{1} \boxed{2")] == ["1"]
    assert boxes("boxed{1} } \\boxed 2 {3}") == []
    assert [content for _, _, content in boxes(r"$\boxed5$, \boxed 6. \boxed{\boxed7} \boxed x \boxed\pi \)")] == [
        *("5", "6", r"\boxed7", "x", r"\pi")
    ]
    for text in (r"\boxed72", r"\boxed7.5", r"\boxed x^2", r"\boxed5\%", r"\boxed\frac12", r"\boxed and", r"\boxedx"):
        assert boxes(text) == [], text
    ((begin, end, _),) = boxes(r"so \boxed{1}!")
    assert (begin, end) == (3, 12)


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("Paris", "Paris", True),
        (" Paris\n", "Paris", True),
        ("paris", "Paris", False),
        ("Paris.", "Paris", False),
        ("72", 72, True),
        ("72", 72.0, True),
        ("0.5", 0.5, True),
        ("Paris", ["Lutetia", "Paris"], True),
        ("Rome", ["Lutetia", "Paris"], False),
        ("", "Paris", False),
        ("True", True, True),
    ],
)
def test_exact_match(said: str, gold: Any, right: bool) -> None:
    assert one(exact_match, said, answer=gold) == float(right)


@pytest.mark.parametrize("function", [exact_match, normalized_match, regex_match])
@pytest.mark.parametrize("gold", [None, "", "  ", float("nan"), [], ["a", ""], {"text": "a"}, [["a"]]])
def test_a_gold_without_text_is_an_error_of_its_row(function: Any, gold: Any) -> None:
    settings = {"pattern": "a", "column": "answer"} if function is regex_match else {}
    for said in ("a", "", "b"):
        assert isinstance(one(function, said, answer=gold, **settings), ValueError)


@pytest.mark.parametrize(
    ("said", "gold", "settings", "right"),
    [
        ("  The  Eiffel\nTower! ", "the eiffel tower", {}, True),
        ("Eiffel Tower", "the Eiffel Tower", {}, False),
        ("Eiffel Tower", "the Eiffel Tower", {"drop_words": ["a", "an", "the"]}, True),
        ("paris", "Paris", {"keep_case": True}, False),
        ("Paris!", "Paris", {"keep_punctuation": True}, False),
        ("U.S.", "US", {}, True),
        ("\uff30\uff41\uff52\uff49\uff53", "Paris", {}, True),
        ("STRASSE", "Stra\u00dfe", {}, True),
        ("caf\u00e9", "cafe\u0301", {}, True),
        ("\u200f\u05e9\u05dc\u05d5\u05dd\u200e", "\u05e9\u05dc\u05d5\u05dd", {}, True),
        ("\ufeffPa\u00adris\u200b", "Paris", {"keep_case": True, "keep_punctuation": True}, True),
        ("\u5317\u4eac\u3002", "\u5317\u4eac", {}, True),
        ("\u5317\u4eac", "\u4e1c\u4eac", {}, False),
        ("\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e", "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e", {}, True),
        ("1.5", "15", {}, False),
        ("1,000", "1000", {}, False),
        ("-5", "5", {}, False),
        ("\u22125", "-5", {}, True),
        ("(-5)", "-5", {}, True),
        ("5%", "5", {}, False),
        ("$5", "5", {}, False),
        ("3/4", "34", {}, False),
        (".5", "5", {}, False),
        ("5.", "5", {}, True),
        ("C++", "C", {}, False),
        ("It is Paris, France.", "Paris", {}, False),
        ("It is Paris, France.", "Paris", {"contains": True}, True),
        ("Parisian", "Paris", {"contains": True}, False),
        ("No.", ["yes", "no"], {}, True),
        ("3-5", "35", {}, False),
        ("I know", "no", {"contains": True}, False),
        ("I know no one", "no", {"contains": True}, True),
        ("It is 1.5", "5", {"contains": True}, False),
        ("It is 15", "5", {"contains": True}, False),
        ("It is 5.", "5", {"contains": True}, True),
        ("\u9996\u90fd\u662f\u5317\u4eac\u3002", "\u5317\u4eac", {"contains": True}, True),
        ("\u9996\u90fd\u662f\u5357\u4eac\u3002", "\u5317\u4eac", {"contains": True}, False),
    ],
)
def test_normalized_match(said: str, gold: Any, settings: dict[str, Any], right: bool) -> None:
    assert one(normalized_match, said, answer=gold, **settings) == float(right)


def test_a_gold_of_which_nothing_is_left_is_an_error() -> None:
    assert isinstance(one(normalized_match, "", answer="..."), ValueError)
    assert isinstance(one(normalized_match, "", answer="The", drop_words=["the"]), ValueError)


@pytest.mark.parametrize(
    ("said", "settings", "value"),
    [
        ("so 12 and 13", {"pattern": r"\d+"}, 1),
        ("so 12 and 13", {"pattern": r"\d+", "mode": "fullmatch"}, 0),
        ("12", {"pattern": r"\d+", "mode": "fullmatch"}, 1),
        ("none", {"pattern": r"\d+"}, 0),
        ("", {"pattern": ""}, 1),
        ("so 12 and 13", {"pattern": r"\d+", "column": "answer"}, 1),
        ("so 13 and 12", {"pattern": r"\d+", "column": "answer"}, 0),
        ("x = 13 ", {"pattern": r"x = (\d+)", "column": "answer"}, 0),
        ("x = 13 ", {"pattern": r"x = (\d+)", "column": "answer", "group": 1}, 1),
        ("x = 13 ", {"pattern": r"x = (?P<x>\d+)", "column": "answer", "group": "x"}, 1),
        ("x = ", {"pattern": r"x = (\d+)?", "column": "answer", "group": 1}, 0),
        ("A\nB", {"pattern": "A.B"}, 0),
        ("A\nB", {"pattern": "(?s)A.B"}, 1),
    ],
)
def test_regex_match(said: str, settings: dict[str, Any], value: float) -> None:
    assert one(regex_match, said, answer="13", **settings) == value


FORM = "<think>\nwhy\n</think>\n<answer>\n4\n</answer>"
R1 = "<\uff5cAssistant\uff5c><think>\n"


@pytest.mark.parametrize(
    ("said", "met"),
    [
        (FORM, 7),
        (f"\n{FORM}\n", 7),
        (FORM.replace("\n", ""), 7),
        (FORM.replace("why", ""), 7),
        (FORM.replace("4", " "), 6),
        (f"So: {FORM}", 6),
        (f"{FORM} Done.", 6),
        (FORM.replace("\n<answer>", "and <answer>"), 6),
        (FORM.removeprefix("<think>"), 3),
        (FORM.removesuffix("</answer>"), 3),
        (f"{FORM}{FORM}", 0),
        (FORM + "<answer>5</answer>", 2),
        ("<answer>4</answer><think>why</think>", 4),
        ("</think>why<think><answer>4</answer>", 4),
        ("<think><answer>4</answer></think>", 4),
        ("4", 0),
        ("", 0),
    ],
)
def test_tag_format_and_its_share_of_conditions(said: str, met: int) -> None:
    assert one(tag_format, said) == float(met == 7)
    assert one(tag_format, said, soft=True) == met / 7


@pytest.mark.parametrize(
    ("prompt", "template", "said", "right"),
    [
        ([{"role": "user", "content": "2+2?"}], R1, FORM.removeprefix("<think>"), True),
        ([{"role": "user", "content": "2+2?"}], R1, FORM, False),
        ([{"role": "user", "content": "2+2?"}], "<|im_start|>assistant\n", FORM, True),
        ([{"role": "user", "content": "2+2?"}], "<|im_start|>assistant\n", FORM.removeprefix("<think>"), False),
        ([{"role": "user", "content": "2+2?"}], "a\n<think>\n\n</think>\n\n", "<answer>4</answer>", True),
        ([{"role": "user", "content": "2+2?"}], "a\n<think>\n\n</think>\n\n", FORM, False),
        ([{"role": "user", "content": "2+2?"}], "a\n<think>\nOkay,", " so</think><answer>4</answer>", True),
        ([{"role": "user", "content": "End with <think>"}], "", FORM, True),
        ("2+2? <think>\n", "", FORM.removeprefix("<think>"), True),
        ("2+2? <think>\n", "", FORM, False),
        ("Write <think></think><answer></answer>", "", FORM, True),
        ("Write <think>, then answer. 2+2?", "", FORM, True),
    ],
)
def test_tag_format_counts_what_the_prompt_opened(prompt: Any, template: str, said: str, right: bool) -> None:
    chat = said if isinstance(prompt, str) else [{"role": "assistant", "content": said}]
    assert one(tag_format, chat, prompt=prompt, generation_prompt=template) == float(right)


def test_tag_format_with_other_tags_or_text_after_them() -> None:
    assert one(tag_format, "<a>x</a><b-1>y</b-1><c>z</c>", tags=["a", "b-1", "c"]) == 1
    assert one(tag_format, "<think>x</think> 4", tags=["think"]) == 0
    assert one(tag_format, "<think>x</think> 4", tags=["think"], text_after=True) == 1
    assert one(tag_format, "<think></think> 4", tags=["think"], text_after=True) == 1
    assert one(tag_format, "<think>x</think> ", tags=["think"], text_after=True) == 0
    assert one(tag_format, "x</think> 4", tags=["think"], text_after=True, generation_prompt=R1) == 1


@pytest.mark.parametrize(
    ("num", "settings", "value"),
    [
        (0, {"max_tokens": 10}, 1),
        (10, {"max_tokens": 10}, 1),
        (11, {"max_tokens": 10}, 0),
        (3, {"min_tokens": 4, "max_tokens": 10}, 0),
        (4, {"min_tokens": 4, "max_tokens": 10}, 1),
        (4, {"min_tokens": 2, "target_tokens": 6, "max_tokens": 8}, 0.5),
        (6, {"min_tokens": 2, "target_tokens": 6, "max_tokens": 8}, 1),
        (7, {"min_tokens": 2, "target_tokens": 6, "max_tokens": 8}, 0.5),
        (8, {"min_tokens": 2, "target_tokens": 6, "max_tokens": 8}, 0),
        (9, {"min_tokens": 2, "target_tokens": 6, "max_tokens": 8}, 0),
        (0, {"target_tokens": 0, "max_tokens": 8}, 1),
        (6, {"target_tokens": 0, "max_tokens": 8}, 0.25),
        (6, {"target_tokens": 8, "max_tokens": 8}, 0.75),
        (8, {"target_tokens": 8, "max_tokens": 8}, 1),
        (9, {"target_tokens": 8, "max_tokens": 8}, 0),
    ],
)
def test_length(num: int, settings: dict[str, int], value: float) -> None:
    assert one(length, "text", ids=range(num), **settings) == value


@pytest.mark.parametrize(
    ("num", "value"), [(0, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20480, -1), (20481, -1), (99999, -1)]
)
def test_overlong_is_dapos_equation_13(num: int, value: float) -> None:
    assert one(overlong, "text", ids=range(num), max_tokens=20480, cache_tokens=4096) == value


def test_cosine_length() -> None:
    settings = {"max_tokens": 12, "start": 2.0, "end": 1.0}
    values = [one(cosine_length, "text", ids=range(num), **settings) for num in (0, 4, 6, 8, 12, 13)]
    assert values == pytest.approx([2, 1.75, 1.5, 1.25, 1, 1])
    assert one(cosine_length, "text", ids=range(12), **settings, beyond=-10) == -10
    assert one(cosine_length, "text", ids=range(11), **settings, beyond=-10) > 1


@pytest.mark.parametrize("num", [0, 3, 7, 11, 12, 20])
@pytest.mark.parametrize("right", [True, False])
def test_two_cosines_and_a_gate_are_the_papers_reward(num: int, right: bool) -> None:
    """As docs/rewards.md has it: r0 and rL of right and of wrong answers, and r_e."""
    most, exceed = 12, -10.0
    low, high = (1.0, 2.0) if right else (0.0, -10.0)
    paper = exceed if num >= most else low + 0.5 * (high - low) * (1 + math.cos(num * math.pi / most))
    wrong = one(cosine_length, "", ids=range(num), max_tokens=most, start=-10.0, end=0.0, beyond=-10.0)
    gained = one(cosine_length, "", ids=range(num), max_tokens=most, start=12.0, end=1.0, beyond=0.0)
    assert wrong + right * gained == pytest.approx(paper)


@pytest.mark.parametrize(
    ("ids", "n", "share"),
    [
        ([1, 2, 3, 4], 1, 1),
        ([1, 1, 1, 1], 1, 1 / 4),
        ([1, 2, 1, 2, 1], 2, 2 / 4),
        ([1, 2, 3, 1, 2, 3], 3, 3 / 4),
        ([1, 2], 2, 1),
        ([1], 2, None),
        ([], 1, None),
    ],
)
def test_ngrams_of_tokens(ids: list[int], n: int, share: float | None) -> None:
    assert one(ngram_diversity, "unread", ids=ids, n=n) == share
    penalty = 0 if share is None else -0.5 * (1 - share)
    assert one(repetition, "unread", ids=ids, n=n, max_penalty=0.5) == pytest.approx(penalty)


@pytest.mark.parametrize(
    ("text", "of", "n", "share"),
    [
        ("a b A B", "words", 2, 2 / 3),
        ("abab", "characters", 2, 2 / 3),
        ("\u54c8\u54c8\u54c8\u54c8", "characters", 2, 1 / 3),
        ("\u6211\u7231\u5317\u4eac", "characters", 2, 1),
        ("\u6211\u7231\u5317\u4eac", "words", 2, None),
        ("\u0e01\u0e01\u0e01", "characters", 1, 1 / 3),
        ("x=1;x=1;", "characters", 4, 4 / 5),
        ("\U0001f600\U0001f600", "characters", 1, 1 / 2),
        ("", "characters", 1, None),
    ],
)
def test_ngrams_of_words_and_characters(text: str, of: str, n: int, share: float | None) -> None:
    assert one(ngram_diversity, text, n=n, of=of) == share


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (multiple_choice, {"letters": "ABA"}, "settings.letters: 'ABA'"),
        (multiple_choice, {"letters": "abc"}, "settings.letters"),
        (multiple_choice, {"letters": ""}, "settings.letters"),
        (
            multiple_choice,
            {"column": "gold"},
            "settings.column: the prompts table has no column 'gold'; its columns: answer",
        ),
        (exact_match, {"column": "gold"}, "no column 'gold'"),
        (normalized_match, {"column": "gold"}, "no column 'gold'"),
        (regex_match, {"pattern": "a", "column": "gold"}, "no column 'gold'"),
        (regex_match, {"pattern": "(a"}, r"settings.pattern: '\(a': is no regular expression: missing \)"),
        (regex_match, {"pattern": "a", "group": 1}, "settings.group: 1: the pattern has 0 groups"),
        (text_format, {"pattern": "*"}, "settings.pattern"),
        (tag_format, {"tags": ["a", "a"]}, "settings.tags.*one place"),
        (length, {"max_tokens": 3, "min_tokens": 4}, "min_tokens 4, .*in this order"),
        (length, {"max_tokens": 3, "target_tokens": 4}, "target_tokens 4"),
        (length, {"max_tokens": -1}, "max_tokens -1"),
        (cosine_length, {"max_tokens": 0}, "settings.max_tokens: 0: must be greater"),
        (repetition, {"n": 0}, "settings.n: 0: must be greater"),
        (ngram_diversity, {"n": 41}, "settings.n: 41: must be less"),
        (tag_format, {"tags": []}, "settings.tags"),
        (multiple_choice, {"words": [""]}, "settings.words.0: ''"),
        (overlong, {"max_tokens": 3, "cache_tokens": 4}, "cache_tokens 4"),
        (overlong, {"max_tokens": 3, "cache_tokens": 0}, "cache_tokens 0"),
    ],
)
def test_wrong_settings_are_refused_by_a_call_without_rows(
    function: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(prompts=[], completions=[], completion_ids=[], answer=[], **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("math_answer", {"require_boxed": "no"}, "settings.require_boxed: 'no': must be true or false; it is text"),
        ("normalized_match", {"contains": 1}, "settings.contains: 1: must be true or false"),
        ("exact_match", {"after": ""}, "settings.after: '': "),
        ("multiple_choice", {"words": "answer"}, "settings.words: 'answer': must be a list"),
        ("multiple_choice", {"words": [""]}, "settings.words.0: ''"),
        ("normalized_match", {"drop_words": "the"}, "settings.drop_words: 'the': must be a list"),
        ("regex_match", {"pattern": "a", "mode": "match"}, "settings.mode: 'match': must be 'search' or 'fullmatch'"),
        ("tag_format", {"tags": "think"}, "settings.tags: 'think': must be a list"),
        ("tag_format", {"tags": []}, "settings.tags: []"),
        ("tag_format", {"tags": ["a b"]}, "settings.tags.0: 'a b'"),
        ("cosine_length", {"max_tokens": 0}, "settings.max_tokens: 0: must be greater than or equal to 1"),
        ("repetition", {"max_penalty": -1.0}, "settings.max_penalty: -1.0: must be greater than or equal to 0"),
        ("repetition", {"n": 0}, "settings.n: 0: must be greater than or equal to 1"),
        ("ngram_diversity", {"n": 41}, "settings.n: 41: must be less than or equal to 40"),
        ("ngram_diversity", {"of": "letters"}, "settings.of: 'letters': must be 'tokens', 'words' or 'characters'"),
        ("tag_format", {"tags": {"think": 1}}, "settings.tags: must be a list"),
        ("regex_match", {}, "settings.pattern: missing"),
        ("length", {"max_tokens": "9"}, "settings.max_tokens: '9': must be a valid integer; it is text"),
        ("overlong", {"max_tokens": 9, "cache_tokens": 1.5}, "settings.cache_tokens: 1.5: must be a valid integer"),
        ("cosine_length", {"max_tokens": 9, "start": float("nan")}, "settings.start: nan: must be a finite number"),
        (
            "regex_match",
            {"pattern": "a", "group": True},
            "settings.group: True: must be a valid integer or a valid str",
        ),
        ("reward_model", {"model": "m", "score_label": [1]}, "settings.score_label: [1]: must be a valid string or a "),
        ("repetition", {"n": True}, "settings.n: True: must be a valid integer"),
        ("code_tests", {"seconds": 0}, "settings.seconds: 0: must be greater than 0"),
        ("code_tests", {"memory_mib": -1}, "settings.memory_mib: -1: must be greater than or equal to 1"),
        ("code_tests", {"whole_completion": "off"}, "settings.whole_completion: 'off': must be true or false"),
        ("judge", {"model": 7}, "settings.model: 7: must be a valid string"),
    ],
)
def test_a_setting_of_another_type_is_refused_and_never_converted(
    name: str, settings: dict[str, Any], message: str
) -> None:
    """YAML 1.2 reads `no` as a text, which is true to Python; and 0 seconds made every program a wrong one."""
    problem = wrong_settings(REWARDS[name], settings)
    assert problem is not None
    assert problem.startswith(message)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (True, "settings.one: True: must be a valid integer or a valid list"),
        ([1, "b", 3], "settings.one.1: 'b': must be a valid integer; it is text"),  # the list is what was meant
        (0, "settings.one: 0: must be greater than or equal to 1 or a valid list"),
        ({"int": 1}, "settings.one: must be a valid integer or a valid list"),
    ],
)
def test_a_value_that_no_alternative_takes_is_one_line(value: Any, problem: str) -> None:
    def function(*, one: Annotated[int, Field(ge=1)] | list[int], two: int = 0) -> None: ...

    assert (wrong_settings(function, {"one": value}) or "").partition(" (YAML")[0].startswith(problem)
    assert (wrong_settings(function, {"one": value, "two": "x"}) or "").count("\n") == 1
    assert wrong_settings(function, {"one": 1}) is wrong_settings(function, {"one": [1]}) is None


def test_a_worker_refuses_such_a_setting_before_any_row() -> None:
    arguments = ["prompts", "completions", "completion_ids", "prompt_id", "test_list"]
    for loaded, line in [
        (Loaded("mine", None, "code_tests", {"seconds": 0}, arguments), "mine.settings.seconds: 0: must be greater"),
        (
            Loaded("mine", None, "arithmetic_answer", {}, arguments),
            "'answer'.*; name the source's column in prepare.columns",
        ),
    ]:
        with pytest.raises(UserError, match=line), RewardPool([loaded], 1, 60.0) as pool:
            pool.load()


def test_every_setting_has_a_type_that_its_default_keeps() -> None:
    for name, function in REWARDS.items():
        keywords = [each for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
        given = {each.name: each.default for each in keywords if each.default is not each.empty}
        needed = {each.name: {"model": "m", "pattern": "a"}.get(each.name, 9) for each in keywords} | given
        assert wrong_settings(function, needed) is None, name


COLUMNS = {"answer", "generation_prompt", "prompt_id", "test_list", "challenge_test_list", "test_imports"}
COLUMNS |= {"test_setup_code", "test", "entry_point", "inputs", "outputs"}


def test_every_setting_is_a_keyword_of_its_own() -> None:
    """So that a column of the prompts table can be told from a setting by the signature."""
    for name, function in REWARDS.items():
        kinds = {each.name: each.kind for each in inspect.signature(function).parameters.values()}
        positional = [each for each, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert positional[:3] == ["prompts", "completions", "completion_ids"], name
        assert set(positional[3:]) <= COLUMNS, name
        assert list(kinds)[-1] == "columns", name
        assert kinds["columns"] is inspect.Parameter.VAR_KEYWORD, name
