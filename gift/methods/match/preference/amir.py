"""AMIR-GRPO (arXiv 2601.03661): GRPO's loss and, beside it, a preference for the better of each pair of a group."""

from __future__ import annotations

from collections.abc import Mapping

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.methods.match.ends import ends
from gift.methods.match.policy_gradient.clipped import Clipped, of_tokens
from gift.project.sections import Positive, Section, Share


class Amir(Section):
    """The defaults of the authors' code, but for the margin, which is `shape: all_pairs`'s: 1.5 of rewards beyond 1."""

    weight: Positive = 0.01
    beta: Positive = 0.2
    ref_free: bool = True
    adaptive: bool = True
    clip_low: Share = 0.2
    clip_high: Positive = 0.2


def amir(groups: Groups, targets: Targets, outputs: Outputs, settings: Amir) -> Loss:
    """GRPO's clipped loss + weight x mean over pairs of -log sigmoid(beta (q_better - q_worse)).

    q is the mean logprob of a completion's tokens, as in SimPO; with `ref_free: false` less that of the reference.
    """
    from torch.nn.functional import logsigmoid

    clip = Clipped(clip_low=settings.clip_low, clip_high=settings.clip_high)
    tokens, _ = of_tokens(groups, targets, outputs, clip)
    surrogate = groups.mean_tokens(tokens).where(groups.mask, 0.0)
    base = outputs.logprobs if settings.ref_free else outputs.logprobs - groups.ref_logprobs
    better, worse = ends(targets, groups.mean_tokens(base))
    preference = -logsigmoid(settings.beta * (better - worse))
    step = groups.step
    value = surrogate.sum() / step.num_completions + settings.weight * preference.sum() / max(1, step.num_pairs)
    known = surrogate.detach().where(groups.mask, float("nan"))
    return Loss(value, {"surrogate": known, "preference": preference.detach()})


def follow(settings: Amir, metrics: Mapping[str, float | None]) -> Amir:
    """The weight, larger where the second term is below 0.3 of the first, smaller where above 0.7 (their numbers).

    On the policy that sampled the first term is 0, or negative: the weight then falls to its least. The authors' code
    weighs the step itself with the new weight, here it is that of the next one.
    """
    surrogate, preference = metrics["surrogate"], metrics["preference"]
    if not settings.adaptive or surrogate is None or preference is None:
        return settings
    share = settings.weight * preference / max(1e-9, surrogate)
    if share < 0.3:
        return settings.model_copy(update={"weight": min(0.05, settings.weight * 1.25)})
    if share > 0.7:
        return settings.model_copy(update={"weight": max(0.005, settings.weight * 0.8)})
    return settings


METHOD = Match(
    Amir,
    amir,
    metrics=("surrogate", "preference"),
    adapt=follow,
    takes=("pairs",),
    shapes=("all_pairs",),
    aggregate=lambda _: "grpo",
)
