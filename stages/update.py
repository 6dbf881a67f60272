"""Train one round of GIFT on the scored rollouts: the next policy and its optimizer state."""

from pathlib import Path
from typing import Any

import click
import torch

from gift.logprobs.tokens import TokenLogprobs
from gift.policy.adapter import find_policy
from gift.policy.folder import load_model, stored_in_bfloat16, write_lineage
from gift.policy.lora import check_parent, load_trainable
from gift.project import console
from gift.project.errors import UserError
from gift.project.params import read_launch, read_section, read_seed, settings_of
from gift.project.seeds import seed_of
from gift.project.work import Work, refuse_existing, tree_digest, work_folder, write_json
from gift.scoring.settings import Score
from gift.training.deepspeed_config import EngineSettings, engine_settings
from gift.training.engine import Engine, distributed
from gift.training.round import Checkpointing, round_metrics, share_cores, train_round, write_steps
from gift.training.rows import join_rows, read_round, select_groups
from gift.training.schedule import check_schedule
from gift.training.settings import Update, UpdateLaunch
from gift.training.state import check_saved, load_state, save_policy, save_state
from gift.training.steps import steps_of_groups
from gift.training.trainer import Trainer


@click.command()
@click.option("--round", "name", required=True)
@click.option("--base", type=Path, required=True)
@click.option("--policy", type=Path, required=True)
@click.option("--optimizer", type=Path, required=True)
@click.option("--rollouts", type=Path, required=True)
@click.option("--scores", type=Path, required=True)
@click.option("--reference", type=Path, required=True)
@click.option("--out-policy", type=Path, required=True)
@click.option("--out-optimizer", type=Path, required=True)
@click.option("--metrics", type=Path, required=True)
@click.option("--steps", "steps_csv", type=Path, required=True)
def main(
    name: str,
    base: Path,
    policy: Path,
    optimizer: Path,
    rollouts: Path,
    scores: Path,
    reference: Path,
    out_policy: Path,
    out_optimizer: Path,
    metrics: Path,
    steps_csv: Path,
) -> None:
    console.quiet()
    update, seed = read_section("update", Update), read_seed()
    launch, score = read_launch("update", UpdateLaunch), read_section("score", Score)
    settings = engine_settings(update, launch)
    label = f"update@{name}"
    files, lineage = find_policy(policy, base)
    check_parent(files, lineage, update.lora)
    tables, source = read_round(rollouts, scores, reference, score, lineage, policy)
    rows = join_rows(*tables, score)
    groups, ledger = select_groups(rows, update)
    if not groups:
        raise UserError(
            f"{scores}: no group can train: of {ledger['num_groups']}, {ledger['num_groups_zero_spread']} have equal "
            f"rewards and {ledger['num_groups_unscored']} fewer than two scores; look at the rewards, raise "
            "generate.group_size, or choose prompts that are neither always nor never solved"
        )
    order = seed_of("update", seed, source["round"])
    steps = steps_of_groups(groups, update.groups_per_step, update.epochs, order)
    note = check_schedule(lineage.optimizer_steps, len(steps), update)
    inputs = {
        "update": settings_of(update),
        "seed": seed,
        "policy": lineage.model_dump(),
        "optimizer": tree_digest(optimizer),
        "tables": [tree_digest(path) for path in (rollouts, scores, reference)],
    }
    with distributed(launch.timeout_minutes):
        share_cores()
        rank = torch.distributed.get_rank()
        outputs = (out_policy, out_optimizer, metrics, steps_csv)
        if rank == 0:
            refuse_existing(*outputs)
            work = Work(label, inputs)
            if note:
                click.echo(f"{label}: {note}", err=True)
        torch.distributed.barrier()
        folder = work_folder(label)
        temperature = source["temperature"]
        lora = update.lora and load_trainable(files, update.lora, update.dtype, seed)
        model = TokenLogprobs(lora or load_masters(policy, settings), temperature, launch.packing)
        if model.note and rank == 0:
            click.echo(f"{label}: {model.note}", err=True)
        engine = start_engine(model, settings, launch.gradient_checkpointing)
        if update.optimizer_state == "carry":
            carry_state(engine, optimizer, lineage.digest)
        trainer = Trainer(engine, rows, update, launch.tokens_per_batch, model.layout)
        keep = Checkpointing(folder, launch.checkpoint_every_steps, label)
        step_rows = train_round(engine, trainer, steps, update, lineage.optimizer_steps, keep)
        probed = min(range(len(rows.prompt_ids)), key=rows.length)
        with torch.no_grad():
            trained = trainer.logprobs([probed])
        state = engine.full_state()
        if state is None:
            return
        weights = state.tensors["weight"]
        saved = save_policy(folder / "policy", files, weights, update.dtype, lora)
        sample = (rows.prompt_ids[probed], rows.completion_ids[probed])
        check_saved(saved, weights, update.dtype, temperature, *sample, trained)
        numbers = {**round_metrics(step_rows), **ledger}
        new = write_lineage(
            folder / "policy",
            initial=lineage.initial,
            parent=lineage.digest,
            round=source["round"],
            prompts_consumed=source["prompts_consumed"],
            optimizer_steps=lineage.optimizer_steps + len(steps),
            completion_tokens=lineage.completion_tokens + numbers["num_tokens_trained"],
        )
        save_state(folder / "optimizer" / "state.safetensors", state, {"policy": new.digest})
        write_steps(folder / "steps.csv", step_rows)
        write_json(folder / "update.json", numbers)
        sources = (folder / "policy", folder / "optimizer", folder / "update.json", folder / "steps.csv")
        work.publish(dict(zip(sources, outputs, strict=True)))
        shown = ("num_steps", "num_groups_trained", "num_tokens_trained", "kl", "log_ratio_std")
        console.say(label, **{key: numbers[key] for key in shown})


