"""How completions lie in one forward: the words that launch.yaml has for it."""

from typing import Literal

Layout = Literal["shared", "packed", "padded"]  # gift/logprobs/layouts.py
Packing = Literal["auto", "shared", "packed", "padded"]  # a layout, or the best that the model takes

# Room for one tile of logits. On a CPU matrix products reach their full rate at a few MiB; a GPU wants larger ones.
TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
