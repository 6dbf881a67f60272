"""One round of training: from its files to the next policy, and the loop over optimizer steps in between."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import click
import torch

from gift.logprobs.kernels import use_kernels
from gift.logprobs.settings import Layout
from gift.policy.adapter import adapter_config
from gift.policy.folder import write_lineage
from gift.policy.open import Training, open_policy
from gift.project.console import Progress
from gift.project.errors import UserError
from gift.project.work import Work, write_json
from gift.training.deepspeed_config import EngineSettings, engine_settings
from gift.training.engine import start_engine
from gift.training.inputs import Paths, Plan, Settings, find_parent, plan_round, work_inputs
from gift.training.learned import policy_module
from gift.training.ranks import distributed, from_rank_0, own_device, share_cores
from gift.training.saving.policy import Probe, Written, check_saved, write_policy
from gift.training.saving.state import Unsealed, go_on, parents_state, read_checkpoint, write_checkpoint, write_state
from gift.training.settings import Update
from gift.training.steps import learning_rate
from gift.training.trainer import COMMON, Trainer

WORK = ("grad_norm", "learning_rate", "num_groups", "num_tokens")


@dataclass(frozen=True)
class Trained:
    """What the ranks leave to rank 0: a row of metrics a step, what they wrote, and what the policy is checked by."""

    rows: list[dict[str, float | None]]
    policy: Written
    state: Unsealed
    probe: Probe


def update_policy(label: str, paths: Paths, settings: Settings) -> dict[str, float | int] | None:
    """Train a round and publish its policy, optimizer state and metrics; returns these on rank 0, None elsewhere.

    Rank 0 alone looks at files, but for the tables, which every rank reads, and the shards that each writes. The other
    ranks have ended when it opens the policy and publishes.
    """
    launch = settings.launch
    engine = engine_settings(settings.update, launch)
    with distributed(launch.timeout_minutes):
        share_cores()
        plan = plan_round(paths, settings, *from_rank_0(lambda: find_parent(paths, settings)))
        work = from_rank_0(lambda: Work(label, work_inputs(paths, settings, plan.lineage)))
        trained = _train(work, paths, settings, engine, plan)
    return _publish(work, paths, settings, plan, trained) if trained else None


def _train(work: Work, paths: Paths, settings: Settings, how: EngineSettings, plan: Plan) -> Trained | None:
    """All that the ranks do together; the result is rank 0's."""
    update, launch, temperature = settings.update, settings.launch, plan.source["temperature"]
    policy = open_policy(plan.files, update.dtype, training=Training(update.lora, settings.seed))
    model = policy_module(policy, temperature, launch.packing, update.match, settings.seed, plan.rows.groups.names)
    _refuse_other_layouts(model.layout)
    if torch.distributed.get_rank() == 0:
        for note in filter(None, (plan.note, model.note)):
            click.echo(f"{work.label}: {note}", err=True)
    engine = start_engine(model, how, launch.gradient_checkpointing)
    use_kernels(model, launch, engine.device)
    if update.optimizer_state == "carry":
        go_on(engine, lambda: parents_state(paths.optimizer, plan.lineage, engine.shapes))
    rows, probed = plan.rows, [plan.rows.shortest]
    trainer = Trainer(engine, rows, plan.chosen, update, launch.tokens_per_batch, model.layout)
    step_rows = _train_steps(trainer, plan, work, launch.checkpoint_every_steps)
    with torch.no_grad():
        logprobs = trainer.outputs(probed).logprobs
    adapter = adapter_config(policy) if update.lora else None
    written = write_policy(engine, work.folder / "policy", plan.files, update.dtype, adapter)
    state = write_state(engine, work.folder / "optimizer" / "state.safetensors")
    engine.close()
    if written is None or state is None:
        return None
    probe = Probe(temperature, rows.prompt_ids.take(probed), rows.completion_ids.take(probed), logprobs)
    return Trained(step_rows, written, state, probe)


def _refuse_other_layouts(layout: Layout) -> None:
    """Each rank has tried its own processor; who lays out its tokens otherwise would plan other batches."""
    number = get_args(Layout).index(layout)
    ends = torch.tensor([number, -number], device=own_device())
    torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
    most, least = ends.tolist()
    if most != -least:
        raise UserError(
            f"launch.yaml: update.packing: auto: ranks came to different layouts ({get_args(Layout)[-least]}, "
            f"{get_args(Layout)[most]}), as on processors that round otherwise; set it to padded"
        )


