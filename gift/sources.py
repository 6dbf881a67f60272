"""Where prompts come from (made here, the hub, a local file), and how source rows become train and eval prompts.

Rows are chosen by a seeded hash of their id: the choice depends on neither the order of the source nor on chance, and
a larger `num_train` keeps the rows that a smaller one had.
"""

import hashlib
import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.arithmetic import Split, problems
from gift.errors import UserError
from gift.params import Prepare
from gift.source_files import Row, read_hub, read_local
from gift.tables.prompts import prompt_problem

HUB = "hub:"


@dataclass(frozen=True)
class Prompts:
    """Rows of the two prompts tables (sorted by prompt_id), and what became of every source row."""

    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    ledger: dict[str, int]


def prepare_prompts(settings: Prepare, seed: int) -> Prompts:
    """Read the source, make prompts, drop duplicates, split, choose; the ledger's sums close or it raises.

    A prompt that eval holds (all of the eval source, not just the `num_eval` chosen) is never in train.
    """
    _check(settings)
    train, num_train_duplicates = _prompts(_read(settings, seed, "train"), settings)
    ledger = {"num_train_read": len(train) + num_train_duplicates, "num_train_duplicates": num_train_duplicates}
    has_eval = settings.source == "arithmetic" or settings.eval_source is not None or settings.eval_split is not None
    if has_eval:
        whole_eval, num_eval_duplicates = _prompts(_read(settings, seed, "eval"), settings)
        eval_rows = _choose(whole_eval, settings.num_eval, seed, "eval")
        ledger["num_train_split_off"] = 0
    else:
        if settings.num_eval >= len(train):
            raise _wrong("num_eval", settings.num_eval, f"cannot be split off {len(train)} different rows; lower it")
        eval_rows = whole_eval = _choose(train, settings.num_eval, seed, "eval")
        num_eval_duplicates = 0
        split_off = {row["prompt_id"] for row in eval_rows}
        train = [row for row in train if row["prompt_id"] not in split_off]
        ledger["num_train_split_off"] = len(split_off)
    held_out = {_text_key(row) for row in whole_eval}
    clean = [row for row in train if _text_key(row) not in held_out]
    if not clean:
        raise UserError("params.yaml: prepare: every training prompt is also an eval prompt; choose another eval part")
    train_rows = _choose(clean, settings.num_train, seed, "train")
    ledger |= {
        "num_train_in_eval": len(train) - len(clean),
        "num_train_not_taken": len(clean) - len(train_rows),
        "num_train_written": len(train_rows),
        "num_eval_read": len(whole_eval) + num_eval_duplicates,
        "num_eval_duplicates": num_eval_duplicates,
        "num_eval_not_taken": len(whole_eval) - len(eval_rows),
        "num_eval_written": len(eval_rows),
    }
    _close(ledger)
    return Prompts(train_rows, eval_rows, ledger)


def _close(ledger: dict[str, int]) -> None:
    """Every row read was written or is counted where it went."""
    for split in ("train", "eval"):
        parts = {name: count for name, count in ledger.items() if name.startswith(f"num_{split}_")}
        read = parts.pop(f"num_{split}_read")
        if sum(parts.values()) != read or min(parts.values()) < 0:
            raise RuntimeError(f"{split}: {read} rows were read, but {parts} do not add up to them")


def _check(settings: Prepare) -> None:
    """Refuse settings that would have no effect, or two meanings."""
    eval_source = settings.eval_source or settings.source
    if settings.eval_split and not eval_source.startswith(HUB):
        raise _wrong(
            "eval_split", settings.eval_split, "only a hub data set has splits; set prepare.eval_source to a file"
        )
    if settings.eval_source and eval_source.startswith(HUB) and not settings.eval_split:
        raise _wrong("eval_source", settings.eval_source, "say which split: set prepare.eval_split")
    if settings.hub_config and not settings.source.startswith(HUB) and not eval_source.startswith(HUB):
        raise _wrong("hub_config", settings.hub_config, "only for a source hub:<dataset id>; remove it")
    if settings.source == "arithmetic":
        if settings.eval_source or settings.columns or settings.prompt_template:
            raise _wrong("source", "arithmetic", "makes its own prompts; remove eval_source, columns, prompt_template")
        if settings.num_train is None:
            raise _wrong("num_train", None, "arithmetic makes as many problems as you ask for; give a number")


