"""Prompts as a policy's own files cut them into tokens: its chat template, its context, the tokens that end answers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gift.policy.folder import max_model_len
from gift.project.errors import UserError
from gift.sampling.settings import Sampling, room_problem
from gift.sampling.templates import end_token_ids, render_chats

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class EncodedPrompts:
    """What a sampler is asked with, and the room it has."""

    prompt_ids: dict[str, Tokens]  # by prompt_id
    opening: str  # what the chat template adds before every completion; empty for text prompts
    ends: list[int]  # tokens that end a completion
    context: int  # tokens of prompt and completion together


def encode_split(
    tokenizer: Any,
    model: Path,
    prompts: pa.Table,
    variables: dict[str, Any],
    sampling: Sampling,
    section: str,
    policy: Path,
) -> EncodedPrompts:
    """Every prompt of a table under one sampling section of params.yaml: `generate` or `evaluate`.

    model: the folder of the tokenizer and the model's configuration. variables: prepare.chat_template_kwargs. policy is
    what messages name. Raises `UserError` where the context, a stop token or the template does not fit.
    """
    context = max_model_len(model, sampling.max_model_len, section)
    if problem := room_problem(sampling, section, context):
        raise UserError(problem)
    ends = end_token_ids(model, tokenizer, sampling.stop_tokens, f"{section}.stop_tokens")
    encoded, opening = encode_prompts(tokenizer, prompts, variables, policy)
    return EncodedPrompts(encoded, opening, ends, context)


def encode_prompts(
    tokenizer: Any, prompts: pa.Table, variables: dict[str, Any], policy: Path
) -> tuple[dict[str, Tokens], str]:
    """Token ids of every prompt as the policy's tokenizer makes them, and the text right before every completion.

    That text is what the chat template adds for the policy to answer (templates.py), empty for text prompts.
    `variables` are the template's: prepare.chat_template_kwargs.
    """
    if "messages" in prompts.column_names:
        texts, opening = render_chats(tokenizer, prompts["messages"].to_pylist(), variables, policy)
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    elif variables:
        raise UserError(
            f"params.yaml: prepare.chat_template_kwargs: {', '.join(variables)}: the prompts are texts, which pass "
            "no chat template; set prepare.chat to true, or remove it"
        )
    else:
        encoded, opening = tokenizer(prompts["prompt"].to_pylist())["input_ids"], ""
    tokens = (np.array(ids, dtype=np.int32) for ids in encoded)
    return dict(zip(prompts["prompt_id"].to_pylist(), tokens, strict=True)), opening


def refuse_long_prompts(encoded: EncodedPrompts, sampling: Sampling, section: str) -> tuple[EncodedPrompts, int]:
    """Only the prompts that leave room for `max_tokens`; the others are refused by id, or dropped and counted."""
    room = encoded.context - sampling.max_tokens
    long = {key: len(ids) for key, ids in encoded.prompt_ids.items() if len(ids) > room}
    if long and sampling.long_prompts == "fail":
        key, length = max(long.items(), key=lambda item: item[1])
        raise UserError(
            f"params.yaml: {section}.max_tokens: {sampling.max_tokens}: {len(long)} prompts are too long for a context "
            f"of {encoded.context} tokens, the longest prompt_id={key} with {length}; lower {section}.max_tokens, or "
            f"set {section}.long_prompts to drop"
        )
    if empty := [key for key, ids in encoded.prompt_ids.items() if not len(ids)]:
        raise UserError(
            f"prompt_id={empty[0]}: the tokenizer makes no token of this prompt; mend or drop it in prepare"
        )
    kept = {key: ids for key, ids in encoded.prompt_ids.items() if key not in long}
    return replace(encoded, prompt_ids=kept), len(long)
