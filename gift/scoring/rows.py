"""The rows of a part as reward functions see them: who is asked for which, a call's arguments, a digest of each."""

import hashlib
import inspect
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.sections import did_you_mean
from gift.rewards.names import REWARDS
from gift.rewards.total import counting
from gift.scoring.settings import Score
from gift.scoring.worker import Outcome
from gift.tables.prompts import prompt_column
from gift.tables.where import is_one_of

GENERATION_PROMPT = "generation_prompt"
NOT_ASKED = Outcome(None, "abstain", "not asked: the prompt has other values than the reward's `where`")
NUM_SHOWN = 10
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]  # a bool for each row of the prompts table


class Asked:
    """The prompts table, and which of its prompts each reward of `score` is asked for: those that its `where` means.

    Only rows that are asked for become Python objects. A `where` of columns that are not there is refused.
    """

    def __init__(self, score: Score, prompts: pa.Table) -> None:
        prompt = prompt_column(prompts)
        self.is_chat = prompt == "messages"
        self.table = prompts.rename_columns(["prompts" if name == prompt else name for name in prompts.column_names])
        self.columns = [name for name in self.table.column_names if name != "prompts"]
        self.score = score
        self.masks: dict[str, Mask] = {name: self._mask(name) for name in score.rewards}

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each prompt; made only where rows are asked for."""
        return {prompt_id: row for row, prompt_id in enumerate(self.table["prompt_id"].to_pylist())}

    def is_asked(self, name: str) -> bool:
        """Whether any prompt of the table is the reward's."""
        return not self.score.rewards[name].where or bool(self.masks[name].any())

    def rows(self, name: str, prompt_ids: Sequence[str]) -> list[int]:
        """Of rows with these prompts the numbers of those that the reward is asked for."""
        if not self.score.rewards[name].where:
            return list(range(len(prompt_ids)))
        return [row for row, prompt_id in enumerate(prompt_ids) if self.masks[name][self.row_of[prompt_id]]]

    def refuse_useless(self) -> None:
        """Refuse a reward that can add to no prompt's total: none is its own, or its gate is asked for others."""
        gates = {reward.only_if for reward in self.score.rewards.values()}
        counts = counting(self.masks, self.masks, self.score.rewards)
        for name, reward in self.score.rewards.items():
            if not reward.weight and name not in gates:
                continue  # for evaluate alone
            if not self.is_asked(name):
                raise UserError(f"{self._nobody(name, 'training prompt')}; for evaluate alone, give it weight 0")
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
            raise UserError(
                f"params.yaml: evaluate.correct: '{first}' and '{second}' are both asked for "
                f"prompt_id={self.table['prompt_id'][row]}; one reward says what is right there: give each a `where` "
                "of its own prompts, or name one of the two"
            )
        if not masks.any():
            raise UserError(f"{self._nobody(names[0], 'eval prompt')}, and evaluate.correct needs it")
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
        return np.logical_or.reduce(ours or others or [np.ones(self.table.num_rows, dtype=bool)])

    def hint(self, column: str, wanted: Any) -> str:
        """What a column holds, the nearest text first."""
        values = column_values(self.table[column])
        shown = ", ".join(map(repr, values[:NUM_SHOWN])) + (", ..." if len(values) > NUM_SHOWN else "")
        return f"{_near(wanted, values)}the values of {column} are {shown}"

    def _nobody(self, name: str, what: str) -> str:
        """Why a reward has no prompt: a value that its column does not hold, or values that no row has together."""
        where = self.score.rewards[name].where
        key = f"params.yaml: score.rewards.{name}.where"
        for column, wanted in where.items():
            if not _holds(self.table[column], wanted).any():
                return f"{key}.{column}: {wanted!r}: no {what} has it; {self.hint(column, wanted)}"
        return f"{key}: no {what} has these values of {', '.join(where)} together; take one of the columns out"

    def _mask(self, name: str) -> Mask:
        mask = np.ones(self.table.num_rows, dtype=bool)
        for column, wanted in self.score.rewards[name].where.items():
            key = f"params.yaml: score.rewards.{name}.where.{column}"
            if column not in self.columns:
                there = f"{_near(column, self.columns)}it has {', '.join(self.columns)}"
                raise UserError(f"{key}: the prompts table has no such column; {there}")
            kind = self.table[column].type
            if pt.is_nested(kind) and not is_one_of(None, wanted):
                raise UserError(f"{key}: the column holds {kind}; `where` can ask such a column for null alone")
            mask &= _holds(self.table[column], wanted)
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


class PartRows:
    """One part's rows, in order; `generation_prompt` is the text that the chat template puts before a completion."""

    def __init__(self, part: pa.Table, asked: Asked, generation_prompt: str) -> None:
        self.prompt_ids: list[str] = part["prompt_id"].to_pylist()
        self.samples: list[int] = part["sample"].to_pylist()
        self.is_chat = asked.is_chat
        known = asked.table.take([asked.row_of[prompt_id] for prompt_id in dict.fromkeys(self.prompt_ids)])
        self.known = {row["prompt_id"]: {**row, GENERATION_PROMPT: generation_prompt} for row in known.to_pylist()}
        self.completions: list[str] = part["completion"].to_pylist()
        self.ids = Ragged.from_arrow(part["completion_ids"])

    def name(self, row: int) -> str:
        return f"prompt_id={self.prompt_ids[row]}, sample={self.samples[row]}"

    def arguments(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The arguments of a call for these rows, as lists; a chat's completion is a list of messages, as in TRL."""
        known = [self.known[self.prompt_ids[row]] for row in rows]
        lists: dict[str, list[Any]] = {name: [each[name] for each in known] for name in known[0]}
        texts = [self.completions[row] for row in rows]
        lists["completions"] = [[{"role": "assistant", "content": text}] for text in texts] if self.is_chat else texts
        lists["completion_ids"] = [self.ids[row].tolist() for row in rows]
        return lists

    def digests(self) -> list[bytes]:
        """16 bytes for each row that depend on all its arguments, and on nothing else."""
        before = {
            name: hashlib.blake2b(repr(row).encode(), digest_size=16).digest() for name, row in self.known.items()
        }
        found = []
        for row, prompt_id in enumerate(self.prompt_ids):
            text = self.completions[row].encode()
            digest = hashlib.blake2b(before[prompt_id] + len(text).to_bytes(8) + text, digest_size=16)
            digest.update(self.ids[row].tobytes())
            found.append(digest.digest())
        return found

    def spans(self, batch: Any, rows: Sequence[int]) -> list[list[int]]:
        """The rows of each call: so many of `rows` at a time, from the first on, or a prompt's group at a time."""
        if batch == "group":
            return [list(group) for _, group in groupby(rows, key=lambda row: self.prompt_ids[row])]
        return [list(rows[start : start + batch]) for start in range(0, len(rows), batch)]
