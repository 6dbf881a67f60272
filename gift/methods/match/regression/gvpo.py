"""GVPO (arXiv 2504.19599): regress the centred log-ratio on the centred reward, with one optimum for each beta."""

from gift.methods.groups import Anchor, Groups, Loss, Match, Outputs, Targets
from gift.methods.statistics import centre
from gift.project.sections import Positive, Section


class Gvpo(Section):
    """The authors' code measures from the policy that the round started from; the theory allows any fixed anchor."""

    anchor: Anchor = "old"
    beta: Positive = 0.1


def gvpo(groups: Groups, targets: Targets, outputs: Outputs, settings: Gvpo) -> Loss:
    """Mean over groups of sum_i 1/2 [beta (l_i - mean l) - A_i]^2 / (n - 1), l_i the summed log-ratio in nats.

    With `shape: centred` A_i = r_i - mean r, and the optimum is pi_anchor exp(r / beta) / Z.
    """
    log_ratio = groups.sum_tokens(outputs.logprobs - groups.anchor(settings.anchor))
    residual = settings.beta * centre(log_ratio, groups.mask) - targets.completions
    squares = (residual.square() / 2).where(groups.mask, 0.0).sum(-1)
    loss = squares / (groups.mask.sum(-1) - 1).clamp_min(1)
    return Loss(loss.sum() / groups.step.num_groups, {})


METHOD = Match(Gvpo, gvpo, anchor=lambda settings: settings.anchor)
