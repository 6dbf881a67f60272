"""What a round trains on: which completions, towards which targets; and the ledger of the others."""

from dataclasses import dataclass, replace

from gift.methods.groups import Groups, Targets
from gift.methods.shape.zscore import EPS
from gift.training.settings import Update


@dataclass(frozen=True)
class Chosen:
    """A round's groups, in which the completions that train are in the mask; their targets, each within its group."""

    groups: Groups
    targets: Targets
    indices: list[int]  # groups that train
    ledger: dict[str, int]


def choose(groups: Groups, update: Update) -> Chosen:
    """Select, shape, then drop the groups in which nothing is at stake; the sums of the ledger close.

    Of `groups` the scored completions are in the mask. A group with fewer than two has nothing to compare.
    """
    scored = kept = groups.mask
    for select in update.select:
        kept = select.record.keep(replace(groups, mask=kept), select.settings)
    enough = kept.sum(-1) >= 2
    groups = replace(groups, mask=kept & enough.unsqueeze(-1))
    targets: Targets = update.shape.record.within(groups, update.shape.settings)
    at_stake = (targets.completions.abs() > EPS).any(-1)
    chosen = enough & at_stake if update.zero_targets == "drop" else enough
    unscored = scored.sum(-1) < 2
    ledger = {
        "num_groups": len(scored),
        "num_completions": scored.numel(),
        "num_completions_unscored": int((~scored).sum()),
        "num_completions_not_selected": int((scored & ~kept).sum()),
        "num_groups_unscored": int(unscored.sum()),
        "num_groups_not_selected": int((~enough & ~unscored).sum()),
        "num_groups_zero_targets": int((enough & ~at_stake).sum()),
        "num_groups_selected": int(chosen.sum()),
    }
    return Chosen(groups, targets, chosen.nonzero().squeeze(-1).tolist(), ledger)