def _read(settings: Prepare, seed: int, split: Split) -> list[Row]:
    if settings.source == "arithmetic":
        num = settings.num_eval if split == "eval" else settings.num_train
        try:
            rows = problems(num or 0, seed, settings.arithmetic.num_operands, split)
        except ValueError as error:
            raise UserError(f"params.yaml: prepare: {error}") from None
        return [Row(f"arithmetic problem {number}", dict(row)) for number, row in enumerate(rows)]
    source = settings.eval_source if split == "eval" and settings.eval_source else settings.source
    key = "prepare.eval_source" if split == "eval" and settings.eval_source else "prepare.source"
    if not source.startswith(HUB):
        return read_local(Path(source), key)
    name = settings.eval_split if split == "eval" and settings.eval_split else settings.train_split
    return read_hub(source.removeprefix(HUB), settings.hub_config, name, key)


def _prompts(rows: list[Row], settings: Prepare) -> tuple[list[dict[str, Any]], int]:
    """The different rows as prompts, and the number of exact duplicates that were dropped."""
    template = _template(settings)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    _check_columns(names, settings, has_template=template is not None)
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    num_duplicates = 0
    for row in rows:
        mapped = _map(row.values, names, settings.columns)
        digest = hashlib.sha256(_canonical(mapped).encode("utf-8", "surrogatepass")).hexdigest()
        prompt_id = str(mapped["prompt_id"]).strip() if mapped.get("prompt_id") is not None else ""
        if "prompt_id" in mapped and not prompt_id:
            raise UserError(f"{row.where}: prompt_id is empty; every row needs one, or map no column to prompt_id")
        prompt_id = prompt_id or digest[:16]
        if prompt_id in found:
            where, other, _ = found[prompt_id]
            if other != digest:
                raise UserError(
                    f"{row.where}: prompt_id={prompt_id} is also that of {where}, a different row; ids must be unique"
                )
            num_duplicates += 1
            continue
        prompt = _prompt(row, mapped, template, settings)
        kept = {name: value for name, value in mapped.items() if name not in ("prompt", "messages")}
        found[prompt_id] = row.where, digest, {**kept, **prompt, "prompt_id": prompt_id}
    return sorted((row for _, _, row in found.values()), key=lambda row: row["prompt_id"]), num_duplicates


def _check_columns(names: list[str], settings: Prepare, has_template: bool) -> None:
    """Every column that params.yaml names exists, none gets the name of another, and one of them is the prompt."""
    there = ", ".join(names)
    for ours, theirs in settings.columns.items():
        if theirs not in names:
            raise _wrong(f"columns.{ours}", theirs, f"the source has no such column; it has {there}")
        if ours in names and ours not in settings.columns.values():
            raise _wrong(
                f"columns.{ours}", theirs, f"the source has a column '{ours}' too; map that one to another name"
            )
    mapped = _map(dict.fromkeys(names), names, settings.columns)
    if not has_template and "prompt" not in mapped and "messages" not in mapped:
        raise UserError(
            f"params.yaml: prepare.columns: nothing is the prompt; add 'prompt: <column>' (the source has {there}), or "
            "set prepare.prompt_template"
        )
    if not has_template and "prompt" in mapped and "messages" in mapped:
        raise UserError(
            "params.yaml: prepare.columns: the source has both a prompt and messages; map the one that you do not "
            "want to another name, e.g. 'old_prompt: prompt'"
        )
    if has_template and "messages" in mapped:
        raise _wrong(
            "prompt_template",
            "",
            "the source has messages already; remove the template, or map messages to another name",
        )


