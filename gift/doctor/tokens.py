"""Prompts in the base policy's own tokens: lengths against the context, the chat template, and the end of a turn."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.doctor.findings import Finding, refusal
from gift.doctor.prompts import Prompts
from gift.doctor.settings import Project
from gift.policy.folder import load_tokenizer
from gift.project.errors import UserError
from gift.sampling.encoding import EncodedPrompts, encode_prompts, encode_split
from gift.sampling.settings import Sampling
from gift.sampling.templates import chat_findings
from gift.tables.prompts import prompt_column

THEME = "tokens"
WHERE = "params.yaml: base.model"
MOST_PROMPTS = 20_000
"""Of each table are cut into tokens, evenly taken, so that the doctor ends within a minute."""


def token_findings(project: Project, folder: Path | None, prompts: Prompts) -> list[Finding]:
    """Everything below; `folder` None: the embedded model, whose tokenizer is known before it is trained."""
    params = project.params
    try:
        tokenizer = _tokenizer(folder)
    except (UserError, OSError, ValueError) as error:
        return [Finding("error", THEME, f"the tokenizer does not load ({str(error).splitlines()[0]})", WHERE)]
    try:
        train = _encode(project, tokenizer, folder, prompts.train, "generate")
        evaluated = _encode(project, tokenizer, folder, prompts.eval, "evaluate")
    except UserError as error:
        return [refusal(THEME, error)]
    findings = []
    for encoded, sampling, section in ((train, params.generate, "generate"), (evaluated, params.evaluate, "evaluate")):
        if folder is None or sampling.max_tokens < encoded.context:  # else model_findings has said it
            findings += _length_findings(encoded, sampling, section)
        findings += _unknown_findings(encoded, tokenizer, section)
    if prompt_column(prompts.train) == "messages":
        variables, model = params.prepare.chat_template_kwargs, folder or Path(params.base.model)
        odd = chat_findings(tokenizer, train.ends, train.opening, variables, model)
        findings += [Finding("warning", THEME, line) for line in odd]
        return [*findings, *_think_findings(project, train.opening)]
    if not train.ends:
        text = "the model names no end token: every completion runs to max_tokens"
        findings.append(Finding("warning", THEME, text, "params.yaml: generate.stop_tokens"))
    if tokenizer.chat_template:
        text = "false: the model has a chat template, and an instruct model seldom saw plain text; set it to true"
        findings.append(Finding("warning", THEME, f"{text}, unless this is meant", "params.yaml: prepare.chat"))
    return findings


def _tokenizer(folder: Path | None) -> Any:
    if folder is not None:
        return load_tokenizer(folder)
    from gift.embedded.base_policy import make_tokenizer

    return make_tokenizer()


def _encode(project: Project, tokenizer: Any, folder: Path | None, table: pa.Table, section: str) -> EncodedPrompts:
    """Some prompts of one section as its stage will have them."""
    params = project.params
    sampling = params.generate if section == "generate" else params.evaluate
    variables = params.prepare.chat_template_kwargs
    if folder is not None:
        return encode_split(tokenizer, folder, _some(table), variables, sampling, section, Path(params.base.model))
    from gift.embedded.base_policy import CONTEXT

    encoded, opening = encode_prompts(tokenizer, _some(table), variables, Path(params.base.model))
    return EncodedPrompts(encoded, opening, [tokenizer.eos_token_id], sampling.max_model_len or CONTEXT)


def _unknown_findings(encoded: EncodedPrompts, tokenizer: Any, section: str) -> list[Finding]:
    num_unknown = sum(tokenizer.unk_token_id in ids for ids in encoded.prompt_ids.values())
    if not num_unknown:
        return []
    prompts = f"{num_unknown:,} of {len(encoded.prompt_ids):,} {section} prompts"
    return [Finding("warning", THEME, f"{prompts} hold characters that the tokenizer does not know", WHERE)]


def _length_findings(encoded: EncodedPrompts, sampling: Sampling, section: str) -> list[Finding]:
    """Whether prompts leave room for the longest completion."""
    lengths = sorted(map(len, encoded.prompt_ids.values()))
    room = encoded.context - sampling.max_tokens
    num_long = sum(length > room for length in lengths)
    if not num_long:
        text = (
            f"{section}: prompts of up to {lengths[-1]:,} tokens, 99% up to {lengths[len(lengths) * 99 // 100]:,}; "
            f"there is room for {room:,} ({encoded.context:,} of context - {sampling.max_tokens:,} of completion)"
        )
        return [Finding("ok", THEME, text)]
    drop = sampling.long_prompts == "drop"
    share = f"{num_long:,} of {len(lengths):,} prompts are longer than {room:,} tokens"
    remedy = "are left out" if drop else f"{section} will stop; lower {section}.max_tokens, or set long_prompts to drop"
    where = f"params.yaml: {section}.max_tokens"
    return [Finding("warning" if drop else "error", THEME, f"{sampling.max_tokens}: {share}: {remedy}", where)]


def _think_findings(project: Project, opening: str) -> list[Finding]:
    """What the chat template says before a completion begins."""
    if not opening.rstrip().endswith("<think>"):
        return [Finding("ok", THEME, f"chat template: an answer begins after {opening!r}")]
    text = "its chat template opens <think> itself: completions begin inside it, and a reward must not ask for the tag"
    strict = [name for name, each in project.params.score.rewards.items() if _wants_think(each.settings)]
    if not strict:
        return [Finding("note", THEME, text, WHERE)]
    return [Finding("warning", THEME, f"{text}, as score.rewards.{strict[0]} does", WHERE)]


def _wants_think(settings: dict[str, Any]) -> bool:
    """A whole-text pattern that begins with the tag would give 0 to every completion."""
    return str(settings.get("pattern", "")).lstrip("^").startswith("<think>")


def _some(table: pa.Table) -> pa.Table:
    step = -(-table.num_rows // MOST_PROMPTS)
    return table if step <= 1 else table.take(list(range(0, table.num_rows, step)))
