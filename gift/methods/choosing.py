"""Which completions of a round train, and for which targets; the ledger of all others."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

from gift.methods.groups import Groups, Targets
from gift.methods.statistics import EPS
from gift.project.errors import UserError

TOO_FEW_REWARDS = "update.match: {} chooses among reward functions, and score.rewards has {}; add one, or another match"


class Methods(Protocol):
    """What of the section `update` says which completions train."""

    @property
    def select(self) -> list[Any]: ...

    @property
    def shape(self) -> Any: ...

    @property
    def match(self) -> Any: ...

    @property
    def kl_in_reward(self) -> float: ...

    @property
    def zero_targets(self) -> str: ...


@dataclass(frozen=True)
class Chosen:
    """A round's groups, in which the completions that train are in the mask; their targets, each within its group."""

    groups: Groups
    targets: Targets
    indices: list[int]  # groups that train
    ledger: dict[str, int]


def choose(groups: Groups, update: Methods) -> Chosen:
    """Select, shape, then drop the groups in which nothing is at stake; the sums of the ledger close.

    Of `groups` the scored completions are in the mask. A group with fewer than two has nothing to compare. Given
    answers are no matter of `select`, nor of `kl_in_reward`; a shape that makes no targets of them leaves them out.
    """
    known, scored, there = groups.mask, groups.mask & groups.sampled, groups.lengths > 0
    given = (known & ~groups.sampled) if update.shape.record.given else known.new_zeros(known.shape)
    kept = scored
    if update.kl_in_reward:
        drift = groups.sum_tokens(groups.old_logprobs - groups.ref_logprobs).where(groups.sampled, 0.0)
        groups = replace(groups, rewards=(groups.rewards - update.kl_in_reward * drift).where(known, 0.0))
    for select in update.select:
        kept = select.record.keep(replace(groups, mask=kept), select.settings)
    enough = kept.any(-1) & ((kept | given).sum(-1) >= 2)
    groups = replace(groups, mask=(kept | given) & enough.unsqueeze(-1))
    targets: Targets = update.shape.record.within(groups, update.shape.settings)
    _check_bounds(groups, targets, update)
    at_stake = (targets.completions.abs() > EPS).any(-1)
    chosen = enough & at_stake if update.zero_targets == "drop" else enough
    unscored = ~scored.any(-1) | ((scored | given).sum(-1) < 2)
    ledger = {
        "num_groups": len(scored),
        "num_completions": int((groups.sampled & there).sum()),
        "num_completions_unscored": int((groups.sampled & there & ~known).sum()),
        "num_completions_not_selected": int((scored & ~kept).sum()),
        "num_groups_unscored": int(unscored.sum()),
        "num_groups_not_selected": int((~enough & ~unscored).sum()),
        "num_groups_zero_targets": int((enough & ~at_stake).sum()),
        "num_groups_selected": int(chosen.sum()),
    }
    if not groups.sampled.all():
        ledger |= {
            "num_given": int((~groups.sampled).sum()),
            "num_given_unscored": int((~groups.sampled & ~known).sum()),
            "num_given_not_used": int((~groups.sampled & known & ~given).sum()),
            "num_given_not_selected": int((given & ~chosen.unsqueeze(-1)).sum()),
            "num_given_selected": int((given & chosen.unsqueeze(-1)).sum()),
        }
    return Chosen(groups, targets, chosen.nonzero().squeeze(-1).tolist(), ledger)


def _check_bounds(groups: Groups, targets: Targets, update: Methods) -> None:
    """Refuse rewards, and targets, that the loss has no value for."""
    match, shape = update.match, update.shape
    if len(groups.names) < match.record.least_rewards:
        raise UserError(f"params.yaml: {TOO_FEW_REWARDS.format(match.name, len(groups.names))}")
    if match.record.bounds is None:
        return
    least, most = match.record.bounds
    beyond = (targets.completions < least - EPS) | (targets.completions > most + EPS)
    outside = targets.completions[groups.mask & beyond]
    if len(outside):
        raise UserError(
            f"params.yaml: update.match: {match.name} takes targets between {least:g} and {most:g}, but shape: "
            f"{shape.name} made {len(outside)} others of these rewards, the first {outside[0].item():g}; change the "
            "weights of score.rewards, or map them (update.shape: {raw: {map: sigmoid}})"
        )
