"""The methods by name, axis by axis: what `update.select`, `update.shape` and `update.match` may say."""

from typing import Any

from gift.methods.groups import Match, Select, Shape
from gift.methods.match import gift
from gift.methods.shape import gdpo, zscore

SELECT: dict[str, Select[Any]] = {}
SHAPE: dict[str, Shape[Any]] = {"zscore": zscore.METHOD, "gdpo": gdpo.METHOD}
MATCH: dict[str, Match[Any]] = {"gift": gift.METHOD}
