"""The parts of a rollouts table, one engine's call each: in this process, or by workers (gift/workers/)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from gift.policy.folder import PolicyFiles, check_files, load_tokenizer
from gift.project.console import Progress
from gift.project.machine import visible_gpus
from gift.project.ragged import Ragged
from gift.sampling.encoding import Tokens
from gift.sampling.engine.audit import audited
from gift.sampling.engine.by_vllm import Vllm, constant_path
from gift.sampling.engine.kept import kept_engine
from gift.sampling.engine.requests import Completion, Request, Sampler
from gift.sampling.engine.start import start_sampler
from gift.sampling.settings import GenerateLaunch, Sampling
from gift.tables.parquet import part_name, read_file, write_file
from gift.tables.parts import write_part
from gift.tables.rollouts import GIVEN, NO_SEED, ROLLOUTS, check_rollouts
from gift.workers.link import Job, Part
from gift.workers.pool import Pool
from gift.workers.settings import Workers
from gift.workers.start import open_pool, pool_for
from gift.workers.worker import Open, Work

Groups = Mapping[str, Sequence[Request]]  # the requests of each prompt's completions, by prompt_id
Given = Mapping[str, Sequence[Tokens]]  # answers of a prompt that nobody samples, by prompt_id
Decode = Callable[[list[int]], str]  # a completion's text

REQUESTS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),  # of the prompt, or of a given answer
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("temperature", pa.float64()),  # null: an answer that stands beside the sampled ones
    ]
)


@dataclass(frozen=True)
class Ask:
    """What the parts of a table have in common: its folder, what they say of themselves, the answers that are given."""

    folder: Path
    metadata: dict[str, Any]
    given: Given


class Parts(Protocol):
    """Makes the missing parts of a table."""

    def write(self, ask: Ask, parts: Mapping[int, Groups], progress: Progress) -> None:
        """Sample each part into its file; tell `progress` of its prompts and tokens."""


class Here:
    """In this process: the engine starts with the first part."""

    def __init__(self, start: Callable[[], tuple[Sampler, str]], decode: Decode) -> None:
        self.start, self.decode = start, decode
        self.engine: tuple[Sampler, str] | None = None

    def write(self, ask: Ask, parts: Mapping[int, Groups], progress: Progress) -> None:
        self.engine = self.engine or self.start()
        for index, groups in parts.items():
            progress.count = len(groups)
            tokens = write_one(ask.folder, index, groups, ask.given, ask.metadata, self.engine, self.decode)
            progress.advance(len(groups), tokens)


class Engines:
    """In this process or by workers, as launch.yaml says: `with Engines(...) as engines`, which ends them."""

    def __init__(
        self,
        label: str,
        policy: PolicyFiles,
        sampling: Sampling,
        reach: tuple[Sequence[int], int],
        launch: GenerateLaunch,
        workers: Workers,
        here: Here,
        in_turn: bool = False,
    ) -> None:
        """reach: the tokens that end a completion, and the context; in_turn: `end` lets go of all that they hold."""
        stage, gpus = label.partition("@")[0], launch.tensor_parallel_size
        link = None
        if sampling.engine == "vllm" and (workers.kind != "local" or visible_gpus()):
            link = str(constant_path(policy.model))
        key = kept_engine(policy, sampling, reach[1], launch) if workers.kind == "local" else None
        setup = {
            "policy": policy.as_json(),
            "stays": key is not None,
            "sampling": sampling.model_dump(mode="json", include=set(Sampling.model_fields)),
            "ends": list(reach[0]),
            "context": reach[1],
            "launch": launch.model_dump(mode="json"),
            "link": link,
        }
        self.job, self.workers, self.here = Job(stage, label, "sample", setup, gpus, launch.engines, key), workers, here
        self.open = open_pool if in_turn else pool_for
        self.stack = ExitStack()
        self.pool: Pool | None = None

    def __enter__(self) -> "Engines":
        return self

    def __exit__(self, *raised: Any) -> None:
        self.stack.__exit__(*raised)

    def end(self) -> None:
        """End the workers, for others to have their place; the next table starts new ones."""
        self.pool = None
        self.stack.close()

    def write(self, ask: Ask, parts: Mapping[int, Groups], progress: Progress) -> None:
        if self.pool is None and (pool := self.open(self.job, self.workers)):
            self.pool = self.stack.enter_context(pool)
        if (pool := self.pool) is None:
            return self.here.write(ask, parts, progress)
        for _ in pool.run([self._part(pool, ask, *part) for part in parts.items()], progress):
            pass

    def _part(self, pool: Pool, ask: Ask, index: int, groups: Groups) -> Part:
        def task() -> dict[str, Any]:
            path = pool.folder / "requests" / ask.folder.parent.name / part_name(index)
            write_requests(path, groups, ask.given)
            return {"index": index, "requests": str(path), "metadata": ask.metadata}

        return Part(index, task, ask.folder / part_name(index), len(groups))


def open_job(setup: dict[str, Any]) -> Work:
    """The engine of a worker."""
    policy, sampling, launch = (
        PolicyFiles.of_json(setup["policy"]),
        Sampling(**setup["sampling"]),
        GenerateLaunch(**setup["launch"]),
    )
    if setup["stays"]:
        check_files(policy.model)
        return _staying(setup, Vllm(policy, sampling.dtype, setup["context"], launch, _link(setup), stays=True))
    return _sampling(setup, start_sampler(policy, sampling, setup["ends"], setup["context"], launch, _link(setup)))


def _staying(setup: dict[str, Any], engine: Vllm, taken: bool = False) -> Work:
    """Work with an engine that the next stage takes over; taken: it has had another policy."""

    def again(setup: dict[str, Any]) -> Work:
        policy = PolicyFiles.of_json(setup["policy"])
        check_files(policy.model)
        engine.take(policy, _link(setup))
        return _staying(setup, engine, taken=True)

    def rest() -> Open:
        engine.rest()
        return again

    sampling = Sampling(**setup["sampling"])
    sampler = engine.sampler(sampling, setup["ends"])
    if taken:
        sampler = audited(sampler, PolicyFiles.of_json(setup["policy"]), sampling)
    work = _sampling(setup, (sampler, engine.name))
    if engine.never_stays:
        return work._replace(note=f"this engine does not stay in memory for the next stage: {engine.never_stays}")
    return work._replace(rest=rest)


def _sampling(setup: dict[str, Any], engine: tuple[Sampler, str]) -> Work:
    decode = decoder(load_tokenizer(PolicyFiles.of_json(setup["policy"]).model))

    def make(task: dict[str, Any], folder: Path) -> dict[str, Any]:
        groups, given = read_requests(Path(task["requests"]))
        return {"tokens": write_one(folder, task["index"], groups, given, task["metadata"], engine, decode)}

    return Work(make)


def _link(setup: dict[str, Any]) -> Path | None:
    return Path(setup["link"]) if setup["link"] else None


def decoder(tokenizer: Any) -> Decode:
    return lambda token_ids: str(tokenizer.decode(token_ids, skip_special_tokens=True))


def write_one(
    folder: Path,
    index: int,
    groups: Groups,
    given: Given,
    metadata: dict[str, Any],
    engine: tuple[Sampler, str],
    decode: Decode,
) -> int:
    """Sample a part in one call, and write it; returns its tokens. The engine's name goes into its metadata."""
    sampler, name = engine
    completions = sampler([request for requests in groups.values() for request in requests])
    table = rollouts_table(groups, completions, given, decode)
    write_part(folder, index, table, ROLLOUTS, check_rollouts, {**metadata, "engine": name})
    return sum(len(completion.completion_ids) for completion in completions)


