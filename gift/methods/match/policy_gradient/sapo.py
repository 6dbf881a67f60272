"""SAPO (arXiv 2511.20347): a soft gate in place of the clip, so that no token's gradient ends at a ratio."""

from gift.methods.groups import Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Positive, Section


class Sapo(Section):
    """How steeply the gate closes where the target is positive, and where it is not: the paper's and TRL's numbers."""

    tau_positive: Positive = 1.0
    tau_negative: Positive = 1.05


def sapo(groups: Groups, targets: Targets, outputs: Outputs, settings: Sapo) -> Loss:
    """-A sigmoid(tau (rho - 1)) 4 / tau a token, rho = exp(logprob - old); the mean over completions of token means.

    At rho = 1 its gradient is that of REINFORCE, -A; it falls off on both sides. The metric is the gate's slope against
    that at rho = 1.
    """
    target = targets.of_tokens(groups)
    tau = target.new_full((), settings.tau_positive).where(target > 0, settings.tau_negative)
    gate = (tau * ((outputs.logprobs - groups.old_logprobs).exp() - 1)).sigmoid()
    slope = (4 * gate * (1 - gate)).detach().where(groups.to_tokens(groups.mask), float("nan"))
    return Loss(groups.aggregate(-target * gate * 4 / tau, "grpo"), {"gate_slope": slope})


METHOD = Match(
    Sapo,
    sapo,
    metrics=("gate_slope",),
    coupled=False,
    takes=("completions", "tokens"),
    aggregate=lambda _: "grpo",
)
