"""From a policy and a table of prompts to the rollouts table, in parts that survive a crash."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from gift.policy.folder import Lineage, PolicyFiles, find_policy, load_tokenizer
from gift.project.console import Progress
from gift.project.door import file_digest
from gift.project.params import settings_of
from gift.project.seeds import seed_of
from gift.project.work import Work
from gift.sampling.encoding import EncodedPrompts, Tokens, encode_split, refuse_long_prompts
from gift.sampling.engine.requests import Request
from gift.sampling.engine.start import start_sampler
from gift.sampling.parts import Ask, Engines, Given, Groups, Here, Parts, decoder
from gift.sampling.settings import GenerateLaunch, Sampling
from gift.tables.parquet import part_name
from gift.tables.parts import read_part
from gift.tables.prompts import read_prompts
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.workers.settings import Workers


@dataclass(frozen=True)
class Launch:
    """How this machine samples, and who does it."""

    generate: GenerateLaunch
    workers: Workers


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

    def engines(self, label: str, sampling: Sampling, launch: Launch, in_turn: bool = False) -> Engines:
        """The policy in the engine that `sampling` names, here or at workers; in_turn: as `Engines` has it."""
        reach = self.encoded.ends, self.encoded.context
        start = partial(start_sampler, self.files, sampling, *reach, launch.generate)
        here = Here(start, decoder(self.tokenizer))
        return Engines(label, self.files, sampling, reach, launch.generate, launch.workers, here, in_turn)


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
    groups: Groups,
    sampling: Sampling,
    launch: Launch,
    given: Given | None = None,
    **metadata: Any,
) -> Work:
    """A stage's work with all of the groups in its folder `rollouts`; `prompts` is the file of the split."""
    metadata = metadata_of(split, sampling, metadata)
    work = Work(label, {**metadata, "prompts": file_digest(prompts)})
    ask = Ask(work.folder / "rollouts", metadata, given or {})
    with split.engines(label, sampling, launch) as engines:
        write_rollouts(ask, groups, sampling.groups_per_part, engines, label)
    return work


def metadata_of(split: Split, sampling: Sampling, facts: dict[str, Any]) -> dict[str, Any]:
    """What every part of a rollouts table says of itself, but for its engine."""
    own = {"artifact": "rollouts", "policy": split.lineage.digest, "settings": settings_of(sampling)}
    return {**facts, **own, "generation_prompt": split.encoded.opening}


def write_rollouts(ask: Ask, groups: Groups, groups_per_part: int, parts: Parts, label: str) -> None:
    """Sample the groups part by part into a folder; parts that are there already are kept.

    groups: for each prompt_id the requests of its completions (sample 0, 1, ...), behind which given answers stand. The
    engine starts only when a part is missing.
    """
    prompt_ids, folder = list(groups), ask.folder
    cuts = [prompt_ids[cut : cut + groups_per_part] for cut in range(0, len(groups), groups_per_part)]
    missing = {index: part for index, part in enumerate(cuts) if not (folder / part_name(index)).exists()}
    for index in set(range(len(cuts))) - missing.keys():
        read_part(folder / part_name(index), ROLLOUTS, check_rollouts)
    if not missing:
        return
    answers = sum(len(ask.given.get(prompt_id, ())) for prompt_id in groups)
    own = {**ask.metadata, "num_rows": sum(map(len, groups.values())) + answers}
    done = len(groups) - sum(map(len, missing.values()))
    with Progress(label, len(groups), "prompts", done) as progress:
        wanted = {index: {key: groups[key] for key in part} for index, part in missing.items()}
        parts.write(replace(ask, metadata=own), wanted, progress)
