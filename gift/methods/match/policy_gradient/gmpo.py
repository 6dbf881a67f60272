"""GMPO (arXiv 2507.20673): one ratio a completion, the geometric mean of its tokens' clipped ratios."""

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section


class Gmpo(Section):
    """Limits of a token's log-ratio, in nats: the paper's and TRL's, ratios of exp(-.4) to exp(.4). verl has 0.2."""

    clip_low: Positive = 0.4
    clip_high: Positive = 0.4


def gmpo(groups: Groups, targets: Targets, outputs: Outputs, settings: Gmpo) -> Loss:
    """Mean over completions of -A exp(mean over tokens of the clipped log-ratio).

    A token's log-ratio is cut at clip_high where A > 0, at -clip_low elsewhere: on the side where it has moved enough.
    """
    log_ratio, target = outputs.logprobs - groups.old_logprobs, targets.completions
    raised = groups.to_tokens(target > 0)
    limited = log_ratio.clamp_max(settings.clip_high).where(raised, log_ratio.clamp_min(-settings.clip_low))
    loss = -(target * groups.mean_tokens(limited).exp()).where(groups.mask, 0.0)
    clipped = (limited != log_ratio).to(limited.dtype).detach()
    known = clipped.where(groups.to_tokens(groups.mask), float("nan"))
    return Loss(loss.sum() / groups.step.num_completions, {"clip_ratio": known})


METHOD = Match(Gmpo, gmpo, metrics=("clip_ratio",), coupled=False, aggregate=lambda _: "grpo")
