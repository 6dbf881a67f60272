"""REINFORCE: the plain policy gradient (RLOO's paper, arXiv 2402.14740, with `shape: leave_one_out`)."""

from __future__ import annotations

from gift.methods.groups import Aggregate, Groups, Loss, Match, Outputs, Targets
from gift.project.sections import Section


class Reinforce(Section):
    """`luspo` sums a completion's tokens: its log-prob as a whole, as in RLOO's paper and verl's default here."""

    aggregate: Aggregate = "luspo"


def reinforce(groups: Groups, targets: Targets, outputs: Outputs, settings: Reinforce) -> Loss:
    """-A logprob a token, summed as `aggregate` says: no ratio to the policy that sampled, and no clip."""
    return Loss(groups.aggregate(-targets.of_tokens(groups) * outputs.logprobs, settings.aggregate), {})


METHOD = Match(
    Reinforce,
    reinforce,
    coupled=False,
    takes=("completions", "tokens"),
    aggregate=lambda settings: settings.aggregate,
)
