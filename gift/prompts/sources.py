"""Where prompts come from (made here, the hub, local files), and how source rows become train and eval prompts.

Rows are chosen by a seeded hash of their id: the choice depends on neither the order of the source nor on chance, and
a larger `num_train` keeps the rows that a smaller one had.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from gift.embedded.task import Arithmetic, Split
from gift.project.errors import UserError, wrong_param
from gift.prompts.decontamination import normalized, shared_runs
from gift.prompts.files import Row
from gift.prompts.origins import Origin, check_origins, origins, read_rows
from gift.prompts.rows import check_prompt_columns, keep_rows, map_rows, prompt_of, prompt_template
from gift.prompts.settings import Prepare, Rows

Ledger = Counter[tuple[str, str, str]]
"""Source rows by split, key of the source and fate: `read`, and what became of them; 0 where a rule took nothing."""
FATES = {
    "train": ("read", "duplicates", "split_off", "in_eval", "not_taken", "written"),
    "eval": ("read", "duplicates", "not_taken", "written"),
}
"""Of which the totals always tell, in this order, with the others behind the second."""
KINDS = {str: "a text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "a struct"}


@dataclass(frozen=True)
class Prompts:
    """Rows of the two prompts tables (sorted by prompt_id), and what became of every source row."""

    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    ledger: dict[str, int]
    by_source: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Candidate:
    """A row as a prompt: its id, the digest of its values, its own words, and where it comes from."""

    prompt_id: str
    digest: str
    row: dict[str, Any]
    words: str
    where: str
    origin: Origin


def prepare_prompts(settings: Prepare, seed: int, task: Arithmetic | None = None) -> Prompts:
    """Read the sources, make prompts, drop duplicates, split, choose; the ledger's sums close or it raises.

    A prompt that eval holds (all of the eval source, not just the `num_eval` chosen) is never in train. task: of the
    embedded task's problems; None: its defaults.
    """
    check_origins(settings)
    ledger = Ledger()
    train = _gather(settings, seed, "train", ledger, task or Arithmetic())
    if origins(settings, "eval"):
        whole_eval = _gather(settings, seed, "eval", ledger, task or Arithmetic())
        chosen_eval = _take(whole_eval, settings.num_eval, seed, "eval", ledger)
    else:
        if settings.num_eval >= len(train):
            remedy = "lower it" if len(train) > 1 else "there must be more"
            problem = f"cannot be split off {len(train)} different row{'s' * (len(train) != 1)}; {remedy}"
            raise wrong_param("prepare.num_eval", settings.num_eval, problem)
        chosen_eval = whole_eval = _choose(train, settings.num_eval, seed, "eval", "prepare.num_eval")
        split_off = {each.prompt_id for each in chosen_eval}
        train = _without(train, [each.prompt_id in split_off for each in train], "split_off", ledger)
        for each in chosen_eval:
            ledger["eval", each.origin.source_key, "read"] += 1
    _one_kind([*train, *whole_eval], settings)
    clean = _not_in_eval(train, whole_eval, settings, ledger)
    chosen = _take(clean, settings.num_train, seed, "train", ledger)
    for split, rows in (("train", chosen), ("eval", chosen_eval)):
        _one_type(rows)
        for each in rows:
            ledger[split, each.origin.source_key, "written"] += 1
    totals, by_source = _summed(ledger)
    told = by_source if len(settings.sources) > 1 or len(settings.eval_sources) > 1 else {}
    return Prompts([each.row for each in chosen], [each.row for each in chosen_eval], totals, told)


def _summed(ledger: Ledger) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """`num_<split>_<fate>` over all sources, and of each by its key; a row that is in no sum is a fault of ours."""
    totals: dict[str, int] = {}
    by_source: dict[str, dict[str, int]] = {}
    for split, always in FATES.items():
        total = Counter(dict.fromkeys(always, 0))
        for source in dict.fromkeys(source for of, source, _ in ledger if of == split):
            counts = {fate: num for (*place, fate), num in ledger.items() if place == [split, source]}
            went = {fate: num for fate, num in counts.items() if fate != "read"}
            if sum(went.values()) != counts["read"] or min(went.values()) < 0:
                raise RuntimeError(f"{split} of {source}: {counts['read']} rows were read, but {went} do not add up")
            total.update(counts)
            by_source.setdefault(source, {}).update({f"num_{split}_{fate}": num for fate, num in counts.items()})
        order = [*always[:2], *(fate for fate in total if fate not in always), *always[2:]]
        totals |= {f"num_{split}_{fate}": total[fate] for fate in order}
    return totals, by_source


def _gather(settings: Prepare, seed: int, split: Split, ledger: Ledger, task: Arithmetic) -> list[Candidate]:
    """The different rows of a split's sources that pass their filters, as prompts; sorted by id."""
    found: dict[str, Candidate] = {}
    for origin in origins(settings, split):
        rows, num_read = _distinct(read_rows(origin, settings, seed, split, task), origin.rows)
        ledger[split, origin.source_key, "read"] += num_read
        ledger[split, origin.source_key, "duplicates"] += num_read - len(rows)
        mapped = map_rows([row.values for row in rows], origin.rows, origin.key)
        rows = [replace(row, values=values) for row, values in zip(rows, mapped, strict=True)]
        names = list(mapped[0])
        if origin.rows.domain is not None and "domain" in names:
            raise wrong_param(f"{origin.key}.domain", origin.rows.domain, "there is a column 'domain' too; remove one")
        template = prompt_template(origin.rows, names, origin.key)
        check_prompt_columns(names, template is not None, origin.key)
        kept, taken = keep_rows(rows, origin.rows.filters, f"{origin.key}.filters")
        for name, num in taken.items():
            ledger[split, origin.source_key, f"filtered_{name}"] += num
        for row in kept:
            candidate = _candidate(row, origin, prompt_of(row, template, settings))
            same = found.setdefault(candidate.prompt_id, candidate)
            if same.digest != candidate.digest:
                raise UserError(
                    f"{row.where}: prompt_id={candidate.prompt_id} is also that of {same.where}, a different row; ids "
                    "must be unique: map no column to prompt_id, and they are made of the rows"
                )
            if same is not candidate:
                ledger[split, origin.source_key, "duplicates"] += 1
    rows_by_id = sorted(found.values(), key=lambda each: each.prompt_id)
    if settings.dedup == "rows":
        return rows_by_id
    keys = [_same_key(each, settings) for each in rows_by_id]
    first = dict(zip(reversed(keys), reversed(rows_by_id), strict=True))
    repeated = [first[key] is not each for key, each in zip(keys, rows_by_id, strict=True)]
    return _without(rows_by_id, repeated, "repeated", ledger, split)


