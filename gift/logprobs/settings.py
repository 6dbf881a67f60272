"""How completions lie in one forward, and what a GPU computes it with: the words that launch.yaml has for it."""

from typing import Literal

from pydantic import Field

from gift.project.sections import Section

Layout = Literal["shared", "packed", "padded"]  # gift/logprobs/layouts.py
Packing = Literal["auto", "shared", "packed", "padded"]  # a layout, or the best that the model takes

# Room for one tile of logits. On a CPU matrix products reach their full rate at a few MiB; a GPU wants larger ones.
TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}


class Kernels(Section):
    """What a GPU may use in place of PyTorch's own operations; what it computes is held against theirs first."""

    flash_attention: bool = Field(False, description="FlashAttention for packed rows, in bfloat16")
    liger_kernel: bool = Field(False, description="norms and gated activations of liger-kernel (pip: gift[liger])")
    compile_head: bool = Field(False, description="the head's tiles of logits by torch.compile")
