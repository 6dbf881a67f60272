"""Methods that are not offered, written against the interface of the others to show that it holds them.

What is here uses what no offered method does: targets of tokens. tests/test_methods.py puts it through the laws of
every method.
"""

from __future__ import annotations

from gift.methods.groups import Groups, Match, Shape, Targets
from gift.methods.match.policy_gradient.clipped import Clipped, clipped
from gift.methods.shape.zscore import standardise
from gift.project.sections import Section


class Weighted(Section):
    """No choices."""


def weighted(groups: Groups, _: Weighted) -> Targets:
    """OAR (arXiv 2601.07408): the standardised reward times the weight of each token."""
    targets = standardise(groups.rewards, groups.mask)
    assert groups.token_weights is not None
    return Targets(targets, tokens=groups.to_tokens(targets) * groups.token_weights)


SHAPES = {"weighted": Shape(Weighted, weighted, makes="tokens")}
MATCHES = {"oar": Match(Clipped, clipped, ("clip_ratio",), coupled=False, takes=("tokens",))}
