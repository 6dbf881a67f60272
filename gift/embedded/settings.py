"""The section `arithmetic` of params.yaml: the embedded task, and the small policy that is trained to begin it."""

from typing import Annotated

from pydantic import Field, model_validator

from gift.project.sections import Count, Positive, Section, Share


class Arithmetic(Section):
    """Problems with visible steps (task.py), and a small Qwen3 trained from scratch on answers to them
    in a mixture of styles (base_policy.py)."""

    num_operands: Annotated[int, Field(ge=2, le=8)] = 4
    hidden_size: Count = 128
    num_layers: Count = 2
    num_heads: Count = 4
    num_problems: Count = 20_000
    steps: Count = 1600
    batch_size: Count = 32
    lr: Positive = 3.0e-3
    worked: Share = 0.40
    guess: Share = 0.52
    malformed: Share = 0.08

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> "Arithmetic":
        total = self.worked + self.guess + self.malformed
        if abs(total - 1) > 1e-9:
            raise ValueError(f"worked + guess + malformed must be 1, not {total:g}")
        return self
