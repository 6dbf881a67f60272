"""Means, spreads and standardisation inside groups; the last axis of every tensor here is the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-6  # of rewards and targets: what lies closer together is equal


def centre(values: Tensor, mask: Tensor) -> Tensor:
    """Deviations from the group's mean over the rows of `mask`; 0 where masked.

    values: float [P, G]; mask: bool [P, G]. A group without rows gives zeros.
    """
    weights = mask.to(values.dtype)
    count = weights.sum(-1, keepdim=True).clamp_min(1)
    values = values.where(mask, 0.0)
    mean = values.sum(-1, keepdim=True) / count
    return (values - mean).where(mask, 0.0)


def spread(centred: Tensor, mask: Tensor, floor: float = 0.0) -> Tensor:
    """Smooth standard deviation sqrt(sum c^2 / (n - 1) + floor^2) of a group, n = rows of `mask`.

    centred: float [P, G], 0 where masked; returns [P, 1]. `floor` keeps value and gradient finite when all
    deviations are 0 (algorithms: "a sound normalisation" of the singular first step).
    """
    count = mask.sum(-1, keepdim=True).to(centred.dtype)
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)
    return (variance + floor**2).sqrt()
