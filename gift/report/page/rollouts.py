"""The rollouts of a round for a page: numbers of its groups, and the texts of as many as there is room for."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gift.project.rounds import Round
from gift.report.page.kept import Made
from gift.report.page.targets import targets_of
from gift.report.page.tokens import Pieces, tokenizer_of
from gift.report.rows import BY, Brief, Key, Places, Row, briefs_of, prompts_of, read_rows, rows_of, turns

MAX_LISTED = 2000
"""Groups of a round in the table of a page."""
MAX_TEXT = 4000
"""Characters of a text; of a longer one the beginning, and how many more there are."""
MAX_CELL = 300
MAX_COLUMNS = 8
ROW, BYTES = 200, 10
"""About what a completion takes in the page, and each token of it."""


def chosen(order: Sequence[str], groups: Mapping[str, Sequence[Brief]], room: int) -> list[str]:
    """Groups whose texts will take about so many bytes, the first that fit; the first of all, if none does."""
    found = []
    for prompt_id in order:
        size = sum(ROW + BYTES * min(row.num_tokens, MAX_TEXT // 4) for row in groups[prompt_id])
        if size <= room:
            found.append(prompt_id)
            room -= size
        if room < ROW:
            break
    return found or list(order[:1])


def fitting(made: Iterable[tuple[str, Made]], room: int) -> Made:
    """As many of these as take no more bytes; of the first, if none fits, the beginnings of its texts."""
    found: Made = {}
    first = None
    for prompt_id, each in made:
        size = len(json.dumps(each))
        if size <= room:
            found[prompt_id] = each
            room -= size
        first = first or (prompt_id, each)
    if not found and first:
        found = {first[0]: _shortened(first[1], room)}
    return found


def _shortened(made: Made, room: int) -> Made:
    """A group, or an answer, whose texts are cut to about so many bytes; nothing of the tokens stays."""
    rows = made.get("rows", [made])
    most = max(room // (2 * max(len(rows), 1)), 80)
    for row in rows:
        row["more"] = row.get("more", 0) + max(len(row["text"]) - most, 0)
        row["text"] = row["text"][:most]
        row.pop("tokens", None)
        row.pop("ratios", None)
    return made


def rollouts_of(each: Round, room: int) -> Made:
    """A round's groups. `listed` has columns of numbers, a row a group; `texts` the groups with their completions.

    `num_groups` and `num_rows` count all; where not all are listed or have texts, the choice is that of the ids, which
    are random and the same in every round, behind the extremes (`_first`).
    """
    folder = Path("data/rounds", each.name)
    places = Places.of(folder, answers=False)
    groups = briefs_of(places)
    targets = targets_of(each.name, folder, sum(map(len, groups.values())))
    listed = sorted(groups)[:MAX_LISTED]
    policies = (Path("data/rounds", parent, "policy") for parent in (each.parent, "base"))
    table = _listed(listed, groups)
    names = chosen(list(dict.fromkeys([*_first(table), *listed])), groups, room)
    return {
        "name": each.name,
        "parent": each.parent,
        "num_groups": len(groups),
        "num_rows": sum(map(len, groups.values())),
        "listed": table,
        "texts": fitting(_groups(places, names, targets, tokenizer_of(*policies)), room),
        "targets": targets if isinstance(targets, str) else None,
    }


def _first(listed: Made) -> Iterator[str]:
    """The ends of each order: of rewards, their spread and lengths; then what failed or was cut."""
    for by in BY:
        known = [(value, name) for value, name in zip(listed[by], listed["id"], strict=True) if value is not None]
        order = [name for _, name in sorted(known)]
        yield from [*order[:2], *order[-2:]]
    for count in ("failed", "truncated"):
        yield from [name for number, name in zip(listed[count], listed["id"], strict=True) if number][:2]


def _rewards(rows: Sequence[Brief]) -> list[float]:
    return [row.reward for row in rows if row.reward is not None]


def _listed(names: Sequence[str], groups: Mapping[str, Sequence[Brief]]) -> Made:
    """Mean reward and standard deviation (null without any), mean tokens, how many have no reward or were cut."""
    found: Made = {name: [] for name in ("id", "reward", "spread", "length", "size", "failed", "truncated")}
    for name in names:
        rows, rewards = groups[name], _rewards(groups[name])
        cells = {
            "id": name,
            **{by: short(BY[by](rewards, [])) if rewards else None for by in ("reward", "spread")},
            "length": short(fmean(row.num_tokens for row in rows)),
            "size": len(rows),
            "failed": len(rows) - len(rewards),
            "truncated": sum(row.finish_reason == "length" for row in rows),
        }
        for key, value in cells.items():
            found[key].append(value)
    return found


def _groups(
    places: Places, prompt_ids: Sequence[str], targets: Mapping[Key, float] | str, pieces: Pieces | None
) -> Iterator[tuple[str, Made]]:
    prompts, rows = prompts_of(places, prompt_ids), rows_of(places, prompt_ids)
    ids = read_rows(places.rollouts, prompt_ids, ["prompt_id", "sample", "completion_ids"])
    folder = places.rollouts.with_name("reference")
    logprobs = read_rows(folder, prompt_ids) if folder.is_dir() else {}
    samples: dict[str, list[Key]] = {}
    for key in rows:
        samples.setdefault(key[0], []).append(key)
    for prompt_id in prompt_ids:
        made = []
        for key in samples[prompt_id]:
            one = completion(row := rows[key])
            if not isinstance(targets, str):
                one["target"] = short(targets.get(key))
            cut = pieces.lengths(ids[key]["completion_ids"], row.text) if pieces else None
            if cut is not None and key in logprobs:
                pairs = zip(logprobs[key]["old_logprobs"], logprobs[key]["ref_logprobs"], strict=True)
                ratios = [old - ref for old, ref in pairs]
                if all(map(math.isfinite, ratios)):
                    one["tokens"] = list(_until(MAX_TEXT, cut))
                    one["ratios"] = [round(100 * ratio) for ratio in ratios[: len(one["tokens"])]]
            made.append(one)
        yield prompt_id, {**prompt(prompts[prompt_id]), "rows": made}


def _until(most: int, lengths: Sequence[int]) -> Iterator[int]:
    """Those of the tokens that end within so many characters."""
    end = 0
    for length in lengths:
        end += length
        if end > most:
            return
        yield length


def completion(row: Row) -> Made:
    """A completion as the page reads it; `more` counts the characters that are left out."""
    found: Made = {"sample": row.key[1], "text": row.text[:MAX_TEXT], "num_tokens": row.num_tokens}
    found |= {"end": row.finish_reason, "reward": short(row.reward)}
    found["rewards"] = {name: value if isinstance(value, str) else short(value) for name, value in row.rewards.items()}
    if row.messages:
        found["messages"] = {name: said[:MAX_CELL] for name, said in row.messages.items()}
    if more := max(len(row.text) - MAX_TEXT, 0):
        found["more"] = more
    return found


def prompt(columns: Mapping[str, Any]) -> Made:
    """A prompt's messages as [role, text], and its other columns as texts."""
    said = turns(columns.get("messages") or columns["prompt"])
    others = [(name, str(value)) for name, value in columns.items() if name not in ("prompt", "messages")]
    return {
        "prompt": [[role, text[:MAX_TEXT]] for role, text in said],
        "columns": {name: text[:MAX_CELL] for name, text in others[:MAX_COLUMNS]},
    }


def short(value: float | None) -> float | None:
    """A number with four digits: pages need no more, and are smaller; null where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
