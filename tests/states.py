"""Training states as dictionaries in memory, which only models as small as those of tests allow."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gift.policy.folder import PolicyFiles
from gift.training.engine import KINDS, Engine
from gift.training.ranks import distributed
from gift.training.saving.policy import write_policy


@dataclass(frozen=True)
class FullState:
    """An engine's state: "weight", "exp_avg" and "exp_avg_sq", each by parameter name."""

    step: int
    tensors: dict[str, dict[str, Tensor]]

    @property
    def shapes(self) -> dict[str, dict[str, torch.Size]]:
        return {kind: {name: each.shape for name, each in whole.items()} for kind, whole in self.tensors.items()}

    def tensor(self, kind: str, name: str) -> Tensor:
        return self.tensors[kind][name]


def full_state(engine: Engine) -> FullState | None:
    """Gathered by all ranks; None on those other than 0."""
    tensors = {kind: {name: engine.tensor(kind, name).cpu().clone() for name in engine.shapes} for kind in KINDS}
    return None if engine.rank else FullState(engine.steps, tensors)


def save_policy(
    folder: Path, parent: PolicyFiles, weights: dict[str, Tensor], dtype: str, adapter: dict[str, Any] | None
) -> PolicyFiles:
    """Write weights, named as in `TokenLogprobs`, as one rank that has trained them does."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    trained: Any = SimpleNamespace(
        rank=0, world_size=1, shapes=shapes, tensor=lambda _, name: weights[name].detach().float()
    )
    with distributed():
        written = write_policy(trained, folder, parent, dtype, adapter)
    assert written is not None
    return written.files
