"""The prompts table: one Parquet file a split, key `prompt_id`; `prompt` or `messages`, then the source's columns."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from gift.project.errors import UserError
from gift.project.sections import did_you_mean
from gift.tables.parquet import read_file, write_file

ROLES = ("system", "user", "assistant", "tool")
MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
TYPES = {"prompt_id": pa.string(), "prompt": pa.string(), "messages": pa.list_(MESSAGE)}
RESERVED = ("prompts", "completions", "completion_ids", "generation_prompt")
"""Arguments of every reward function, so no column may have these names."""
MAX_DOMAINS = 100


def write_prompts(path: Path, table: pa.Table, metadata: dict[str, Any]) -> None:
    """Check a prompts table, then write it; nothing wrong ever reaches the disk."""
    check_prompts(table, path)
    try:
        write_file(path, table, metadata)
    except pa.ArrowException as error:  # an object without any field is a value that Parquet has no type for
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be stored ({problem}); leave the column out with prepare.drop") from None


def read_prompts(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A prompts table and its metadata, checked."""
    table, metadata = read_file(path)
    check_prompts(table, path)
    return table, metadata


def read_domains(path: Path, prompt_ids: Sequence[str]) -> tuple[str | None, ...]:
    """The domain of each of some prompts; None where it has none."""
    table, _ = read_prompts(path)
    known = domains_in(table, path)
    for prompt_id in prompt_ids:
        if prompt_id not in known:
            raise UserError(f"{path}: has no prompt {prompt_id}, of which there are rollouts; run `dvc repro`")
    return tuple(known[prompt_id] for prompt_id in prompt_ids)


def domains_in(table: pa.Table, path: Path) -> dict[str, str | None]:
    """The domain of each prompt; a table without domains is refused."""
    if "domain" not in table.column_names:
        raise UserError(
            f"{path}: has no column 'domain', which a method of update reads; name one in prepare.columns, or give "
            "each of prepare.sources a `domain`"
        )
    return dict(zip(*(table[name].to_pylist() for name in ("prompt_id", "domain")), strict=True))


def given_texts(table: pa.Table, names: Sequence[str], path: Path) -> dict[str, list[str]]:
    """The answers that columns give, by column and row: texts, or of lists of messages the assistant's at their end.

    names: generate.given. A column that is missing, of another type, or empty in a row is refused: groups are whole.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        key = f"params.yaml: generate.given: {name}"
        if name not in table.column_names:
            known = did_you_mean(name, [each for each in table.column_names if each != "prompt_id"])
            raise UserError(f"{key}: {path} has no such column; {known}")
        kind = table.schema.field(name).type
        if not (pt.is_string(kind) or _is_chat(kind)):
            raise UserError(
                f"{key}: the column has type {kind}, must be text, or messages that end with the assistant's; make it "
                "text with prepare.as_text, or map another column to the name (prepare.columns)"
            )
        texts = [cell if isinstance(cell, str) else _last_answer(cell) for cell in table[name].to_pylist()]
        empty = [row for row, text in enumerate(texts) if not (text or "").strip()]
        if empty:
            raise UserError(
                f"{key}: {path}: {len(empty)} of {table.num_rows} prompts have no answer there, the first "
                f"prompt_id={table['prompt_id'][empty[0]]}; every group needs one: leave such rows out, "
                f"prepare.filters.length: {{{name}: [1, null]}}"
            )
        found[name] = [text for text in texts if text is not None]
    return found


def _is_chat(kind: pa.DataType) -> bool:
    if not (pt.is_list(kind) and pt.is_struct(kind.value_type)):
        return False
    return {"role", "content"} <= {field.name for field in kind.value_type if pt.is_string(field.type)}


def _last_answer(messages: list[dict[str, str | None]] | None) -> str | None:
    last = messages[-1] if messages else None
    return last["content"] if last and last["role"] == "assistant" else None


def prompts_table(rows: list[dict[str, Any]], path: Path) -> pa.Table:
    """Rows as a table: the key, the prompt, then every other column in the order in which the rows bring them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=lambda name: list(TYPES).index(name) if name in TYPES else len(TYPES))
    columns = []
    for name in names:
        try:
            columns.append(pa.array([row.get(name) for row in rows], type=TYPES.get(name)))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            problem = str(error).splitlines()[0]
            raise UserError(
                f"{path}: column '{name}' cannot be stored ({problem}); give it one type in every row of the source"
            ) from None
    return pa.Table.from_arrays(columns, names=names)


