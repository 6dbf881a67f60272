"""From requests to the rollouts table, in parts that survive a crash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.project.console import Progress
from gift.sampling.engine import Completion, Request, Sampler
from gift.tables.parquet import part_name
from gift.tables.parts import ROLLOUTS, check_rollouts, read_part, write_part


@dataclass(frozen=True)
class Group:
    """One prompt and the requests of its completions (sample 0, 1, ...)."""

    prompt_id: str
    requests: list[Request]


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
