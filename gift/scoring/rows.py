"""The rows of a part as reward functions see them: arguments of a call, and a digest of each row's."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.tables.prompts import prompt_column

GENERATION_PROMPT = "generation_prompt"


class Prompts:
    """The prompts table, looked up by prompt_id; only rows that are asked for become Python objects."""

    def __init__(self, table: pa.Table) -> None:
        prompt = prompt_column(table)
        self.is_chat = prompt == "messages"
        self.table = table.rename_columns(["prompts" if name == prompt else name for name in table.column_names])

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each prompt; made only where rows are asked for."""
        return {prompt_id: row for row, prompt_id in enumerate(self.table["prompt_id"].to_pylist())}

    def arguments(self) -> list[str]:
        """The names of what every function is called with, besides its settings."""
        columns = [name for name in self.table.column_names if name != "prompts"]
        return ["prompts", "completions", "completion_ids", *columns, GENERATION_PROMPT]

    def check_asked(self, part: pa.Table, path: Path) -> None:
        """Refuse completions of prompts that are not in the table."""
        for row, prompt_id in enumerate(part["prompt_id"].to_pylist()):
            if prompt_id not in self.row_of:
                raise UserError(
                    f"{path}: row {row}: prompt_id={prompt_id} is not in the prompts table; the rollouts were sampled "
                    "from another one: run `dvc repro`"
                )

    def fields(self) -> dict[str, list[str]]:
        """Each column, and the fields of those that are structs."""
        return {
            field.name: [inner.name for inner in field.type] if pa.types.is_struct(field.type) else []
            for field in self.table.schema
        }


class PartRows:
    """One part's rows, in order; `generation_prompt` is the text that the chat template puts before a completion."""

    def __init__(self, part: pa.Table, prompts: Prompts, generation_prompt: str) -> None:
        self.prompt_ids: list[str] = part["prompt_id"].to_pylist()
        self.samples: list[int] = part["sample"].to_pylist()
        self.is_chat = prompts.is_chat
        asked = [prompts.row_of[prompt_id] for prompt_id in dict.fromkeys(self.prompt_ids)]
        known = prompts.table.take(asked).to_pylist()
        self.known = {row["prompt_id"]: {**row, GENERATION_PROMPT: generation_prompt} for row in known}
        self.completions: list[str] = part["completion"].to_pylist()
        self.ids = Ragged.from_arrow(part["completion_ids"])

    def arguments(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The arguments of a call for these rows, as lists; a chat's completion is a list of messages, as in TRL."""
        known = [self.known[self.prompt_ids[row]] for row in rows]
        lists = {name: [each[name] for each in known] for name in known[0]}
        lists["completions"] = [self._completion(row) for row in rows]
        lists["completion_ids"] = [self.ids[row].tolist() for row in rows]
        return lists

    def _completion(self, row: int) -> Any:
        text = self.completions[row]
        return [{"role": "assistant", "content": text}] if self.is_chat else text

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