def prompt_column(table: pa.Table) -> str:
    """The column that holds the prompts: 'prompt' (text) or 'messages' (a chat)."""
    return "messages" if "messages" in table.column_names else "prompt"


def check_prompts(table: pa.Table, path: Path) -> None:
    """Ids are unique, nothing is empty, every message has a known role and a text, and the policy speaks next."""
    names = table.column_names
    if "prompt_id" not in names:
        raise UserError(f"{path}: the column 'prompt_id' is missing; it has {', '.join(names)}")
    if ("prompt" in names) == ("messages" in names):
        raise UserError(f"{path}: must have either a column 'prompt' or a column 'messages'; it has {', '.join(names)}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: the column '{name}' occurs twice")
        if name in RESERVED:
            raise UserError(
                f"{path}: no column may be named '{name}', an argument of rewards; map it to another (prepare.columns)"
            )
        if name == "domain":
            _check_domains(table["domain"], path)
        if name in TYPES and table.schema.field(name).type != TYPES[name]:
            raise UserError(f"{path}: column '{name}' has type {table.schema.field(name).type}, must be {TYPES[name]}")
    if not table.num_rows:
        raise UserError(f"{path}: there is no prompt in it")
    seen: dict[str, int] = {}
    for row, prompt_id in enumerate(table["prompt_id"].to_pylist()):
        if not prompt_id:
            raise UserError(f"{path}: row {row}: prompt_id is empty")
        if prompt_id in seen:
            raise UserError(
                f"{path}: row {row}: prompt_id={prompt_id} is also that of row {seen[prompt_id]}; ids must be unique"
            )
        seen[prompt_id] = row
    for row, prompt in enumerate(table[prompt_column(table)].to_pylist()):
        problem = prompt_problem(prompt)
        if problem:
            raise UserError(f"{path}: row {row} (prompt_id={table['prompt_id'][row].as_py()}): {problem}")


def prompt_problem(prompt: Any) -> str | None:
    """What is wrong with a prompt (a text, or a list of messages), or None."""
    if isinstance(prompt, str):
        return None if prompt.strip() else "the prompt is empty"
    if not prompt:
        return "the prompt is empty"
    for number, message in enumerate(prompt):
        if message is None or message["role"] not in ROLES:
            role = None if message is None else message["role"]
            return f"message {number} has the role {role!r}; it must be one of {', '.join(ROLES)}"
        if not isinstance(message["content"], str) or not message["content"].strip():
            return f"message {number} ({message['role']}) has no text"
    if prompt[-1]["role"] in ("assistant", "system"):
        return f"the last message is the {prompt[-1]['role']}'s; a prompt ends with what the policy has to answer"
    return None


def safe_name(domain: str) -> str:
    """A domain in the name of a metric: letters, digits, `_`, `.` and `-` stay."""
    return re.sub(r"[^\w.-]+", "_", domain.strip())


def _check_domains(column: pa.ChunkedArray, path: Path) -> None:
    """`domain` groups prompts in the metrics of evaluate: texts, few of them, whose safe names differ."""
    where, remedy = f"{path}: column 'domain'", "map a column of another meaning to another name (prepare.columns)"
    if not (pt.is_string(column.type) or pt.is_null(column.type)):
        raise UserError(f"{where} has type {column.type}, must be string; {remedy}")
    domains = sorted(set(column.to_pylist()) - {None})
    if len(domains) > MAX_DOMAINS:
        raise UserError(f"{where} has {len(domains)} values, at most {MAX_DOMAINS} are domains; {remedy}")
    names: dict[str, str] = {}
    for domain in domains:
        name = safe_name(domain)
        if not name.strip("_."):
            raise UserError(f"{where}: {domain!r} makes no name for a metric; {remedy}")
        if name in names:
            raise UserError(f"{path}: domains {names[name]!r} and {domain!r} would share the metric {name!r}; {remedy}")
        names[name] = domain
