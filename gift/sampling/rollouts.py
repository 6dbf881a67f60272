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
from gift.project.door import file_digest
from gift.project.params import settings_of
from gift.project.ragged import Ragged
from gift.project.seeds import seed_of
from gift.project.work import Work
from gift.sampling.encoding import EncodedPrompts, Tokens, encode_split, refuse_long_prompts
from gift.sampling.engine import Completion, Request, Sampler, start_sampler
from gift.sampling.settings import GenerateLaunch, Sampling
from gift.tables.parquet import part_name
from gift.tables.parts import read_part, write_part
from gift.tables.prompts import read_prompts
from gift.tables.rollouts import GIVEN, NO_SEED, ROLLOUTS, check_rollouts

Given = Mapping[str, Sequence[Tokens]]  # answers of a prompt that nobody samples, by prompt_id


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

    def start(self, sampling: Sampling, launch: GenerateLaunch) -> tuple[Sampler, str]:
        """The policy in the engine that `sampling` names (`start_sampler`)."""
        return start_sampler(self.files, sampling, self.encoded.ends, self.encoded.context, launch)

    def decode(self, token_ids: list[int]) -> str:
        """The text of a completion."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


def read_split(policy: Path, base: Path, prompts: Path, sampling: Sampling, section: str) -> Split:
    """What a stage samples from, under one section of params.yaml; all that does not fit is a `UserError`."""
    files, lineage = find_policy(policy, base)
    table, source = read_prompts(prompts)
    variables = source.get("chat_template_kwargs", {})
    tokenizer = load_tokenizer(files.model)
    every = encode_split(tokenizer, files.model, table, variables, sampling, section, policy)
    return Split(files, lineage, tokenizer, table, variables, *refuse_long_prompts(every, sampling, section))


def requests_of_groups(
    tokens: Mapping[str, Tokens], counts: Mapping[str, int], temperature: float, *drawn: object
) -> dict[str, list[Request]]:
    """So many requests of each prompt, by prompt_id, sorted; each has its own seed, made of `drawn` and its place."""
    return {
        key: [Request(tokens[key], seed_of("generate", *drawn, key, index), temperature) for index in range(count)]
        for key, count in sorted(counts.items())
    }


def sample(
    label: str,
    split: Split,
    prompts: Path,
    groups: Mapping[str, Sequence[Request]],
    sampling: Sampling,
    launch: GenerateLaunch,
    given: Given | None = None,
    **metadata: Any,
) -> Work:
    """A stage's work with all of the groups in its folder `rollouts`; `prompts` is the file of the split."""
    metadata = metadata_of(split, sampling, metadata)
    work = Work(label, {**metadata, "prompts": file_digest(prompts)})
    folder, start = work.folder / "rollouts", partial(split.start, sampling, launch)
    write_rollouts(folder, groups, sampling.groups_per_part, metadata, start, split.decode, label, given)
    return work


def metadata_of(split: Split, sampling: Sampling, facts: dict[str, Any]) -> dict[str, Any]:
    """What every part of a rollouts table says of itself, but for its engine."""
    own = {"artifact": "rollouts", "policy": split.lineage.digest, "settings": settings_of(sampling)}
    return {**facts, **own, "generation_prompt": split.encoded.opening}


def write_rollouts(
    folder: Path,
    groups: Mapping[str, Sequence[Request]],
    groups_per_part: int,
    metadata: dict[str, Any],
    start: Callable[[], tuple[Sampler, str]],
    decode: Callable[[list[int]], str],
    label: str,
    given: Given | None = None,
) -> None:
    """Sample the groups part by part into `folder`; parts that are there already are kept.

    groups: for each prompt_id the requests of its completions (sample 0, 1, ...); given: the answers that stand behind
    these. The engine starts only when a part is missing. Its name and version go into each part's metadata.
    """
    prompt_ids = list(groups)
    parts = [prompt_ids[cut : cut + groups_per_part] for cut in range(0, len(groups), groups_per_part)]
    missing = {index: part for index, part in enumerate(parts) if not (folder / part_name(index)).exists()}
    for index in set(range(len(parts))) - missing.keys():
        read_part(folder / part_name(index), ROLLOUTS, check_rollouts)
    if not missing:
        return
    sampler, engine = start()
    answers = sum(len((given or {}).get(prompt_id, ())) for prompt_id in groups)
    metadata = {**metadata, "engine": engine, "num_rows": sum(map(len, groups.values())) + answers}
    done = len(groups) - sum(map(len, missing.values()))
    with Progress(label, len(groups), "prompts", done) as progress:
        for index, part in missing.items():
            progress.count = len(part)
            completions = sampler([request for prompt_id in part for request in groups[prompt_id]])
            table = rollouts_table({key: groups[key] for key in part}, completions, given or {}, decode)
            write_part(folder, index, table, ROLLOUTS, check_rollouts, metadata)
            progress.advance(len(part), sum(len(completion.completion_ids) for completion in completions))


def rollouts_table(
    groups: Mapping[str, Sequence[Request]],
    completions: Sequence[Completion],
    given: Given,
    decode: Callable[[list[int]], str],
) -> pa.Table:
    """The groups of a part; completions: those of their requests, in order."""
    sampled = iter(completions)
    rows: list[tuple[str, int, Tokens, Completion, int]] = []
    for prompt_id, requests in groups.items():
        for number, request in enumerate(requests):
            rows.append((prompt_id, number, request.prompt_ids, next(sampled), request.seed))
        for number, answer in enumerate(given.get(prompt_id, ()), len(requests)):
            completion = Completion(answer, np.empty(0, np.float32), GIVEN)
            rows.append((prompt_id, number, requests[0].prompt_ids, completion, NO_SEED))
    prompt_ids, samples, prompts, found, seeds = zip(*rows, strict=True)
    columns = [
        prompt_ids,
        samples,
        Ragged.of(prompts, np.int32).to_arrow(),
        Ragged.of([each.completion_ids for each in found], np.int32).to_arrow(),
        [decode(each.completion_ids.tolist()) for each in found],
        Ragged.of([each.logprobs for each in found], np.float32).to_arrow(),
        [each.finish_reason for each in found],
        seeds,
    ]
    return pa.table(columns, schema=ROLLOUTS)