def load_masters(policy: Path, settings: EngineSettings) -> Any:
    """The whole model as the engine wants it: in float32, also for bfloat16, where it keeps these as its masters.

    A bfloat16 policy is read as it is stored: its weights stay the file's pages, which the ranks of a host share.
    """
    as_stored = settings.dtype == "bfloat16" and stored_in_bfloat16(policy)
    return load_model(policy, "bfloat16" if as_stored else "float32")


def start_engine(logprobs: TokenLogprobs, settings: EngineSettings, checkpointing: bool) -> Engine:
    """DeepSpeed around the policy; parameters are kept in float32, or in bfloat16 with float32 masters."""
    if checkpointing:
        refuse_dropout(logprobs.model)
        logprobs.model.gradient_checkpointing_enable({"use_reentrant": False})
        logprobs.model.train()  # transformers checkpoints in training mode only
    return Engine(logprobs, settings)


def refuse_dropout(model: Any) -> None:
    """Training mode would switch dropout on, and a log-prob would be another one at every look."""
    for name, value in model.config.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float) and value > 0:
            raise UserError(
                f"launch.yaml: update.gradient_checkpointing: the policy's config has {name}={value}; set it to 0 in "
                "the model's config.json, or do without gradient checkpointing"
            )


def carry_state(engine: Engine, optimizer: Path, policy: str) -> None:
    """Go on with the Adam moments of the round before; the base policy has none. Rank 0 reads, the others receive."""
    path = optimizer / "state.safetensors"
    if not path.exists():
        if not (optimizer / "state.json").exists():
            raise UserError(
                f"{optimizer}: no optimizer state; `dvc pull {optimizer}`, or set update.optimizer_state to reset"
            )
        return
    state = None
    if engine.rank == 0:
        state, facts = load_state(path)
        if facts["policy"] != policy:
            raise UserError(
                f"{path}: belongs to policy {facts['policy'][:12]}, the round starts from {policy[:12]}; `dvc "
                "checkout` brings the pair back, or set update.optimizer_state to reset"
            )
    engine.load_full_state(state)


if __name__ == "__main__":
    console.run(main)
