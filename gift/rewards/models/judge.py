"""Reward by a language model as judge: a score by a rubric, or comparisons in pairs, over an OpenAI-compatible API."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gift.project.errors import UserError
from gift.project.sections import Count, Positive, Section
from gift.rewards.models.judge_client import Body, Line, ask_all
from gift.rewards.models.judge_questions import pair_question, prompt_text, read_points, read_score, score_question
from gift.rewards.signature import takes
from gift.rewards.text import Completion, completion_text

OWN_KEYS = ("messages", "model", "n", "stream")


class JudgeSettings(Section):
    """The settings of `judge`."""

    model: str
    mode: Literal["rubric", "pairwise"] = "rubric"
    rubric: Annotated[str, Field(min_length=1)] | None = None
    scale: list[int] = Field([1, 10], min_length=2, max_length=2)
    reference_column: str | None = None
    against_column: str | None = None
    num_opponents: Count = 2
    seed: int = 0
    max_tokens: Count = 1024
    extra_body: dict[str, Any] = Field(default_factory=dict)
    concurrency: Count = 16
    request_timeout_seconds: Positive = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 4

    @field_validator("scale")
    @classmethod
    def rises(cls, scale: list[int]) -> list[int]:
        if scale[0] >= scale[1]:
            raise ValueError("must be [lowest, highest], such as [1, 10]")
        return scale

    @field_validator("extra_body")
    @classmethod
    def leaves_our_keys(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        if taken := next((key for key in OWN_KEYS if key in extra_body), None):
            raise ValueError(f"must not hold {taken}, which is not free")
        return extra_body


@takes(JudgeSettings)
def judge(
    prompts: Sequence[str | list[dict[str, str]]],
    completions: Sequence[Completion],
    completion_ids: Sequence[Any],
    prompt_id: Sequence[str],
    *,
    settings: JudgeSettings,
    **columns: Any,
) -> list[float | Exception]:
    """The judge's opinion of each completion, from 0 to 1 (docs/judges.md).

    `rubric`: a score on `scale`, by the criteria of the setting `rubric` and, where named, a reference answer in
    `reference_column`. `pairwise`: the mean over comparisons, each asked in both orders, of 1 (won), 0.5 or 0 (lost);
    with the text in `against_column`, or (null) of each completion with the next `num_opponents` of its group in a
    cycle, for which the call must hold whole groups (`batch: group`). A request that fails, or an answer without a
    verdict on its last line, is the error of the rows it is about.
    """
    asked = [prompt_text(prompt) for prompt in prompts]
    texts = [completion_text(completion) for completion in completions]
    if settings.mode == "pairwise" and settings.against_column is None:
        return _in_groups(settings, asked, texts, prompt_id)
    setting = "reference_column" if settings.mode == "rubric" else "against_column"
    name = getattr(settings, setting)
    others: list[Any] = [None] * len(texts) if name is None else _column(columns, setting, name)
    known = [
        (prompt, text, other)
        for prompt, text, other in zip(asked, texts, others, strict=True)
        if not isinstance(other, Exception)
    ]
    values = iter(_score(settings, known) if settings.mode == "rubric" else _compare(settings, known))
    return [other if isinstance(other, Exception) else next(values) for other in others]


def _score(settings: JudgeSettings, rows: list[tuple[str, str, Any]]) -> list[float | Exception]:
    """The score of each (prompt, completion, reference answer or None)."""
    questions = [score_question(*row, settings.rubric, settings.scale) for row in rows]
    return _verdicts(settings, questions, lambda text: read_score(text, settings.scale))


def _in_groups(
    settings: JudgeSettings, prompts: list[str], texts: list[str], prompt_id: Sequence[str]
) -> list[float | Exception]:
    """The mean result of each row's comparisons; every comparison counts for both of its rows."""
    groups: dict[str, list[int]] = {}
    for row, each in enumerate(prompt_id):
        groups.setdefault(each, []).append(row)
    pairs = [pair for rows in groups.values() for pair in cycle(rows, settings.num_opponents)]
    results = _compare(settings, [(prompts[one], texts[one], texts[two]) for one, two in pairs])
    of_row: list[list[float | Exception]] = [[] for _ in texts]
    for (one, two), result in zip(pairs, results, strict=True):
        of_row[one].append(result)
        of_row[two].append(result if isinstance(result, Exception) else 1 - result)
    return [_mean(each) for each in of_row]


def cycle(rows: list[int], num_opponents: int) -> list[tuple[int, int]]:
    """Each row with the `num_opponents` after it, the last followed by the first; no pair twice.

    From half of the rows on that is everyone against everyone.
    """
    size = len(rows)
    steps = range(1, min(num_opponents, size // 2) + 1)
    ends = [(place, (place + step) % size) for step in steps for place in range(size)]
    return list(dict.fromkeys((rows[min(pair)], rows[max(pair)]) for pair in ends))


def _mean(results: list[float | Exception]) -> float | Exception:
    if not results:
        return ValueError("pairwise compares completions of one group, and this call holds one: set batch: group")
    failed = next((result for result in results if isinstance(result, Exception)), None)
    return failed or math.fsum(results) / len(results)  # type: ignore[arg-type]  # none failed


def _compare(settings: JudgeSettings, pairs: list[tuple[str, str, str]]) -> list[float | Exception]:
    """For each (prompt, one, two) the share of the point that `one` gets; equal texts are a tie and are not asked."""
    different = [pair for pair in dict.fromkeys(pairs) if pair[1] != pair[2]]
    questions = []
    for prompt, one, two in different:  # in both orders: a judge that prefers a place gives each half a point
        questions += [pair_question(prompt, *order, settings.rubric) for order in ((one, two), (two, one))]
    points = _verdicts(settings, questions, read_points)
    results: dict[tuple[str, str, str], float | Exception] = {}
    for pair, first, second in zip(different, points[::2], points[1::2], strict=True):
        results[pair] = _mean([first, second if isinstance(second, Exception) else 1 - second])
    return [results.get(pair, 0.5) for pair in pairs]


def _verdicts(settings: JudgeSettings, questions: list[str], read: Callable[[str], float]) -> list[float | Exception]:
    """What the judge's answers to the questions say, read by `read`, or why there is no verdict."""
    line = Line(settings.concurrency, settings.request_timeout_seconds, settings.max_retries)
    verdicts: list[float | Exception] = []
    for answer in ask_all([_body(settings, question) for question in questions], line):
        try:
            verdicts.append(answer if isinstance(answer, Exception) else read(answer))
        except ValueError as problem:
            verdicts.append(problem)
    return verdicts


def _body(settings: JudgeSettings, question: str) -> Body:
    """The request; a key of `extra_body` goes before ours, and null leaves one out."""
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "seed": settings.seed,
        "max_tokens": settings.max_tokens,
        **settings.extra_body,
    }
    return {key: value for key, value in body.items() if value is not None}


def _column(columns: dict[str, Any], setting: str, name: str) -> list[str | Exception]:
    """The texts of a column of the prompts table; a row without one is that row's error."""
    if name not in columns:
        known = ", ".join(column for column in columns if column != "generation_prompt")  # of the rollouts
        raise UserError(f"judge: settings.{setting}: '{name}': the prompts table has no such column; it has {known}")
    texts: list[str | Exception] = []
    for value in columns[name]:
        text = str(value) if isinstance(value, (str, int, float)) else ""
        texts.append(text if text.strip() else ValueError(f"the column {name} holds no text: {value!r}"))
    return texts
