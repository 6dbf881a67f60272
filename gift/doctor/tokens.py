"""Prompts in the base policy's own tokens: lengths against the context, the chat template, and the end of a turn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.doctor.findings import Finding, Theme
from gift.doctor.prompts import Prompts
from gift.doctor.whole import Params
from gift.embedded.settings import CONTEXT
from gift.policy.folder import load_tokenizer
from gift.project.errors import UserError
from gift.sampling.encoding import EncodedPrompts, chat_findings, encode_prompts, encode_split, refuse_long_prompts
from gift.sampling.settings import Sampling
from gift.tables.prompts import prompt_column

say = Theme("tokens")
WHERE = "params.yaml: base.model"
MOST_PROMPTS = 20_000
"""Of each table are cut into tokens, evenly taken, so that the doctor ends within a minute."""


def token_findings(params: Params, folder: Path | None, prompts: Prompts) -> Iterator[Finding]:
    """Everything below; `folder` None: the embedded model, whose tokenizer is known before it is trained."""
    try:
        if folder is None:
            from gift.embedded.base_policy import make_tokenizer

            tokenizer: Any = make_tokenizer()
        else:
            tokenizer = load_tokenizer(folder)
    except (UserError, OSError, ValueError) as error:
        yield say.error(f"{WHERE}: the tokenizer does not load ({str(error).splitlines()[0]})")
        return
    encoded: dict[str, EncodedPrompts] = {}
    for (section, sampling), table in zip(params.samplings.items(), (prompts.train, prompts.eval), strict=True):
        try:
            encoded[section] = _encode(params, tokenizer, folder, table, section)
        except UserError as error:
            yield from say.refused(error)
            continue
        yield from _length_findings(encoded[section], sampling, section)
        if num := sum(tokenizer.unk_token_id in ids for ids in encoded[section].prompt_ids.values()):
            text = f"{num:,} of {len(encoded[section].prompt_ids):,} {section} prompts hold characters"
            yield say.warning(f"{WHERE}: {text} that the tokenizer does not know")
    if not (train := encoded.get("generate")):
        return
    if prompt_column(prompts.train) == "messages":
        variables, policy = params.prepare.chat_template_kwargs, folder or Path(params.base.model)
        for line in chat_findings(tokenizer, train.ends, train.opening, variables, policy):
            yield say.warning(line)
        yield _think_finding(params, train.opening)
        return
    if not train.ends:
        text = "the model names no end token: every completion runs to max_tokens"
        yield say.warning(f"params.yaml: generate.stop_tokens: {text}")
    if tokenizer.chat_template:
        text = "false: the model has a chat template, and an instruct model seldom saw plain text; set it to true"
        yield say.warning(f"params.yaml: prepare.chat: {text}, unless this is meant")


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
        yield from say.refused(error)
        return
    lengths, room = sorted(map(len, encoded.prompt_ids.values())), encoded.context - sampling.max_tokens
    if num_long:
        text = f"{sampling.max_tokens}: {num_long:,} of {len(lengths):,} prompts are longer than {room:,} tokens"
        yield say.warning(f"params.yaml: {section}.max_tokens: {text}: they are left out")
        return
    yield say.ok(
        f"{section}: prompts of up to {lengths[-1]:,} tokens, 99% up to {lengths[len(lengths) * 99 // 100]:,}; there "
        f"is room for {room:,} ({encoded.context:,} of context - {sampling.max_tokens:,} of completion)"
    )


def _think_finding(params: Params, opening: str) -> Finding:
    """A whole-text pattern that begins with <think> gives 0 to every completion if the template has opened it."""
    if not opening.rstrip().endswith("<think>"):
        return say.ok(f"chat template: an answer begins after {opening!r}")
    text = "its chat template opens <think> itself: completions begin inside it, and a reward must not ask for the tag"
    for name, reward in params.score.rewards.items():
        if str(reward.settings.get("pattern", "")).lstrip("^").startswith("<think>"):
            return say.warning(f"{WHERE}: {text}, as score.rewards.{name} does")
    return say.note(f"{WHERE}: {text}")
