"""Answers that were given, in the tokens in which the policy would have said them: `generate.given` of params.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gift.project.errors import UserError
from gift.sampling.encoding import Chat, EncodedPrompts, Tokens, end_of_turn, render
from gift.sampling.settings import Generate
from gift.tables.prompts import given_texts, prompt_column


def encode_given(
    tokenizer: Any,
    table: pa.Table,
    encoded: EncodedPrompts,
    variables: dict[str, Any],
    settings: Generate,
    policy: Path,
    prompts: Path,
) -> dict[str, list[Tokens]]:
    """The given answers of each prompt of `encoded`, in the order of `generate.given`: tokens, ended by an end token.

    Prompt and answer are cut into tokens together where the prompt keeps its own, else the answer alone. variables:
    prepare.chat_template_kwargs; policy and prompts are what messages name. Raises `UserError` for an answer that a
    sampler could not have returned: longer than `generate.max_tokens`, or with an end token inside.
    """
    by_column = given_texts(table, settings.given, prompts)
    found: dict[str, list[Tokens]] = {key: [] for key in encoded.prompt_ids}
    if not settings.given:
        return found
    rows = [(row, key) for row, key in enumerate(table["prompt_id"].to_pylist()) if key in found]
    asked = table[prompt_column(table)].to_pylist()
    is_chat = prompt_column(table) == "messages"
    end = _end(tokenizer, encoded.ends, variables if is_chat else None, policy)
    for name, texts in by_column.items():
        pairs = [(asked[row], texts[row]) for row, _ in rows]
        if is_chat:
            pairs = [_said(tokenizer, *pair, variables, policy, end) for pair in pairs]
        whole = tokenizer([prompt + said for prompt, said in pairs], add_special_tokens=not is_chat)["input_ids"]
        bare = tokenizer([said for _, said in pairs], add_special_tokens=False)["input_ids"]
        for (_, key), together, apart in zip(rows, whole, bare, strict=True):
            prompt = encoded.prompt_ids[key].tolist()
            said = together[len(prompt) :] if together[: len(prompt)] == prompt else apart
            if inside := set(said).intersection(encoded.ends):
                token = tokenizer.convert_ids_to_tokens(min(inside))
                raise UserError(
                    f"params.yaml: generate.given: {name}: the answer of prompt_id={key} holds the end token {token}, "
                    "behind which no completion goes on; take it out of the source: it is added here"
                )
            found[key].append(np.array([*said, end], np.int32))
    _refuse_long(found, settings)
    return found


def _end(tokenizer: Any, ends: Sequence[int], variables: dict[str, Any] | None, policy: Path) -> int:
    """The token that ends a given answer: the one that the chat template writes (variables: of a chat), or eos."""
    if not ends:
        raise UserError(f"params.yaml: generate.given: {policy} names no end token; set generate.stop_tokens")
    token = None
    if variables is not None:
        try:
            token = end_of_turn(tokenizer, variables, policy)
        except (UserError, ValueError):  # a template that takes no answer, or changes it
            token = None
    if token is None:
        return int(ends[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
    number = int(tokenizer.convert_tokens_to_ids(token))
    if number not in ends:
        raise UserError(
            f"params.yaml: generate.given: the chat template of {policy} ends an answer with {token}, which ends no "
            f"completion; set generate.stop_tokens: ['{token}']"
        )
    return number


def _said(
    tokenizer: Any, chat: Chat, answer: str, variables: dict[str, Any], policy: Path, end: int
) -> tuple[str, str]:
    """A chat as the sampler sees it, and what the template puts behind it for an answer, up to its end token.

    Where the template changes what stands before an answer, or the answer itself (it takes thoughts away), the answer
    stands as it is.
    """
    prompt = render(tokenizer, chat, variables, policy)
    try:
        both = render(tokenizer, [*chat, {"role": "assistant", "content": answer}], variables, policy, False)
    except UserError:  # it takes no answer
        return prompt, answer
    said, ended, _ = both[len(prompt) :].partition(str(tokenizer.convert_ids_to_tokens(end)))
    return prompt, said if both.startswith(prompt) and ended and answer.strip() in said else answer


def _refuse_long(found: dict[str, list[Tokens]], settings: Generate) -> None:
    for place, name in enumerate(settings.given):
        lengths = {key: len(answers[place]) for key, answers in found.items()}
        long = [key for key, length in lengths.items() if length > settings.max_tokens]
        if long:
            key = max(long, key=lengths.__getitem__)
            raise UserError(
                f"params.yaml: generate.given: {name}: {len(long)} answers are longer than generate.max_tokens = "
                f"{settings.max_tokens}, the longest that of prompt_id={key} with {lengths[key]} (its end token "
                "included); raise generate.max_tokens, or leave such rows out: prepare.filters.length counts characters"
            )
