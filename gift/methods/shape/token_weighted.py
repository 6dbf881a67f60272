"""token_weighted: standardised rewards, times the weight of each token (OAR, arXiv 2601.07408)."""

from __future__ import annotations

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.shape.zscore import standardise
from gift.project.sections import Section


class TokenWeighted(Section):
    """No choices: what a token weighs says reference.token_weights."""


def token_weighted(groups: Groups, _: TokenWeighted) -> Targets:
    """A_i w_it, A the standardised reward; the target of a completion is A_i."""
    if groups.token_weights is None:
        raise ValueError("update.shape: token_weighted: the weights of tokens were not read")
    targets = standardise(groups.rewards, groups.mask)
    return Targets(targets, tokens=groups.to_tokens(targets) * groups.token_weights)


METHOD = Shape(TokenWeighted, token_weighted, makes="tokens", needs=("token_weights",))
