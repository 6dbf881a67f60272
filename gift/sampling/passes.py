"""A round that rewards decide: pass after pass is sampled and scored, and what is kept becomes the rollouts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from gift.methods.sample.passes import Ask, Got, Passes
from gift.project.ragged import Ragged
from gift.sampling.engine.requests import Completion, Request
from gift.tables.parts import keys_of, read_table
from gift.tables.rollouts import ROLLOUTS, check_rollouts

Groups = dict[str, list[Request]]
Rewards = Mapping[tuple[str, int], float | None]


@dataclass(frozen=True)
class Kept:
    """A group that is kept: its requests, what was sampled, and the engine's name and version."""

    requests: list[Request]
    completions: list[Completion]
    engine: str


@dataclass(frozen=True)
class Spent:
    """What a round sampled, thrown away included."""

    num_passes: int
    num_groups_sampled: int
    num_completions_sampled: int
    num_tokens_sampled: int


def run_passes(
    way: Passes,
    folder: Path,
    requests_of: Callable[[Sequence[Ask], int], Groups],
    write: Callable[[Path, Groups], None],
    score: Callable[[Path, int], Rewards],
) -> tuple[dict[str, Kept], Spent]:
    """Drive `way` to its end; returns the groups that it keeps, by prompt_id, sorted.

    requests_of: the requests of a pass's asks. write: samples them into a folder. score: the rewards of that folder, by
    prompt and sample. Each pass has a folder of its own below `folder`; what is there already is not made again.
    """
    found: dict[Ask, Kept] = {}
    asks, number = next(way), 0
    while True:
        rollouts = folder / f"pass-{number}" / "rollouts"
        groups = requests_of(asks, number)
        write(rollouts, groups)
        table, source = read_table(rollouts, ROLLOUTS, check_rollouts)
        rewards = score(rollouts, number)
        texts = dict(zip(keys_of(table), table["completion"].to_pylist(), strict=True))
        sampled = _by_prompt(table)
        places = {ask: [(ask.prompt_id, sample) for sample in range(ask.count)] for ask in asks}
        found |= {ask: Kept(groups[ask.prompt_id], sampled[ask.prompt_id], source["engine"]) for ask in asks}
        got = [
            Got(ask, [texts[key] for key in keys], [rewards.get(key) for key in keys]) for ask, keys in places.items()
        ]
        try:
            asks, number = way.send(got), number + 1
        except StopIteration as end:
            kept = {ask.prompt_id: found[ask] for ask in sorted(end.value, key=lambda ask: ask.prompt_id)}
            return kept, _spent(found, number + 1)


def _by_prompt(table: pa.Table) -> dict[str, list[Completion]]:
    ids, logprobs = (Ragged.from_arrow(table[name]) for name in ("completion_ids", "rollout_logprobs"))
    found: dict[str, list[Completion]] = {}
    for row, (prompt_id, reason) in enumerate(
        zip(table["prompt_id"].to_pylist(), table["finish_reason"].to_pylist(), strict=True)
    ):
        found.setdefault(prompt_id, []).append(Completion(ids[row], logprobs[row], reason))
    return found


def _spent(found: Mapping[Ask, Kept], num_passes: int) -> Spent:
    completions = [completion for kept in found.values() for completion in kept.completions]
    tokens = sum(len(completion.completion_ids) for completion in completions)
    return Spent(num_passes, len(found), len(completions), tokens)
