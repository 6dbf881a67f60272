"""What `update` may say of GIFT and of how rewards become targets."""

from typing import Literal

from pydantic import Field

from gift.project.sections import Positive, Section

Advantages = Literal["group", "gdpo"]  # how rewards become targets (gift/methods/shape/zscore.py)


class GiftObjective(Section):
    """The choices inside the GIFT loss (docs/objectives.md)."""

    anchor: Literal["old", "reference"] = "old"
    stats: Literal["detached", "full"] = "detached"
    spread_floor: Positive = Field(1.0, description="least spread of the log-ratio inside a group, in nats")
    beta: Positive = 1.0
    token_reduce: Literal["sum", "mean"] = "sum"
    zero_spread: Literal["mask", "keep"] = "mask"
