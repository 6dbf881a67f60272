"""The section `arithmetic` of params.yaml: the embedded task, and the small policy that is trained to begin it."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gift.embedded.task import CHARACTERS
from gift.project.sections import Count, Positive, Section, Share

SPECIALS = ("<pad>", "<eos>", "<unk>")
CONTEXT = 1024


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

    @field_validator("num_heads")
    @classmethod
    def heads_are_even(cls, value: int, info: ValidationInfo) -> int:
        size = info.data.get("hidden_size", 2 * value)
        if size % (2 * value):
            raise ValueError(f"does not cut hidden_size = {size} into even parts; choose another")
        return value

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> "Arithmetic":
        total = self.worked + self.guess + self.malformed
        if abs(total - 1) > 1e-9:
            raise ValueError(f"worked + guess + malformed must be 1, not {total:g}")
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The model in the words of transformers' Qwen3Config: tied embeddings, one token a character."""
        return {
            "vocab_size": len(SPECIALS) + len(CHARACTERS),
            "hidden_size": self.hidden_size,
            "intermediate_size": 3 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "head_dim": self.hidden_size // self.num_heads,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight of that model by its name, for who counts them without torch."""
        size, wide, head = self.hidden_size, 3 * self.hidden_size, self.hidden_size // self.num_heads
        layer = {f"self_attn.{name}_proj": (size, size) for name in "qkvo"}
        layer |= {f"mlp.{name}_proj": (wide, size) for name in ("gate", "up")} | {"mlp.down_proj": (size, wide)}
        norms = {f"self_attn.{name}_norm": (head,) for name in "qk"}
        norms |= {f"{name}_layernorm": (size,) for name in ("input", "post_attention")}
        shapes = {"embed_tokens": (self.config["vocab_size"], size), "norm": (size,)}
        for number in range(self.num_layers):
            shapes |= {f"layers.{number}.{name}": shape for name, shape in {**layer, **norms}.items()}
        return {f"model.{name}.weight": shape for name, shape in shapes.items()}