def _publish(work: Work, paths: Paths, settings: Settings, plan: Plan, trained: Trained) -> dict[str, float | int]:
    """Open the policy as the next stage will, write what tells of it, and publish all that was made."""
    folder, lineage = work.folder, plan.lineage
    metrics = settings.update.objective.metrics
    check_saved(trained.policy, settings.update.dtype, trained.probe)
    numbers = {**round_metrics(trained.rows, metrics), **plan.chosen.ledger}
    new = write_lineage(
        folder / "policy",
        base=lineage.base,
        parent=lineage.digest,
        round=plan.source["round"],
        prompts_consumed=plan.source["prompts_consumed"],
        optimizer_steps=lineage.optimizer_steps + len(plan.steps),
        completion_tokens=lineage.completion_tokens + numbers["num_tokens_trained"],
    )
    trained.state.seal({"policy": new.digest})
    with (folder / "steps.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("step", *COMMON, *metrics, *WORK), lineterminator="\n")
        writer.writeheader()
        writer.writerows(trained.rows)  # what is not known of a method's own metrics is left empty
    write_json(folder / "update.json", numbers)
    sources = (folder / "policy", folder / "optimizer", folder / "update.json", folder / "steps.csv")
    work.publish(dict(zip(sources, paths.outputs, strict=True)))
    return numbers


def _train_steps(trainer: Trainer, plan: Plan, work: Work, keep_every: int) -> list[dict[str, float | None]]:
    """Run the optimizer steps of a round and return one row of metrics a step.

    Every `keep_every` steps it leaves a checkpoint; that of an interrupted run of the same round is continued.
    """
    engine, settings, steps = trainer.engine, trainer.update, plan.steps
    path = work.folder / "checkpoint.safetensors"
    found = go_on(engine, lambda: read_checkpoint(path))
    rows: list[dict[str, float | None]] = found["rows"] if found else []
    for row in rows:
        trainer.adapt(row)
    with Progress(work.label, len(steps), "steps", 0 if engine.rank else len(rows)) as progress:
        for index in range(len(rows), len(steps)):
            step = plan.lineage.optimizer_steps + index + 1  # over all rounds, as the schedule's
            told = progress.within if engine.rank == 0 else lambda share: None
            metrics = trainer.train_step(steps[index], learning_rate(step, settings), told)
            trainer.adapt(metrics)
            rows.append({"step": step, **metrics})
            check_step(rows[-1], settings, work.label)
            if engine.rank == 0:
                progress.advance(1, int(metrics["num_tokens"] or 0))
            if (index + 1) % keep_every == 0 and index + 1 < len(steps):
                write_checkpoint(engine, path, {"rows": rows})
    return rows


def check_step(row: dict[str, float | None], settings: Update, label: str) -> None:
    """Stop on numbers that are not finite, and on drift: a policy leaving its anchor with no loss term noticing."""
    where = f"{label}: step {row['step']}"
    for name in ("loss", "grad_norm", "log_ratio"):
        if not math.isfinite(row[name] or 0.0):
            raise UserError(f"{where}: {name} is {row[name]}; nothing was published. Lower update.lr")
    if abs(row["log_ratio"] or 0.0) > settings.max_drift:
        raise UserError(
            f"{where}: the mean log-ratio to the anchor is {row['log_ratio']:+.2f} nats, beyond "
            f"update.max_drift = {settings.max_drift:g}: the policy drifts away without the loss noticing. Nothing was "
            "published. Lower update.lr, choose a loss that pulls towards its anchor (docs/objectives.md), or raise "
            "update.max_drift"
        )


def round_metrics(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, float | int]:
    """The round in flat numbers: drift and fit at its last step, work done over all of them."""
    last = {name: rows[-1][name] for name in (*COMMON, *metrics)}
    return {
        **{name: value for name, value in last.items() if value is not None},
        "grad_norm": sum(row["grad_norm"] for row in rows) / len(rows),
        "num_steps": len(rows),
        "num_groups_trained": sum(row["num_groups"] for row in rows),
        "num_tokens_trained": sum(row["num_tokens"] for row in rows),
    }
