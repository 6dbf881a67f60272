"""Which prompts each reward is asked for: all, or those whose columns hold the values of its `where`."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from gift.project.errors import UserError
from gift.project.sections import did_you_mean
from gift.rewards.names import REWARDS
from gift.rewards.total import counting
from gift.scoring.rows import Prompts
from gift.scoring.settings import Score
from gift.scoring.workers.worker import Outcome
from gift.tables.where import is_one_of

NOT_ASKED = Outcome(None, "abstain", "not asked: the prompt has other values than the reward's `where`")
NUM_SHOWN = 10

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
"""A bool for each row of the prompts table."""


class Asked:
    """The prompts that each reward of `score` is asked for; a `where` of columns that are not there is refused."""

    def __init__(self, score: Score, prompts: Prompts) -> None:
        self.score, self.prompts = score, prompts
        self.masks: dict[str, Mask] = {name: self._mask(name) for name in score.rewards}

    def is_asked(self, name: str) -> bool:
        """Whether any prompt of the table is the reward's."""
        return not self.score.rewards[name].where or bool(self.masks[name].any())

    def rows(self, name: str, prompt_ids: Sequence[str]) -> list[int]:
        """Of rows with these prompts the numbers of those that the reward is asked for."""
        if not self.score.rewards[name].where:
            return list(range(len(prompt_ids)))
        mask, row_of = self.masks[name], self.prompts.row_of
        return [row for row, prompt_id in enumerate(prompt_ids) if mask[row_of[prompt_id]]]

    def refuse_useless(self) -> None:
        """Refuse a reward that can add to no prompt's total: none is its own, or its gate is asked for others."""
        gates = {reward.only_if for reward in self.score.rewards.values()}
        counts = counting(self.masks, self.masks, self.score.rewards)
        for name, reward in self.score.rewards.items():
            if not reward.weight and name not in gates:
                continue  # for evaluate alone
            if not self.is_asked(name):
                raise UserError(f"{self.nobody(name, 'training prompt')}; for evaluate alone, give it weight 0")
            if reward.only_if and not counts[name].any():
                raise UserError(
                    f"params.yaml: score.rewards.{name}.only_if: '{reward.only_if}' is asked for none of the training "
                    f"prompts that {name} is asked for, so {name} never counts; give both the same `where`"
                )

    def correct(self, names: Sequence[str]) -> Mask:
        """The prompts for which one of these rewards says what is right; two for one prompt are refused, and none."""
        masks = np.stack([self.masks[name] for name in names])
        twice = masks.sum(axis=0) > 1
        if twice.any():
            row = int(twice.argmax())
            first, second = [name for name in names if self.masks[name][row]][:2]
            prompt_id = self.prompts.table["prompt_id"][row].as_py()
            raise UserError(
                f"params.yaml: evaluate.correct: '{first}' and '{second}' are both asked for prompt_id={prompt_id}; "
                "one reward says what is right there: give each a `where` of its own prompts, or name one of the two"
            )
        if not masks.any():
            raise UserError(f"{self.nobody(names[0], 'eval prompt')}, and evaluate.correct needs it")
        return np.logical_or.reduce(masks)

    def readers(self, column: str) -> Mask:
        """The prompts for which a reward that reads the column is asked: rows of another source may well lack it.

        Ours read what their parameters and settings name; where none does, a function of the user may; else all.
        """
        ours: list[Mask] = []
        others: list[Mask] = []
        for name, reward in self.score.rewards.items():
            if reward.function not in REWARDS or reward.function == "judge":
                others.append(self.masks[name])
                continue
            parameters = inspect.signature(REWARDS[reward.function]).parameters
            named = {**{key: each.default for key, each in parameters.items()}, **reward.settings}.values()
            if column in parameters or column in list(named):
                ours.append(self.masks[name])
        return np.logical_or.reduce(ours or others or [np.ones(self.prompts.table.num_rows, dtype=bool)])

    def nobody(self, name: str, what: str) -> str:
        """Why a reward has no prompt: a value that its column does not hold, or values that no row has together."""
        where = self.score.rewards[name].where
        key = f"params.yaml: score.rewards.{name}.where"
        for column, wanted in where.items():
            if not _holds(self.prompts.table[column], wanted).any():
                return f"{key}.{column}: {wanted!r}: no {what} has it; {self.hint(column, wanted)}"
        return f"{key}: no {what} has these values of {', '.join(where)} together; take one of the columns out"

    def hint(self, column: str, wanted: Any) -> str:
        """What a column holds, the nearest text first."""
        values = column_values(self.prompts.table[column])
        shown = ", ".join(map(repr, values[:NUM_SHOWN])) + (", ..." if len(values) > NUM_SHOWN else "")
        return f"{_near(wanted, values)}the values of {column} are {shown}"

    def _mask(self, name: str) -> Mask:
        mask = np.ones(self.prompts.table.num_rows, dtype=bool)
        columns = [column for column in self.prompts.fields() if column != "prompts"]
        for column, wanted in self.score.rewards[name].where.items():
            key = f"params.yaml: score.rewards.{name}.where.{column}"
            if column not in columns:
                raise UserError(
                    f"{key}: the prompts table has no such column; {_near(column, columns)}it has {', '.join(columns)}"
                )
            kind = self.prompts.table[column].type
            if pt.is_nested(kind) and not is_one_of(None, wanted):
                raise UserError(f"{key}: the column holds {kind}; `where` can ask such a column for null alone")
            mask &= _holds(self.prompts.table[column], wanted)
        return mask


def _holds(column: pa.ChunkedArray, wanted: Any) -> Mask:
    """Where a column has one of the wanted values."""
    if pt.is_nested(column.type):
        return column.is_null().to_numpy()
    found = [value for value in column_values(column) if is_one_of(value, wanted)]
    return pc.is_in(column, value_set=pa.array(found, type=column.type)).to_numpy()


def column_values(column: pa.ChunkedArray) -> list[Any]:
    """The different cells of a column that a `where` can ask for: of one of lists or structs at most null."""
    if pt.is_nested(column.type):
        return [None] if column.null_count else []
    return list(column.unique().to_pylist())


def _near(word: Any, known: Sequence[Any]) -> str:
    texts = [each for each in known if isinstance(each, str)]
    hint = did_you_mean(word, texts) if isinstance(word, str) else ""
    return f"{hint} " if hint.startswith("did") else ""
