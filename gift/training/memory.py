"""Bytes that a rank of `update` takes for a batch: what autograd keeps of each decoder layer, and the head's tile.

The formula is this project's own, of transformers' decoder layers; `make bench ARGS='activations'` measures it.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gift.logprobs.settings import TILE_BYTES
from gift.project.sections import Dtype

Checkpointing = Literal[False, "selective", True]
"""What backward computes again: nothing, all of a layer but its matrix products and attention, or all of it."""

KEYS = 1.25
"""Keys that attention sees for each token of a batch: every completion has a copy of its prompt's."""


@dataclass(frozen=True)
class Decoder:
    """The sizes that decide: of the residual stream, of queries over all heads, and of the MLP; `qk_norm`: as Qwen3."""

    hidden: int
    layers: int
    queries: int
    keys: int  # over the heads of keys, as large as `queries` or smaller
    intermediate: int
    qk_norm: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], names: Mapping[str, Any]) -> "Decoder | None":
        """From a config.json and the names of the weights; None: it has other keys, or experts."""
        try:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            size = config.get("head_dim") or hidden // heads
            keys = (config.get("num_key_value_heads") or heads) * size
            qk_norm = any(name.endswith("self_attn.q_norm.weight") for name in names)
            found = cls(hidden, config["num_hidden_layers"], heads * size, keys, config["intermediate_size"], qk_norm)
        except (KeyError, TypeError):
            return None
        return None if any("expert" in name for name in config) else found

    def layer_bytes(self, dtype: Dtype, keys: float = KEYS) -> float:
        """What backward needs of one layer, by token: with SDPA, gated MLPs, and norms that compute in float32.

        Norm: its input in float32, what is scaled, the result (in float32 the input is the residual stream itself).
        Attention: queries, keys and values as slots of a block; the keys and values that each row sees, for all heads;
        its output, and that in the order of tokens. MLP: gate, its activation, up, their product.
        """
        width, norm = (4, 12) if dtype == "float32" else (2, 8)
        norms = 2 * self.hidden + (self.queries + self.keys if self.qk_norm else 0) * (2 / 3 if width == 4 else 3 / 4)
        attention = self.queries * (5 + 2 * keys)
        return norm * norms + width * (attention + 4 * self.intermediate)

    def kept_bytes(self, dtype: Dtype, checkpointing: Checkpointing) -> float:
        """What is held of one layer between forward and backward, by token.

        Selective: its input, queries, keys, values, what attention and its output product made, gate and up.
        """
        if not checkpointing:
            return self.layer_bytes(dtype)
        made = 2 * self.queries + 2 * self.keys + self.hidden + 2 * self.intermediate
        return (4 if dtype == "float32" else 2) * (self.hidden + (made if checkpointing == "selective" else 0))

    def batch_bytes(self, num_tokens: int, dtype: Dtype, checkpointing: Checkpointing, device: str = "cpu") -> int:
        """Above weights, gradients and optimizer, at a batch's peak: in the head, or in the last layer's backward."""
        width = 4 if dtype == "float32" else 2
        layer, kept = self.layer_bytes(dtype), self.kept_bytes(dtype, checkpointing)
        in_head = self.layers * kept + self.hidden * (2 * width + 4)
        # The gradients of the MLP's three inner tensors, and two of the residual stream.
        passing = width * (3 * self.intermediate + 2 * self.hidden)
        # The layer that is computed again holds its own products in what it keeps.
        again = {False: 0.0, "selective": layer - kept, True: layer}[checkpointing]
        in_layer = self.layers * kept + again + passing
        return int(max(num_tokens * in_head + TILE_BYTES[device], num_tokens * in_layer))

    def num_tokens(self, num_bytes: float, dtype: Dtype, checkpointing: Checkpointing, device: str = "cpu") -> int:
        """The most tokens whose `batch_bytes` fit; 0: none do."""
        most = range(1, 1 << 30)
        return bisect_right(most, num_bytes, key=lambda size: self.batch_bytes(size, dtype, checkpointing, device))
