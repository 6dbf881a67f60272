"""pair_regression: differences of implicit rewards regressed on differences of rewards, pair by pair.

What arXiv 2508.07137 says of its loss (a finite difference of logits, dictated by the reward) fits this one, but its
equation could not be read: this is not offered as that paper's. Over all pairs of rewards that differ it is GVPO.
"""

from gift.methods.groups import Anchor, Groups, Loss, Match, Outputs, Targets
from gift.methods.match.ends import ends
from gift.project.sections import Positive, Section


class PairRegression(Section):
    """DPO's beta and anchor: no source has others."""

    anchor: Anchor = "reference"
    beta: Positive = 0.1


def pair_regression(groups: Groups, targets: Targets, outputs: Outputs, settings: PairRegression) -> Loss:
    """Mean over pairs of [beta (l_better - l_worse) - (r_better - r_worse)]^2, l the summed log-ratio in nats.

    r are the rewards themselves. Where all are met, pi is pi_anchor exp(r / beta) / Z on the pairs.
    """
    log_ratio = groups.sum_tokens(outputs.logprobs - groups.anchor(settings.anchor))
    better, worse = ends(targets, settings.beta * log_ratio - groups.rewards.to(log_ratio.dtype))
    return Loss((better - worse).square().sum() / max(1, groups.step.num_pairs), {})


METHOD = Match(PairRegression, pair_regression, anchor=lambda settings: settings.anchor, takes=("pairs",), given=True)
