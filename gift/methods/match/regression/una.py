"""UNA (arXiv 2408.15339): the sigmoid of the implicit reward regressed on a reward in [0, 1]; no group is needed."""

from typing import Literal

from gift.methods.groups import Anchor, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section


class Una(Section):
    """The paper's numbers for scores. For labels, 0 or 1, it has bce and beta 0.01.

    Its online code measures from the policy that sampled, which is `anchor: old`.
    """

    loss: Literal["mse", "bce"] = "mse"
    anchor: Anchor = "reference"
    beta: Positive = 0.03


def una(groups: Groups, targets: Targets, outputs: Outputs, settings: Una) -> Loss:
    """Mean over completions of (sigmoid(beta l) - A)^2, or of their binary cross-entropy; l the summed log-ratio.

    With `shape: raw` A is the reward, in [0, 1]. Nothing is centred: log Z(x) is taken for 0, and not cancelled.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    log_ratio = groups.sum_tokens(outputs.logprobs - groups.anchor(settings.anchor))
    implicit = (settings.beta * log_ratio).where(groups.mask, 0.0)
    target = targets.completions.to(implicit.dtype)
    if settings.loss == "bce":
        loss = binary_cross_entropy_with_logits(implicit, target, reduction="none")
    else:
        loss = (implicit.sigmoid() - target).square()
    score = implicit.detach().sigmoid().where(groups.mask, float("nan"))
    return Loss(loss.where(groups.mask, 0.0).sum() / groups.step.num_completions, {"score": score})


METHOD = Match(
    Una,
    una,
    metrics=("score",),
    coupled=False,
    anchor=lambda settings: settings.anchor,
    bounds=(0.0, 1.0),
    learns_from_zero=True,
)
