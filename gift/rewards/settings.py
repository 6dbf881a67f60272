"""Settings of a reward against their rules, and a column of the prompts table that hides one."""

from typing import Any, TypeVar

from gift.errors import UserError
from gift.sections import Section, check

Rules = TypeVar("Rules", bound=Section)


def check_settings(rules: type[Rules], function: str, values: dict[str, Any], lists: tuple[str, ...] = ()) -> Rules:
    """The settings of a function as typed values, or a `UserError` with a line for each wrong one.

    Columns reach a function by their names, as lists. So a list where no setting of `lists` is one, is a column.
    """
    for key, value in values.items():
        if isinstance(value, list) and key not in lists:
            raise UserError(
                f"{function}: the prompts table has a column '{key}', which hides the setting of that name; rename it "
                "in prepare.columns"
            )
    return check(rules, values, function)