def rollouts_table(groups: Groups, completions: Sequence[Completion], given: Given, decode: Decode) -> pa.Table:
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


def write_requests(path: Path, groups: Groups, given: Given) -> None:
    """What a worker samples of a part."""
    rows: list[tuple[str, Tokens, int, float | None]] = [
        (key, each.prompt_ids, each.seed, each.temperature) for key, requests in groups.items() for each in requests
    ]
    rows += [(key, answer, NO_SEED, None) for key in groups for answer in given.get(key, ())]
    keys, tokens, seeds, temperatures = zip(*rows, strict=True)
    columns = [keys, Ragged.of(tokens, np.int32).to_arrow(), seeds, temperatures]
    write_file(path, pa.table(columns, schema=REQUESTS), {"artifact": "requests"})


def read_requests(path: Path) -> tuple[dict[str, list[Request]], dict[str, list[Tokens]]]:
    """What `write_requests` wrote."""
    table, _ = read_file(path)
    tokens = Ragged.from_arrow(table["tokens"])
    groups: dict[str, list[Request]] = {}
    given: dict[str, list[Tokens]] = {}
    plain = (table[name].to_pylist() for name in ("prompt_id", "seed", "temperature"))
    for row, (key, seed, temperature) in enumerate(zip(*plain, strict=True)):
        if temperature is None:
            given.setdefault(key, []).append(tokens[row])
        else:
            groups.setdefault(key, []).append(Request(tokens[row], seed, temperature))
    return groups, given
