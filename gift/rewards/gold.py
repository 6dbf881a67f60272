"""The gold answers of a table of prompts, in the forms in which reward functions expect an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

GOLD_COLUMNS = ("answer", "ground_truth", "reward_model", "solution", "code", "target")
# The forms in which functions expect an answer; "x" is the gold itself, or what stands behind its last "####".
FORMS = {
    "x": "{}",
    "#x": "#{}",
    "#### x": "#### {}",
    "\\boxed{x}": "\\boxed{{{}}}",
    "Answer: x": "Answer: {}",
    "<answer>x</answer>": "<answer>{}</answer>",
    "<think>...<answer>x</answer>": "<think>\nx\n</think>\n<answer>\n{}\n</answer>",
    "```x```": "```python\n{}\n```",
}
WHOLE = "as it stands"


def gold_texts(settings: Mapping[str, Any], rows: pa.Table) -> list[str]:
    """The gold answer of each row; none where no column holds them.

    The column is what a function's setting `column` says, or the first usual name that is there. Of a mixture's
    columns those are left out that are another source's, and null in all of these rows.
    """
    wanted = settings.get("column")
    names = (wanted, *GOLD_COLUMNS) if isinstance(wanted, str) else GOLD_COLUMNS
    there = (name for name in names if name in rows.column_names and rows[name].null_count < len(rows))
    column = next(there, None)
    return [_text(value) for value in rows[column].to_pylist()] if column else []


def forms(golds: Sequence[str]) -> list[str]:
    """The names of the forms to write these in."""
    return [WHOLE] * any(short(gold) != gold for gold in golds) + list(FORMS) if golds else []


def written(gold: str, form: str) -> str:
    return gold if form == WHOLE else FORMS[form].format(short(gold))


def short(gold: str) -> str:
    """The answer alone, behind the worked solution of GSM8K."""
    return gold.rpartition("####")[2].strip()


def _text(gold: Any) -> str:
    """A gold answer as text, of several the first; verl keeps it in a struct."""
    if isinstance(gold, dict) and "ground_truth" in gold:
        return _text(gold["ground_truth"])
    if isinstance(gold, list):
        return _text(gold[0] if gold else None)
    return "" if gold is None else str(gold)