def _distinct(rows: Iterable[Row], settings: Rows) -> tuple[list[Row], int]:
    """The rows that differ in a column that is used, and the number read.

    Rows that repeat one (some data sets hold each a hundred times) are never all in memory, nor are dropped columns:
    they are null, but in the first row, which messages show.
    """
    unused = set(settings.drop) - {path.split(".")[0] for path in settings.columns.values()}
    kept: dict[str, Row] = {}
    num_read = 0
    for row in rows:
        num_read += 1
        digest = _digest({name: value for name, value in row.values.items() if name not in unused})
        if digest not in kept:
            slim = {name: None if name in unused else value for name, value in row.values.items()}
            kept[digest] = replace(row, values=slim) if kept else row
    return list(kept.values()), num_read


def _candidate(row: Row, origin: Origin, made: tuple[dict[str, Any], str]) -> Candidate:
    prompt, words = made
    digest = _digest(row.values)
    prompt_id = str(row.values["prompt_id"]).strip() if row.values.get("prompt_id") is not None else ""
    if "prompt_id" in row.values and not prompt_id:
        raise UserError(f"{row.where}: prompt_id is empty; every row needs one, or map no column to prompt_id")
    kept = {name: value for name, value in row.values.items() if name not in ("prompt", "messages")}
    domain = {"domain": origin.rows.domain} if origin.rows.domain is not None else {}
    values = {**kept, **domain, **prompt, "prompt_id": prompt_id or digest[:16]}
    return Candidate(values["prompt_id"], digest, values, words, row.where, origin)


def _one_kind(rows: list[Candidate], settings: Prepare) -> None:
    """Prompts are all texts or all chats; only chats pass a chat template."""
    texts = [each for each in rows if "prompt" in each.row]
    if texts and len(texts) < len(rows):
        chat = next(each for each in rows if "messages" in each.row)
        problem = f"{texts[0].where} is a text and {chat.where} a chat"
        raise wrong_param("prepare.chat", False, f"{problem}; set it to true, so that texts become a user's message")
    if texts and settings.chat_template_kwargs:
        raise UserError(
            f"params.yaml: prepare.chat_template_kwargs: {', '.join(settings.chat_template_kwargs)}: the prompts are "
            "texts, which pass no chat template; set prepare.chat to true, or remove it"
        )


