"""overlong: completions that were cut off at the limit do not train (DAPO's overlong filtering, arXiv 2503.14476)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gift.methods.groups import Groups, Select
from gift.project.sections import Section

if TYPE_CHECKING:
    from torch import Tensor


class Overlong(Section):
    """No choices."""


def overlong(groups: Groups, _: Overlong) -> Tensor:
    return groups.mask & ~groups.truncated


METHOD = Select(Overlong, overlong)
