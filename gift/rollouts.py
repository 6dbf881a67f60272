"""From prompts to the rollouts table: tokens of prompts, requests with their own seeds, parts that survive a crash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.console import Progress
from gift.errors import UserError
from gift.generate import Completion, Request, Sampler
from gift.params import Sampling
from gift.tables.parquet import part_name
from gift.tables.schemas import ROLLOUTS, check_rollouts, read_part, write_part
from gift.templates import render_chats


@dataclass(frozen=True)
class Group:
    """One prompt and the requests of its completions (sample 0, 1, ...)."""

    prompt_id: str
    requests: list[Request]


def encode_prompts(
    tokenizer: Any, prompts: pa.Table, variables: dict[str, Any], policy: Path
) -> tuple[dict[str, list[int]], str]:
    """Token ids of every prompt as the policy's tokenizer makes them, and the text right before every completion.

    That text is what the chat template adds for the policy to answer (gift/templates.py), empty for text prompts.
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
    return dict(zip(prompts["prompt_id"].to_pylist(), map(list, encoded), strict=True)), opening


def refuse_long_prompts(
    encoded: dict[str, list[int]], sampling: Sampling, max_model_len: int, section: str
) -> tuple[dict[str, list[int]], int]:
    """Prompts that leave room for `max_tokens`; the others are refused by id, or dropped and counted."""
    room = max_model_len - sampling.max_tokens
    long = {key: len(ids) for key, ids in encoded.items() if len(ids) > room}
    if long and sampling.long_prompts == "fail":
        key, length = max(long.items(), key=lambda item: item[1])
        raise UserError(
            f"params.yaml: {section}.max_tokens: {sampling.max_tokens}: {len(long)} prompts are too long for a context "
            f"of {max_model_len} tokens, the longest prompt_id={key} with {length}; lower {section}.max_tokens, or "
            f"set {section}.long_prompts to drop"
        )
    empty = [key for key, ids in encoded.items() if not ids]
    if empty:
        raise UserError(
            f"prompt_id={empty[0]}: the tokenizer makes no token of this prompt; mend or drop it in prepare"
        )
    return {key: ids for key, ids in encoded.items() if key not in long}, len(long)


def write_rollouts(
    folder: Path,
    groups: Sequence[Group],
    groups_per_part: int,
    metadata: dict[str, Any],
    start: Callable[[], tuple[Sampler, str]],
    decode: Callable[[list[int]], str],
    label: str,
) -> None:
    """Sample the groups part by part into `folder`; parts that are there already are kept.

    The engine starts only when a part is missing. Its name and version go into each part's metadata.
    """
    cuts = range(0, len(groups), groups_per_part)
    parts = [groups[cut : cut + groups_per_part] for cut in cuts]
    finished = {index for index in range(len(parts)) if (folder / part_name(index)).exists()}
    for index in finished:
        read_part(folder / part_name(index), ROLLOUTS, check_rollouts)
    if len(finished) == len(parts):
        return
    sampler, engine = start()
    done = sum(len(parts[index]) for index in finished)
    with Progress(label, len(groups), "prompts", done) as progress:
        for index, part in enumerate(parts):
            if index in finished:
                continue
            requests = [request for group in part for request in group.requests]
            completions = sampler(requests)
            table = _table(part, completions, decode)
            write_part(folder, index, table, ROLLOUTS, check_rollouts, {**metadata, "engine": engine})
            progress.advance(len(part), sum(len(completion.completion_ids) for completion in completions))


def _table(part: Sequence[Group], completions: list[Completion], decode: Callable[[list[int]], str]) -> pa.Table:
    rows = []
    sampled = iter(completions)
    for group in part:
        for sample, request in enumerate(group.requests):
            completion = next(sampled)
            rows.append(
                {
                    "prompt_id": group.prompt_id,
                    "sample": sample,
                    "prompt_ids": request.prompt_ids,
                    "completion_ids": completion.completion_ids,
                    "completion": decode(completion.completion_ids),
                    "rollout_logprobs": completion.logprobs,
                    "finish_reason": completion.finish_reason,
                    "seed": request.seed,
                }
            )
    return pa.Table.from_pylist(rows, schema=ROLLOUTS)
