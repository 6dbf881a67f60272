"""How completions lie in one forward: the words that launch.yaml has for it."""

from typing import Literal

Layout = Literal["shared", "packed", "padded"]  # gift/logprobs/layouts.py
Packing = Literal["auto", "shared", "packed", "padded"]  # a layout, or the best that the model takes
