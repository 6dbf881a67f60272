"""What each token of a completion weighs: its importance for the final answer, on a scale around 1 (OAR)."""

from bisect import bisect_left
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.seeds import seed_of
from gift.tables.reference import WEIGHTS
from gift.training.final_answer import Place
from gift.training.reference.importance import Reasoned, by_gradient, perturbed
from gift.training.reference.settings import Oar, OarG, OarP, ReferenceLaunch


def token_weights(
    model: TokenLogprobs,
    rollouts: pa.Table,
    groups: list[list[int]],
    tokenizer: Any,
    settings: Oar,
    launch: ReferenceLaunch,
) -> pa.ListArray:
    """The weights of all tokens of a part of the rollouts, under the policy that sampled them.

    groups: the rows of each prompt. Only tokens before the final answer weigh something other than 1, and only in a
    completion that has an answer.
    """
    prompts, completions = (Ragged.from_arrow(rollouts[name]) for name in ("prompt_ids", "completion_ids"))
    weights = np.ones(len(completions.values), np.float32)
    found: dict[int, Reasoned] = {}
    for row, (text, seed) in enumerate(
        zip(rollouts["completion"].to_pylist(), rollouts["seed"].to_pylist(), strict=True)
    ):
        place = settings.answer.record.place(text, settings.answer.settings)
        if place is not None:
            first, stop = tokens_of(place, text, completions[row], tokenizer)
            if first:
                found[row] = Reasoned(prompts[row], completions[row], first, stop, seed_of("oar_g", seed))
    for row, importance in _importance(model, found, groups, tokenizer, settings, launch.tokens_per_batch).items():
        start = completions.offsets[row]
        weights[start : start + len(importance)] = scaled(importance, settings)
    return Ragged(weights, completions.offsets).to_arrow()


def tokens_of(place: Place, text: str, ids: NDArray[np.int32], tokenizer: Any) -> Place:
    """The tokens that hold characters of a place in the text of a completion: the first, and that behind the last.

    A token ends where the text of all tokens up to it stops being the beginning of the whole; one that adds nothing,
    as a byte of a character does but for its last byte, stands at the character that comes next.
    """
    known: dict[int, int] = {}

    def ends(count: int) -> int:
        if count not in known:
            said = tokenizer.decode(ids[:count].tolist(), skip_special_tokens=True)
            same = (one == other for one, other in zip(said, text, strict=False))
            known[count] = next((place for place, equal in enumerate(same) if not equal), min(len(said), len(text)))
        return known[count]

    begin, end = place
    tokens = range(len(ids))
    first = bisect_left(tokens, True, key=lambda token: ends(token) >= begin or ends(token + 1) > begin)
    return first, bisect_left(tokens, True, lo=first, key=lambda token: ends(token) >= end)


def _importance(
    model: TokenLogprobs,
    found: dict[int, Reasoned],
    groups: list[list[int]],
    tokenizer: Any,
    settings: Oar,
    budget: int,
) -> dict[int, NDArray[np.float64]]:
    """By row the importance of the tokens before its answer."""
    if isinstance(settings, OarP):
        padding = padding_of(tokenizer)
        most = settings.max_tokens
        chosen = {row: each for row, each in found.items() if most is None or each.first <= most}
        return {row: perturbed(model, each, settings.at, padding, budget) for row, each in chosen.items()}
    assert isinstance(settings, OarG)
    index = {row: number for number, row in enumerate(found)}
    own = [[index[row] for row in group if row in index] for group in groups]
    made = by_gradient(model, list(found.values()), [each for each in own if each], settings.at, settings.noise, budget)
    return dict(zip(found, made, strict=True))


def padding_of(tokenizer: Any) -> int:
    """The token that stands in for another: padding or, where the tokenizer has none, its end token."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        "params.yaml: reference.token_weights: oar_p: the policy's tokenizer has neither a padding nor an end token; "
        "use oar_g"
    )


def scaled(importance: NDArray[np.float64], settings: Oar) -> NDArray[np.float64]:
    """u = log1p(importance), from 0 to 1; below its quantile q: max(u / q, floor), else 1 + beta (u - q) / (1 - q)."""
    u = np.log1p(importance)
    u = (u - u.min()) / (np.ptp(u) or 1.0)
    q = np.quantile(u, settings.quantile)
    low, high = u / (q + 1e-8), 1 + settings.beta * (u - q) / (1 - q + 1e-8)
    weights = np.where(u < q, np.maximum(low, settings.floor), high)
    return weights * (len(weights) / weights.sum()) if settings.sum_to_length else weights


def weight_metrics(table: pa.Table) -> dict[str, float]:
    """Of a whole reference table: what its tokens weigh, and how many completions have nothing but weights of 1."""
    column = Ragged.from_arrow(table[WEIGHTS])
    values = column.values.astype(np.float64)
    other = np.logical_or.reduceat(values != 1, column.offsets[:-1])
    return {
        f"{WEIGHTS}/num_unweighted": int((~other).sum()),
        **{f"{WEIGHTS}/{name}": float(getattr(values, name)()) for name in ("mean", "min", "max")},
    }
