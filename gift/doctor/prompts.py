"""The prompts that training will see: prepared, or made in memory as `prepare` will make them; and their tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from gift.doctor.findings import Finding, Theme
from gift.doctor.whole import Params
from gift.embedded.task import CONTEXT
from gift.policy.folder import load_tokenizer
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.prompts.decontamination import normalized
from gift.prompts.origins import num_bytes
from gift.prompts.sources import prepare_prompts
from gift.sampling.encoding import EncodedPrompts, chat_findings, encode_prompts, encode_split, refuse_long_prompts
from gift.sampling.given import encode_given
from gift.sampling.settings import Sampling
from gift.scoring.rows import Asked
from gift.scoring.settings import Score
from gift.tables.prompts import check_prompts, domains_in, given_texts, prompt_column, prompts_table, read_prompts

say, tokens = Theme("data"), Theme("tokens")
TRAIN, EVAL = Path("data/prompts/train.parquet"), Path("data/prompts/eval.parquet")
QUICK_BYTES = 8_000_000
"""Of local sources that are read within a second; `gift doctor` without --quick has no limit."""
MOST_PROMPTS = 20_000
"""Of each table are cut into tokens, evenly taken, so that the doctor ends within a minute."""
FEW_EVAL = 50
MODEL = "params.yaml: base.model"


@dataclass(frozen=True)
class Prompts:
    """The tables of training and of evaluation, as the stages will read them."""

    train: pa.Table
    eval: pa.Table


def find_prompts(params: Params, limit: float) -> tuple[Prompts | None, list[Finding]]:
    """Prompts made with these settings; None where they are wrong, or where it would take reading more than `limit`.

    Sources are read anew where that is quick, for a file may have changed since `prepare` ran.
    """
    try:
        size = num_bytes(params.prepare)
        tables = _prepared(params) if size > limit or size == inf else None
        if tables is None and size > limit:
            text = "a large source is not looked at in a quick check; `gift doctor` does before `prepare` has run"
            return None, [say.note(f"params.yaml: prepare: {text}")]
        if tables is None:
            made = prepare_prompts(params.prepare, params.seed, params.arithmetic)
            tables = Prompts(prompts_table(made.train, TRAIN), prompts_table(made.eval, EVAL))
            check_prompts(tables.train, TRAIN)
            check_prompts(tables.eval, EVAL)
    except UserError as error:
        return None, say.refused(error)
    kind = prompt_column(tables.train)
    others = [name for name in tables.train.column_names if name not in ("prompt_id", kind)]
    columns = f"columns for rewards: {', '.join(others)}" if others else "no column for rewards besides the prompt"
    counts = f"{tables.train.num_rows:,} training and {tables.eval.num_rows:,} eval prompts ({kind})"
    return tables, [say.ok(f"{counts}; {columns}")]


def prompt_findings(prompts: Prompts, score: Score) -> Iterator[Finding]:
    """What loads, but is hardly meant: empty cells, the same prompt twice or held out, a tiny evaluation."""
    yield from _empty_findings(prompts.train, TRAIN, score)
    yield from _empty_findings(prompts.eval, EVAL, score)
    train, held_out = _texts(prompts.train), _texts(prompts.eval)
    if repeated := len(train) - len(set(train)):
        text = "training prompts repeat another (but for case, spaces and marks); drop them (prepare.dedup)"
        yield say.warning(f"{repeated:,} of {len(train):,} {text}", str(TRAIN))
    if leaked := set(train) & set(held_out):
        text = f"eval prompts are in train too (but for case, spaces and marks), as {min(leaked)[:60]!r}"
        yield say.warning(f"{len(leaked):,} of {len(held_out):,} {text}; drop them from one", str(EVAL))
    if len(held_out) < FEW_EVAL:
        error = 0.5 / max(1, len(held_out)) ** 0.5
        text = f"an accuracy near one half has a standard error of {error:.2f}; 200 or more are usual"
        yield say.note(f"params.yaml: prepare.num_eval: {len(held_out)}: {text}")


def domain_findings(params: Params, prompts: Prompts) -> Iterator[Finding]:
    """A method of the update that compares prompts by their domain finds none."""
    if "domains" in params.update.needs:
        try:
            domains_in(prompts.train, TRAIN)
        except UserError as error:
            yield from say.refused(error)


def given_findings(params: Params, prompts: Prompts | None) -> Iterator[Finding]:
    """Columns of given answers that do not serve, and answers that no loss reads, or a loss without any."""
    columns, shape = params.generate.given, params.update.shape
    key = "params.yaml: generate.given"
    if columns and not shape.record.given:
        text = f"{', '.join(columns)}: update.shape: {shape.name} leaves given answers out"
        yield say.warning(f"{key}: {text}: they are scored for nothing; set it to [], or take a shape that reads them")
    if shape.record.given and not columns:
        text = f"none, but update.shape: {shape.name} reads given answers: nothing is imitated; name columns of prompts"
        yield say.warning(f"{key}: {text}")
    if prompts:
        try:
            given_texts(prompts.train, columns, TRAIN)
        except UserError as error:
            yield from say.refused(error)


def _texts(table: pa.Table) -> list[str]:
    """Each prompt as one text without differences of typography; the messages of a chat one after another."""
    prompts = table[prompt_column(table)].to_pylist()
    return [normalized(each if isinstance(each, str) else "\n".join(m["content"] for m in each)) for each in prompts]


def _prepared(params: Params) -> Prompts | None:
    """What `prepare` has written, if it was with these settings."""
    wanted = {"settings": settings_of(params.prepare), "seed": params.seed}
    try:
        found = [read_prompts(path) for path in (TRAIN, EVAL)]
    except UserError:
        return None
    same = all(metadata.get(key) == value for _, metadata in found for key, value in wanted.items())
    return Prompts(*(table for table, _ in found)) if same else None


def _empty_findings(table: pa.Table, path: Path, score: Score) -> Iterator[Finding]:
    """A gold answer that is not there fails its row in every reward that reads it."""
    try:
        asked = Asked(score, table)
    except UserError:
        return  # said of the rewards
    for name in table.column_names:
        column = table[name].filter(pa.array(asked.readers(name)))
        empty = column.null_count
        if pa.types.is_string(column.type):
            empty += pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0
        if empty:
            text = f"column '{name}' is empty in {empty:,} of {table.num_rows:,} rows; a reward that reads it fails"
            yield say.found("warning" if name == "answer" else "note", f"{text} there", str(path))


def token_findings(params: Params, folder: Path | None, prompts: Prompts) -> Iterator[Finding]:
    """Lengths against the context, the chat template, and the end of a turn, in the base policy's own tokens.

    folder: of the model; None: the embedded one, whose tokenizer is known before it is trained.
    """
    try:
        if folder is None:
            from gift.embedded.base_policy import make_tokenizer

            tokenizer: Any = make_tokenizer()
        else:
            tokenizer = load_tokenizer(folder)
    except (UserError, OSError, ValueError) as error:
        yield tokens.error(f"{MODEL}: the tokenizer does not load ({str(error).splitlines()[0]})")
        return
    encoded: dict[str, EncodedPrompts] = {}
    for (section, sampling), table in zip(params.samplings.items(), (prompts.train, prompts.eval), strict=True):
        try:
            encoded[section] = _encode(params, tokenizer, folder, table, section)
        except UserError as error:
            yield from tokens.refused(error)
            continue
        yield from _length_findings(encoded[section], sampling, section)
        if num := sum(tokenizer.unk_token_id in ids for ids in encoded[section].prompt_ids.values()):
            text = f"{num:,} of {len(encoded[section].prompt_ids):,} {section} prompts hold characters"
            yield tokens.warning(f"{MODEL}: {text} that the tokenizer does not know")
    if not (train := encoded.get("generate")):
        return
    yield from _given_findings(params, tokenizer, folder, prompts.train, train)
    if prompt_column(prompts.train) == "messages":
        variables, policy = params.prepare.chat_template_kwargs, folder or Path(params.base.model)
        for line in chat_findings(tokenizer, train.ends, train.opening, variables, policy):
            yield tokens.warning(line)
        yield _think_finding(params, train.opening)
        return
    if not train.ends:
        yield tokens.warning("params.yaml: generate.stop_tokens: no end token: every completion runs to max_tokens")
    if tokenizer.chat_template:
        text = "false: the model has a chat template, and an instruct model seldom saw plain text; set it to true"
        yield tokens.warning(f"params.yaml: prepare.chat: {text}, unless this is meant")


def _encode(params: Params, tokenizer: Any, folder: Path | None, table: pa.Table, section: str) -> EncodedPrompts:
    """Some prompts of one section as its stage will have them."""
    sampling, variables, policy = params.samplings[section], params.prepare.chat_template_kwargs, params.base.model
    some = table.take(list(range(0, table.num_rows, -(-table.num_rows // MOST_PROMPTS))))
    if folder is not None:
        return encode_split(tokenizer, folder, some, variables, sampling, section, Path(policy))
    ids, opening = encode_prompts(tokenizer, some, variables, Path(policy))
    return EncodedPrompts(ids, opening, [tokenizer.eos_token_id], sampling.max_model_len or CONTEXT)


def _length_findings(encoded: EncodedPrompts, sampling: Sampling, section: str) -> Iterator[Finding]:
    """Whether prompts leave room for the longest completion."""
    try:
        _, num_long = refuse_long_prompts(encoded, sampling, section)
    except UserError as error:
        yield from tokens.refused(error)
        return
    lengths, room = sorted(map(len, encoded.prompt_ids.values())), encoded.context - sampling.max_tokens
    if num_long:
        text = f"{sampling.max_tokens}: {num_long:,} of {len(lengths):,} prompts are longer than {room:,} tokens"
        yield tokens.warning(f"params.yaml: {section}.max_tokens: {text}: they are left out")
        return
    yield tokens.ok(
        f"{section}: prompts of up to {lengths[-1]:,} tokens, 99% up to {lengths[len(lengths) * 99 // 100]:,}; there "
        f"is room for {room:,} ({encoded.context:,} of context - {sampling.max_tokens:,} of completion)"
    )


def _given_findings(
    params: Params, tokenizer: Any, folder: Path | None, table: pa.Table, encoded: EncodedPrompts
) -> Iterator[Finding]:
    """Given answers that a sampler could not have returned, or with characters that have no token."""
    generate, variables = params.generate, params.prepare.chat_template_kwargs
    try:
        policy = folder or Path(params.base.model)
        kept, _ = refuse_long_prompts(encoded, generate, "generate")
        made = encode_given(tokenizer, table, kept, variables, generate, policy, TRAIN)
    except UserError as error:
        yield from tokens.refused(error)
        return
    answers = [ids for each in made.values() for ids in each]
    if num := sum(tokenizer.unk_token_id in ids for ids in answers):
        text = f"{num:,} of {len(answers):,} answers hold characters that the tokenizer does not know"
        yield tokens.warning(f"params.yaml: generate.given: {text}")
    if answers:
        text = f"answers of up to {max(map(len, answers)):,} tokens, their end token included"
        yield tokens.ok(f"given: {text}, of generate.max_tokens = {generate.max_tokens:,}")


def _think_finding(params: Params, opening: str) -> Finding:
    """A whole-text pattern that begins with <think> gives 0 to every completion if the template has opened it."""
    if not opening.rstrip().endswith("<think>"):
        return tokens.ok(f"chat template: an answer begins after {opening!r}")
    text = "its chat template opens <think> itself: completions begin inside it, and a reward must not ask for the tag"
    for name, reward in params.score.rewards.items():
        if str(reward.settings.get("pattern", "")).lstrip("^").startswith("<think>"):
            return tokens.warning(f"{MODEL}: {text}, as score.rewards.{name} does")
    return tokens.note(f"{MODEL}: {text}")
