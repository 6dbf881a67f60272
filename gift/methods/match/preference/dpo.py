"""DPO (arXiv 2305.18290) on the best and the worst completion of a group."""

from gift.methods.groups import Anchor, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section


class Dpo(Section):
    """The paper's beta; the anchor of its implicit reward is the reference."""

    anchor: Anchor = "reference"
    beta: Positive = 0.1


def dpo(groups: Groups, targets: Targets, outputs: Outputs, settings: Dpo) -> Loss:
    """Mean over groups of -log sigmoid(beta (l_better - l_worse)), l the summed log-ratio in nats.

    The targets are those of `shape: pairs`, +1 and -1; a group without a pair adds nothing.
    """
    from torch.nn.functional import logsigmoid

    log_ratio = groups.sum_tokens(outputs.logprobs - groups.anchor(settings.anchor))
    target = targets.completions.to(log_ratio.dtype)
    margin = settings.beta * (target * log_ratio).where(target != 0, 0.0).sum(-1)
    paired = (target != 0).any(-1)
    value = -logsigmoid(margin).where(paired, 0.0).sum() / groups.step.num_groups
    unknown = float("nan")
    accuracy = (margin > 0).to(margin.dtype).where(paired, unknown)
    return Loss(value, {"margin": margin.detach().where(paired, unknown), "accuracy": accuracy})


METHOD = Match(Dpo, dpo, metrics=("margin", "accuracy"), anchor=lambda settings: settings.anchor, takes=("pairs",))
