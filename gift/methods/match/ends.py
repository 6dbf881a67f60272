"""What losses of pairs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gift.methods.groups import Targets

if TYPE_CHECKING:
    from torch import Tensor


def ends(targets: Targets, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of values [P, G] those of the better and of the worse of each pair: [M], [M]."""
    if targets.pairs is None:
        raise ValueError("the shape made no pairs")
    better, worse = values.flatten()[targets.pairs].unbind(-1)
    return better, worse
