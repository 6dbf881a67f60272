"""The rollouts of a round whose way to sample reads rewards: requests, engine and rewards of its passes."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from gift.methods.sample.passes import Ask, Stream, Wanted
from gift.project.code import fingerprint
from gift.project.door import file_digest
from gift.project.errors import UserError
from gift.project.machine import visible_gpus, with_our_code
from gift.project.params import PARAMS, read_launch, read_overrides
from gift.project.rounds import lay_over
from gift.project.sections import Section
from gift.project.work import Work
from gift.project.yaml import read_yaml
from gift.sampling.encoding import Tokens, encode_prompts
from gift.sampling.parts import Ask as Asked
from gift.sampling.parts import Given, decoder, rollouts_table
from gift.sampling.passes import Groups, Kept, Rewards, run_passes
from gift.sampling.rollouts import Launch, Split, metadata_of, requests_of_groups, write_rollouts
from gift.sampling.settings import Generate
from gift.tables.counting import rewards_digest
from gift.tables.parts import keys_of, write_part
from gift.tables.prompts import prompt_column
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import read_scores
from gift.workers.settings import Workers


def sample_by_rewards(
    name: str,
    split: Split,
    paths: tuple[Path, Path],
    settings: Generate,
    launch: Launch,
    stream: Stream,
    given: Given,
    overrides: Path | None,
    **facts: Any,
) -> tuple[Work, dict[str, int]]:
    """A stage's work with the rollouts of the round `name` in its folder `rollouts`, and the ledger of what they cost.

    paths: of the policy and of the prompts.
    """
    policy, prompts = paths
    label, way = f"generate@{name}", settings.sample
    assert way is not None
    metadata = metadata_of(split, settings, facts)
    changes = read_overrides(overrides / "score.json")[1] if overrides else {}
    score_section = lay_over(read_yaml(PARAMS)["score"], changes)
    rewards = rewards_digest([score_section], fingerprint("score"))
    work = Work(label, {**metadata, "prompts": file_digest(prompts), "rewards": rewards})
    in_turn = takes_turns(score_section, launch.workers)
    num_long = 0

    def requests_of(asks: Sequence[Ask], number: int) -> Groups:
        nonlocal num_long
        tokens, too_long = with_suffixes(split, asks, settings.max_tokens, policy)
        num_long += too_long
        drawn = [facts["seed"], facts["round"], *([f"pass {number}"] if number else [])]
        return requests_of_groups(tokens, {ask.prompt_id: ask.count for ask in asks}, settings.temperature, *drawn)

    def write(folder: Path, groups: Groups) -> None:
        ask = Asked(folder, metadata | sizes_of(groups), {})
        write_rollouts(ask, groups, settings.groups_per_part, engines, label)

    def score(rollouts: Path, number: int) -> Rewards:
        if in_turn:
            engines.end()
        return score_pass(rollouts, f"{name}.{number}", prompts, overrides)

    wanted = Wanted(settings.prompts_per_round, settings.group_size)
    passes = way.record.passes(stream, wanted, way.settings)
    # One engine for all passes, if it may stay, started when the first of them lacks something.
    with split.engines(label, settings, launch, in_turn) as engines:
        kept, spent = run_passes(passes, work.folder, requests_of, write, score)
    if len(kept) < wanted.prompts:
        text = f"{label}: {len(kept)} groups of the {wanted.prompts} of generate.prompts_per_round"
        click.echo(f"{text}: generate.sample.{way.name} took all that it may", err=True)
    ledger = {**asdict(spent), "num_suffixes_too_long": num_long}
    metadata |= {"prompts_consumed": stream.position, "sampled": ledger}
    metadata |= sizes_of({prompt_id: each.requests for prompt_id, each in kept.items()})
    write_kept(work.folder / "rollouts", kept, settings.groups_per_part, metadata, given, split)
    return work, ledger


class _ScoreLaunch(Section, extra="ignore"):
    """What says whether `score` has workers of its own."""

    processes: int | None = None


def takes_turns(score: Mapping[str, Any], workers: Workers) -> bool:
    """Whether the engines end before a pass is scored: `score` wants the GPUs, or the place where workers connect.

    A SLURM step would wait for the GPUs of ours, an actor of Ray's as well, and no two stages listen at one port.
    """
    opens_model = any(reward.get("function") == "reward_model" for reward in score["rewards"].values())
    if workers.kind == "local" and workers.listen is None:
        return opens_model and bool(visible_gpus())
    return opens_model or read_launch("score", _ScoreLaunch).processes is not None


def sizes_of(groups: Groups) -> dict[str, Any]:
    """What the metadata say where groups are not equally large."""
    sizes = {prompt_id: len(requests) for prompt_id, requests in groups.items()}
    return {"group_sizes": sizes} if len({*sizes.values()}) > 1 else {}


def write_kept(
    folder: Path, kept: Mapping[str, Kept], groups_per_part: int, metadata: dict[str, Any], given: Given, split: Split
) -> None:
    """The groups that are kept as a rollouts table; `given` answers stand behind them."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
    engine = ", ".join(sorted({each.engine for each in kept.values()}))
    prompt_ids = list(kept)
    num_rows = sum(len(each.requests) + len(given.get(key, ())) for key, each in kept.items())
    metadata = {**metadata, "engine": engine, "num_rows": num_rows}
    for index, cut in enumerate(range(0, len(kept), groups_per_part)):
        part = {key: kept[key] for key in prompt_ids[cut : cut + groups_per_part]}
        requests = {key: each.requests for key, each in part.items()}
        completions = [completion for each in part.values() for completion in each.completions]
        table = rollouts_table(requests, completions, given, decoder(split.tokenizer))
        write_part(folder, index, table, ROLLOUTS, check_rollouts, metadata)


