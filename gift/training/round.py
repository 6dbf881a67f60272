"""One round of training: the loop over optimizer steps, its checkpoints, guards and metrics."""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gift.project.console import Progress
from gift.project.errors import UserError
from gift.training.engine import Engine
from gift.training.schedule import learning_rate
from gift.training.settings import Update
from gift.training.state import load_state, save_state
from gift.training.tally import COMMON
from gift.training.trainer import Trainer

WORK = ("grad_norm", "learning_rate", "num_groups", "num_tokens")


@dataclass(frozen=True)
class Checkpointing:
    """Where a round keeps its unfinished training, and after how many steps it does so."""

    folder: Path
    every_steps: int
    label: str


def train_round(
    engine: Engine,
    trainer: Trainer,
    steps: Sequence[Sequence[int]],
    settings: Update,
    first_step: int,
    keep: Checkpointing,
) -> list[dict[str, float | None]]:
    """Run the optimizer steps of a round (each a list of groups) and return one row of metrics a step.

    `first_step` is the number of optimizer steps of all earlier rounds: the learning rate's schedule goes on across
    rounds. A checkpoint of an interrupted run of the same round is continued. Only rank 0 writes.
    """
    path = keep.folder / "checkpoint.safetensors"
    rows: list[dict[str, float | None]] = []
    if path.exists():
        state, facts = load_state(path)
        engine.load_full_state(state if engine.rank == 0 else None)
        rows = facts["rows"]
        for row in rows:
            trainer.adapt(row)
    with Progress(keep.label, len(steps), "steps", len(rows)) as progress:
        for index in range(len(rows), len(steps)):
            step = first_step + index + 1
            metrics = trainer.train_step(steps[index], learning_rate(step, settings))
            trainer.adapt(metrics)
            rows.append({"step": step, **metrics})
            check_step(rows[-1], settings, keep.label)
            if engine.rank == 0:
                progress.advance(1, int(metrics["num_tokens"] or 0))
            if (index + 1) % keep.every_steps == 0 and index + 1 < len(steps):
                full = engine.full_state()
                if full is not None:
                    save_state(path, full, {"rows": rows})
    return rows


def check_step(row: dict[str, float | None], settings: Update, label: str) -> None:
    """Stop on numbers that are not finite, and on drift: a policy leaving its anchor with no loss term noticing."""
    for name in ("loss", "grad_norm", "log_ratio"):
        if not math.isfinite(row[name] or 0.0):
            raise UserError(
                f"{label}: step {row['step']}: {name} is {row[name]}; nothing was published. Lower update.lr"
            )
    if abs(row["log_ratio"] or 0.0) > settings.max_drift:
        raise UserError(
            f"{label}: step {row['step']}: the mean log-ratio to the anchor is {row['log_ratio']:+.2f} nats, beyond "
            f"update.max_drift = {settings.max_drift:g}: the policy drifts away without the loss noticing. Nothing was "
            "published. Lower update.lr, choose a loss that pulls towards its anchor (docs/objectives.md), or raise "
            "update.max_drift"
        )


def write_steps(path: Path, rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    """steps.csv: one row an optimizer step; `metrics` are the method's own, and what is not known of them is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("step", *COMMON, *metrics, *WORK), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


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


def share_cores() -> None:
    """Launchers give every process one thread; give each its share of the machine's cores instead."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if local > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
