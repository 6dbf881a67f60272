"""The answers to the held-out prompts for a page: of each policy which are right, and what it answered greedily."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from gift.evaluation.paired import paired
from gift.project.errors import UserError
from gift.report.page.kept import Made
from gift.report.page.rollouts import MAX_LISTED, chosen, completion, fitting, prompt, short
from gift.report.rows import Key, Places, briefs_of, prompts_of, read_rows, rights_of, rows_of

GREEDY = 0
"""The sample that is the greedy answer."""


def _accuracy(rights: Mapping[Key, float]) -> float | None:
    greedy = [right for (_, sample), right in rights.items() if sample == GREEDY]
    return fmean(greedy) if greedy else None


class Answers(NamedTuple):
    """By prompt and sample: 1 or 0 where the settings say what is right, which may be nowhere; the rewards."""

    rights: Mapping[Key, float]
    rewards: Mapping[Key, float | None]


Reader = Callable[[str], Answers]
"""`values_of`, or what remembers what it said."""


def answers_of(name: str, room: int, read: Reader) -> Made:
    """By prompt, in the order of their ids: the greedy answer's value, the mean of the sampled ones', and its text.

    Values are 1 (right) and 0 (wrong) where the settings say what is right (`judged`), else rewards.
    """
    places = Places.of(Path("data/rounds", name), answers=True)
    rights, rewards = read(name)
    values: Mapping[Key, float | None] = rights or rewards
    prompt_ids = sorted({key[0] for key in values})[:MAX_LISTED]
    sampled: dict[str, list[float]] = {}
    for (prompt_id, sample), value in values.items():
        if sample != GREEDY and value is not None:
            sampled.setdefault(prompt_id, []).append(value)
    groups = {key: [row for row in rows if row.sample == GREEDY] for key, rows in briefs_of(places).items()}
    names = chosen(prompt_ids, groups, room)
    rows = rows_of(places, names)
    texts = ((each, completion(rows[each, GREEDY])) for each in names if (each, GREEDY) in rows)
    return {
        "name": name,
        "judged": bool(rights),
        "accuracy": _accuracy(rights),
        "num_prompts": len({key[0] for key in values}),
        "ids": prompt_ids,
        "greedy": [short(values.get((prompt_id, GREEDY))) for prompt_id in prompt_ids],
        "sampled": [short(fmean(sampled[each])) if each in sampled else None for each in prompt_ids],
        "texts": fitting(texts, room),
    }


def values_of(name: str) -> Answers:
    """What a policy's answers are worth."""
    scores = Places.of(Path("data/rounds", name), answers=True).scores
    rewards = read_rows(scores, None, ["prompt_id", "sample", "reward"])
    return Answers(rights_of(scores), {key: row["reward"] for key, row in rewards.items()})


def held_out_prompts(prompt_ids: list[str]) -> Made:
    """The prompts of these answers, as the page reads them; none where their table is another by now."""
    try:
        found = prompts_of(Places.of(Path("data/rounds/base"), answers=True), prompt_ids)
    except UserError:
        return {}
    return {prompt_id: prompt(columns) for prompt_id, columns in found.items()}


def difference(before: str, after: str, read: Reader) -> Made:
    """How a policy's answers differ from another's, on common prompts: in what is right, else in rewards.

    `greedy`, `sampled`: mean and the ends of its 95 % interval; `gained`, `lost`: numbers of prompts.
    """
    one, other = read(before), read(after)
    judged = bool(one.rights and other.rights)
    pair = [_known(each.rights if judged else each.rewards) for each in (one, other)]
    found: Made = {"name": after, "since": before, "judged": judged}
    for what in ("greedy", "sampled"):
        with suppress(UserError):  # no prompt has such answers of both
            said = paired(pair[0], pair[1], greedy=what == "greedy")
            found[what] = [short(each) for each in (said.mean, *said.interval)]
            found |= {"gained": len(said.gained), "lost": len(said.lost), "num_prompts": said.num_prompts}
    return found


def _known(values: Mapping[Key, float | None]) -> dict[Key, float]:
    return {key: value for key, value in values.items() if value is not None}