def with_suffixes(split: Split, asks: Sequence[Ask], max_tokens: int, policy: Path) -> tuple[dict[str, Tokens], int]:
    """The tokens of the asked prompts with what stands behind them, and how many stay without it for want of room."""
    plain = {ask.prompt_id: split.encoded.prompt_ids[ask.prompt_id] for ask in asks}
    suffixes = {ask.prompt_id: ask.suffix for ask in asks if ask.suffix}
    if not suffixes:
        return plain, 0
    kind = prompt_column(split.table)
    rows = [row for row in split.table.select(["prompt_id", kind]).to_pylist() if row["prompt_id"] in suffixes]
    for row in rows:
        suffix = suffixes[row["prompt_id"]]
        if kind == "messages":
            *before, last = row[kind]
            row[kind] = [*before, {**last, "content": last["content"] + suffix}]
        else:
            row[kind] += suffix
    table = pa.Table.from_pylist(rows, schema=split.table.select(["prompt_id", kind]).schema)
    longer, _ = encode_prompts(split.tokenizer, table, split.variables, policy)
    room = split.encoded.context - max_tokens
    fitting = {key: ids for key, ids in longer.items() if len(ids) <= room}
    return plain | fitting, len(longer) - len(fitting)


def score_pass(rollouts: Path, name: str, prompts: Path, overrides: Path | None) -> Rewards:
    """The rewards of a pass, by the very stage that scores the round: what it keeps of values it finds again then.

    A process of its own, so that the code of no reward is a part of this stage. `name` is the pass's, such as r1.0.
    """
    scores, metrics = rollouts.with_name("scores"), rollouts.with_name("score.json")
    if not (scores.exists() and metrics.exists()):
        shutil.rmtree(scores, ignore_errors=True)  # killed while it published
        notes = rollouts.with_name("notes")
        shutil.rmtree(notes, ignore_errors=True)
        paths = {"rollouts": rollouts, "prompts": prompts, "out": scores, "notes": notes, "metrics": metrics}
        paths |= {"overrides": overrides} if overrides else {}
        options = [f"--{key}={path}" for key, path in paths.items()]
        command = [sys.executable, "-m", "stages.score", "--round", name, *options]
        streams = {"stdout": _file(sys.stdout), "stderr": _file(sys.stderr)}
        done = subprocess.run(command, check=False, env=with_our_code(), **streams)
        if done.returncode:
            raise UserError(f"generate: the rewards of pass {name} could not be made (above); what is sampled is kept")
    table, _ = read_scores(scores)
    return dict(zip(keys_of(table), table["reward"].to_pylist(), strict=True))


def _file(stream: Any) -> Any:
    """Where a process may write what is for `stream`; None: where this one does."""
    try:
        stream.flush()
        stream.fileno()
    except (OSError, ValueError):  # no file behind it
        return None
    return stream
