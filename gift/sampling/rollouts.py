"""From requests to the rollouts table, in parts that survive a crash."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gift.project.console import Progress
from gift.project.ragged import Ragged
from gift.sampling.engine import Completion, Request, Sampler
from gift.tables.parts import part_name, read_part, write_part
from gift.tables.rollouts import ROLLOUTS, check_rollouts


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
    parts = [groups[cut : cut + groups_per_part] for cut in range(0, len(groups), groups_per_part)]
    missing = {index: part for index, part in enumerate(parts) if not (folder / part_name(index)).exists()}
    for index in set(range(len(parts))) - missing.keys():
        read_part(folder / part_name(index), ROLLOUTS, check_rollouts)
    if not missing:
        return
    sampler, engine = start()
    done = len(groups) - sum(map(len, missing.values()))
    with Progress(label, len(groups), "prompts", done) as progress:
        for index, part in missing.items():
            requests = [request for group in part for request in group.requests]
            completions = sampler(requests)
            table = _table(part, completions, decode)
            write_part(folder, index, table, ROLLOUTS, check_rollouts, {**metadata, "engine": engine})
            progress.advance(len(part), sum(len(completion.completion_ids) for completion in completions))


def _table(part: Sequence[Group], completions: list[Completion], decode: Callable[[list[int]], str]) -> pa.Table:
    keys = [(group.prompt_id, sample, request) for group in part for sample, request in enumerate(group.requests)]
    prompt_ids, samples, requests = zip(*keys, strict=True)
    columns = [
        prompt_ids,
        samples,
        Ragged.of([each.prompt_ids for each in requests], np.int32).to_arrow(),
        Ragged.of([each.completion_ids for each in completions], np.int32).to_arrow(),
        [decode(each.completion_ids.tolist()) for each in completions],
        Ragged.of([each.logprobs for each in completions], np.float32).to_arrow(),
        [each.finish_reason for each in completions],
        [each.seed for each in requests],
    ]
    return pa.table(columns, schema=ROLLOUTS)
