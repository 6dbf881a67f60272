"""From a policy and a table of prompts to the rollouts table, in parts that survive a crash."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gift.policy.folder import Lineage, PolicyFiles, find_policy, load_tokenizer
from gift.project.console import Progress
from gift.project.params import settings_of
from gift.project.ragged import Ragged
from gift.project.work import Work, file_digest
from gift.sampling.encoding import EncodedPrompts, encode_split, refuse_long_prompts
from gift.sampling.engine import Completion, Request, Sampler, start_sampler
from gift.sampling.settings import GenerateLaunch, Sampling
from gift.tables.parquet import part_name
from gift.tables.parts import read_part, write_part
from gift.tables.prompts import read_prompts
from gift.tables.rollouts import ROLLOUTS, check_rollouts


@dataclass(frozen=True)
class Split:
    """A policy and a table of prompts in its tokens, of which `encoded` lacks the `num_long` that are too long."""

    files: PolicyFiles
    lineage: Lineage
    tokenizer: Any
    table: pa.Table
    variables: dict[str, Any]  # prepare.chat_template_kwargs
    encoded: EncodedPrompts
    num_long: int


def read_split(policy: Path, base: Path, prompts: Path, sampling: Sampling, section: str) -> Split:
    """What a stage samples from, under one section of params.yaml; all that does not fit is a `UserError`."""
    files, lineage = find_policy(policy, base)
    table, source = read_prompts(prompts)
    variables = source.get("chat_template_kwargs", {})
    tokenizer = load_tokenizer(files.model)
    every = encode_split(tokenizer, files.model, table, variables, sampling, section, policy)
    return Split(files, lineage, tokenizer, table, variables, *refuse_long_prompts(every, sampling, section))


def sample(
    label: str,
    split: Split,
    prompts: Path,
    groups: Mapping[str, Sequence[Request]],
    sampling: Sampling,
    launch: GenerateLaunch,
    **metadata: Any,
) -> Work:
    """A stage's work with all of the groups in its folder `rollouts`; `prompts` is the file of the split."""
    metadata |= {
        "artifact": "rollouts",
        "policy": split.lineage.digest,
        "settings": settings_of(sampling),
        "generation_prompt": split.encoded.opening,
    }
    work = Work(label, {**metadata, "prompts": file_digest(prompts)})
    start = partial(start_sampler, split.files, sampling, split.encoded.ends, split.encoded.context, launch)
    decode = partial(split.tokenizer.decode, skip_special_tokens=True)
    write_rollouts(work.folder / "rollouts", groups, sampling.groups_per_part, metadata, start, decode, label)
    return work


def write_rollouts(
    folder: Path,
    groups: Mapping[str, Sequence[Request]],
    groups_per_part: int,
    metadata: dict[str, Any],
    start: Callable[[], tuple[Sampler, str]],
    decode: Callable[[list[int]], str],
    label: str,
) -> None:
    """Sample the groups part by part into `folder`; parts that are there already are kept.

    groups: for each prompt_id the requests of its completions (sample 0, 1, ...). The engine starts only when a part is
    missing. Its name and version go into each part's metadata.
    """
    prompt_ids = list(groups)
    parts = [prompt_ids[cut : cut + groups_per_part] for cut in range(0, len(groups), groups_per_part)]
    missing = {index: part for index, part in enumerate(parts) if not (folder / part_name(index)).exists()}
    for index in set(range(len(parts))) - missing.keys():
        read_part(folder / part_name(index), ROLLOUTS, check_rollouts)
    if not missing:
        return
    sampler, engine = start()
    done = len(groups) - sum(map(len, missing.values()))
    with Progress(label, len(groups), "prompts", done) as progress:
        for index, part in missing.items():
            rows = [(prompt_id, *each) for prompt_id in part for each in enumerate(groups[prompt_id])]
            completions = sampler([request for _, _, request in rows])
            table = _table(rows, completions, decode)
            write_part(folder, index, table, ROLLOUTS, check_rollouts, {**metadata, "engine": engine})
            progress.advance(len(part), sum(len(completion.completion_ids) for completion in completions))


def _table(
    rows: list[tuple[str, int, Request]], completions: list[Completion], decode: Callable[[list[int]], str]
) -> pa.Table:
    prompt_ids, samples, requests = zip(*rows, strict=True)
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