def _one_type(rows: list[Candidate]) -> None:
    """A column of a table has one type; the first two rows that differ are named."""
    kinds: dict[str, dict[str, Candidate]] = {}
    for each in rows:
        for name, value in each.row.items():
            if value is not None:
                kind = KINDS.get(type(value), type(value).__name__)
                kinds.setdefault(name, {}).setdefault(kind, each)
    for name, found in kinds.items():
        if len(found) > 1:
            (one, first), (other, second), *_ = found.items()
            raise UserError(
                f"{first.where}: '{name}' is {one}, and in {second.where} {other}; a column has one type: add "
                f"'{name}' to as_text where it is no text, or give it another name in one source (columns)"
            )


def _not_in_eval(
    train: list[Candidate], held_out: list[Candidate], settings: Prepare, ledger: Ledger
) -> list[Candidate]:
    """Training prompts that eval does not ask, nor (with `decontaminate`) any that shares a run of words with one."""
    prompts, words = {_same_key(each, settings) for each in held_out}, {_words_key(each, settings) for each in held_out}
    same = [_same_key(each, settings) in prompts or _words_key(each, settings) in words for each in train]
    clean = _without(train, same, "in_eval", ledger)
    if not clean:
        raise UserError("params.yaml: prepare: every training prompt is also an eval prompt; choose another eval part")
    rule = settings.decontaminate
    if rule is None:
        return clean
    runs = shared_runs([each.words for each in clean], [each.words for each in held_out], rule.ngram, rule.max_prompts)
    left = _without(clean, [run is not None for run in runs], "contaminated", ledger)
    if not left:
        run, num = Counter(run for run in runs if run is not None).most_common(1)[0]
        raise UserError(
            f"params.yaml: prepare.decontaminate: no training prompt is left; {num} of {len(clean)} share '{run:.100}' "
            "with eval. If that is a phrase of all prompts, lower max_prompts, or put it into prompt_template"
        )
    return left


def _without(
    rows: list[Candidate], gone: list[bool], fate: str, ledger: Ledger, split: Split = "train"
) -> list[Candidate]:
    for each, is_gone in zip(rows, gone, strict=True):
        ledger[split, each.origin.source_key, fate] += is_gone
    return [each for each, is_gone in zip(rows, gone, strict=True) if not is_gone]


def _take(rows: list[Candidate], num: int | None, seed: int, split: Split, ledger: Ledger) -> list[Candidate]:
    """Of each source its `num`, and of these `num` in all."""
    taken = []
    for origin in {each.origin.source_key: each.origin for each in rows}.values():
        of_it = [each for each in rows if each.origin.source_key == origin.source_key]
        taken += _choose(of_it, origin.num, seed, split, f"{origin.key}.num")
    chosen = _choose(sorted(taken, key=lambda each: each.prompt_id), num, seed, split, f"prepare.num_{split}")
    ids = {each.prompt_id for each in chosen}
    return _without(rows, [each.prompt_id not in ids for each in rows], "not_taken", ledger, split)


def _choose(rows: list[Candidate], num: int | None, seed: int, split: Split, key: str) -> list[Candidate]:
    """`num` of the rows (null: all), the first by a seeded hash of their ids; sorted by id."""
    if num is None:
        return rows
    if num > len(rows):
        raise wrong_param(key, num, f"there are only {len(rows)} usable rows; lower it")

    def rank(each: Candidate) -> str:
        return hashlib.sha256(f"{seed}\x1f{split}\x1f{each.prompt_id}".encode()).hexdigest()

    return sorted(sorted(rows, key=rank)[:num], key=lambda each: each.prompt_id)


def _same_key(each: Candidate, settings: Prepare) -> str:
    """Equal for two prompts that `dedup` holds to be the same (with `rows`, as for eval: the same to the letter)."""
    prompt = each.row["messages"] if "messages" in each.row else each.row["prompt"]
    if settings.dedup != "normalized":
        return _canonical(prompt)
    if isinstance(prompt, str):
        return normalized(prompt)
    return "\n".join(f"{message['role']}: {normalized(message['content'])}" for message in prompt)


def _words_key(each: Candidate, settings: Prepare) -> str:
    """The same for the words of a problem, which eval may ask with another template or system message."""
    return normalized(each.words) if settings.dedup == "normalized" else each.words


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(values).encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