def _map(values: dict[str, Any], names: list[str], columns: dict[str, str]) -> dict[str, Any]:
    """A row under our names; a column that params.yaml does not name keeps its own."""
    taken = set(columns.values())
    renamed = {ours: values.get(theirs) for ours, theirs in columns.items()}
    return renamed | {name: values.get(name) for name in names if name not in taken}


def _template(settings: Prepare) -> Callable[[Row, dict[str, Any]], str] | None:
    """`prompt_template` as a function of a row; it may name columns as the source or as `columns` calls them."""
    text = settings.prompt_template
    if text is None:
        return None
    try:
        fields = {re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise _wrong("prompt_template", text, f"{error}; write {{{{ and }}}} for braces that stay") from None
    if not fields:
        raise _wrong(
            "prompt_template", text, "names no column, so every prompt would be the same; write {question}, say"
        )

    def fill(row: Row, mapped: dict[str, Any]) -> str:
        known = {**row.values, **mapped}
        for name in fields:
            if name not in known:
                raise _wrong(
                    "prompt_template",
                    text,
                    f"there is no column '{name}'; there are {', '.join(known)} ({{{{ and }}}} are braces that stay)",
                )
            if known[name] is None or known[name] == "":
                raise UserError(
                    f"{row.where}: '{name}' is empty, and prepare.prompt_template needs it; mend or remove the row"
                )
        try:
            return text.format(**known)
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"{row.where}: prepare.prompt_template cannot be filled: {problem}") from None

    return fill


def _prompt(
    row: Row, mapped: dict[str, Any], template: Callable[[Row, dict[str, Any]], str] | None, settings: Prepare
) -> dict[str, Any]:
    """The row's `prompt` or `messages`, checked."""
    prompt: Any = (
        template(row, mapped) if template else mapped["messages"] if "messages" in mapped else mapped["prompt"]
    )
    if isinstance(prompt, list):
        prompt = [_message(message, row) for message in prompt]
    elif not isinstance(prompt, str) and prompt is not None:
        raise UserError(
            f"{row.where}: the prompt is a {type(prompt).__name__}; it must be a text or a list of messages"
        )
    problem = prompt_problem(prompt)
    if problem:
        raise UserError(f"{row.where}: {problem}; mend or remove the row")
    if isinstance(prompt, str) and settings.chat:
        prompt = [{"role": "user", "content": prompt}]
    if settings.system_prompt is not None:
        if isinstance(prompt, str):
            raise _wrong("system_prompt", settings.system_prompt, "only a chat has one; set prepare.chat to true")
        if prompt[0]["role"] == "system":
            raise UserError(f"{row.where}: has a system message of its own; remove prepare.system_prompt")
        prompt = [{"role": "system", "content": settings.system_prompt}, *prompt]
    return {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}


def _message(message: Any, row: Row) -> dict[str, Any]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise UserError(f"{row.where}: a message is {message!r:.60}; it must have a role and a content")
    extra = [name for name, value in message.items() if name not in ("role", "content") and value not in (None, [], {})]
    if extra:
        raise UserError(f"{row.where}: a message has '{extra[0]}'; only role and content (a text) are supported")
    return {"role": message["role"], "content": message["content"]}


def _choose(rows: list[dict[str, Any]], num: int | None, seed: int, split: Split) -> list[dict[str, Any]]:
    """`num` of the rows (null: all), the first by a seeded hash of their ids; sorted by id."""
    if num is None:
        return rows
    if num > len(rows):
        raise _wrong(f"num_{split}", num, f"there are only {len(rows)} usable rows; lower it")

    def rank(row: dict[str, Any]) -> str:
        return hashlib.sha256(f"{seed}\x1f{split}\x1f{row['prompt_id']}".encode()).hexdigest()

    return sorted(sorted(rows, key=rank)[:num], key=lambda row: row["prompt_id"])


def _text_key(row: dict[str, Any]) -> str:
    return _canonical(row["messages"] if "messages" in row else row["prompt"])


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def _wrong(key: str, value: Any, problem: str) -> UserError:
    return UserError(f"params.yaml: prepare.{key}: {value!r}: {problem}")
