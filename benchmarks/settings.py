"""Compare settings of the GIFT loss on the embedded task: the pipeline's rounds, in one process, over several seeds."""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from gift.doctor.whole import Params
from gift.embedded.task import problems
from gift.logprobs.batches import row_batches
from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
from gift.methods.choosing import choose
from gift.methods.making import groups_of
from gift.methods.sample.epochs import take_prompts
from gift.policy.folder import PolicyFiles, load_tokenizer
from gift.policy.open import open_policy
from gift.project import console
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.sections import check
from gift.project.seeds import seed_of
from gift.project.yaml import read_yaml
from gift.rewards.arithmetic import arithmetic_answer, arithmetic_format
from gift.sampling.engine import Completion, Request, transformers_sampler
from gift.training.engine import Engine, EngineSettings
from gift.training.inputs import Rows
from gift.training.ranks import distributed
from gift.training.round import check_step
from gift.training.steps import steps_of_groups
from gift.training.trainer import Trainer
from stages.base import train

SETTINGS: dict[str, dict[str, Any]] = {
    "old, detached, floor 0.3": {},
    "old, detached, floor 1": {"spread_floor": 1.0},
    "old, full, floor 0.3": {"stats": "full"},
    "reference, detached, floor 0.3": {"anchor": "reference"},
    "reference, full, floor 0.3": {"anchor": "reference", "stats": "full"},
    "reference, full, floor 1e-6 (paper)": {"anchor": "reference", "stats": "full", "spread_floor": 1e-6},
    "old, detached, floor 1e-6, keep (released code)": {"spread_floor": 1e-6, "zero_targets": "keep"},
}
DEFAULT = {"anchor": "old", "stats": "detached", "spread_floor": 0.3}


def run(params: Params, base: Path, num_rounds: int) -> dict[str, Any]:
    """Rounds of one setting from a base policy: held-out greedy accuracy and mean length, by round."""
    tokenizer = load_tokenizer(base)
    operands = params.arithmetic.num_operands
    train = {row["prompt"]: row for row in problems(params.prepare.num_train or 2048, params.seed, operands, "train")}
    held_out = problems(params.prepare.num_eval, params.seed, operands, "eval")
    model = open_policy(PolicyFiles(base), "float32")
    reference = TokenLogprobs(open_policy(PolicyFiles(base), "float32"), params.generate.temperature)
    update = params.update
    engine = Engine(
        TokenLogprobs(model, params.generate.temperature),
        EngineSettings(update.betas, update.eps, update.weight_decay, update.max_grad_norm),
    )
    curve = [evaluate(model, params, tokenizer, held_out)]
    position = step = 0
    stopped = None
    for number in range(1, num_rounds + 1):
        prompts, position = take_prompts(list(train), position, params.generate.prompts_per_round, params.seed)
        rows = sample_round(model, reference, params, tokenizer, [train[prompt] for prompt in prompts], number)
        chosen = choose(rows.groups, update)
        trainer = Trainer(engine, rows, chosen, update, 16384)
        for groups in steps_of_groups(
            chosen.indices, update.groups_per_step, update.epochs, seed_of("update", params.seed, number)
        ):
            step += 1
            lr = update.lr * min(1.0, step / update.warmup_steps) if update.warmup_steps else update.lr
            try:
                check_step({"step": step, **trainer.train_step(groups, lr)}, update, f"round {number}")
            except UserError as error:
                stopped = error.message
                break
        curve.append(evaluate(model, params, tokenizer, held_out))
        if stopped:
            break
    engine.close()
    return {"accuracy": [a for a, _ in curve], "length": [length for _, length in curve], "stopped": stopped}


def sample(model: Any, params: Params, requests: list[Request], max_tokens: int) -> list[Completion]:
    """Completions of the model in memory, by the pipeline's transformers engine."""
    sampling = params.generate.model_copy(update={"engine": "transformers", "max_tokens": max_tokens})
    ends = [model.generation_config.eos_token_id]
    return transformers_sampler(model, sampling, ends, max_num_seqs=256)(requests)


def evaluate(model: Any, params: Params, tokenizer: Any, held_out: list[dict[str, str]]) -> tuple[float, float]:
    requests = [Request(np.array(tokenizer(row["prompt"])["input_ids"]), 0, 0.0) for row in held_out]
    found = sample(model, params, requests, params.evaluate.max_tokens)
    texts = [tokenizer.decode(completion.completion_ids.tolist(), skip_special_tokens=True) for completion in found]
    rights = arithmetic_answer(
        prompts=None, completions=texts, completion_ids=None, answer=[row["answer"] for row in held_out]
    )
    lengths = [len(completion.completion_ids) for completion in found]
    return statistics.fmean(rights), statistics.fmean(lengths)


def sample_round(
    model: Any, reference: TokenLogprobs, params: Params, tokenizer: Any, rows: list[dict[str, str]], number: int
) -> Rows:
    settings = params.generate
    requests, answers = [], []
    for row in rows:
        ids = np.array(tokenizer(row["prompt"])["input_ids"])
        for index in range(settings.group_size):
            seed = seed_of("generate", params.seed, number, row["prompt"], index)
            requests.append(Request(ids, seed, settings.temperature))
            answers.append(row["answer"])
    found = sample(model, params, requests, settings.max_tokens)
    texts = [tokenizer.decode(completion.completion_ids.tolist(), skip_special_tokens=True) for completion in found]
    right = arithmetic_answer(prompts=None, completions=texts, completion_ids=None, answer=answers)
    formed = arithmetic_format(prompts=None, completions=texts, completion_ids=None)
    weights = {name: reward.weight for name, reward in params.score.rewards.items()}
    total = [weights.get("answer", 0) * a + weights.get("format", 0) * f for a, f in zip(right, formed, strict=True)]
    prompt_ids = Ragged.of([request.prompt_ids for request in requests], np.int32)
    completion_ids = Ragged.of([completion.completion_ids for completion in found], np.int32)
    lengths = np.stack([prompt_ids.lengths, completion_ids.lengths], axis=1)
    policy = TokenLogprobs(model, settings.temperature)
    batches = row_batches([list(range(len(prompt_ids)))], lengths, 16384, policy.layout)
    rewards = torch.tensor(total).view(-1, settings.group_size)
    groups = groups_of(
        rewards,
        mask=torch.ones_like(rewards, dtype=torch.bool),
        lengths=torch.from_numpy(completion_ids.lengths).view(rewards.shape),
        max_tokens=settings.max_tokens,
        ref_logprobs=torch.from_numpy(completion_logprobs(reference, prompt_ids, completion_ids, batches).values),
        old_logprobs=torch.from_numpy(completion_logprobs(policy, prompt_ids, completion_ids, batches).values),
    )
    return Rows(prompt_ids, completion_ids, groups)


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--rounds", "num_rounds", default=4, show_default=True)
@click.option("--lr", multiple=True, type=float, help="Learning rates to try; that of params.yaml without it.")
@click.option("--only", multiple=True, help="Settings whose name contains this.")
@click.option(
    "--work", type=Path, default=Path("data/.work/settings"), show_default=True, help="Where base policies are kept."
)
@click.option("--out", type=Path, help="One JSON line a run; runs that it holds are not repeated.")
def main(
    seeds: int, num_rounds: int, lr: tuple[float, ...], only: tuple[str, ...], work: Path, out: Path | None
) -> None:
    """Print one row a setting: gain in held-out greedy accuracy over the base, mean and worst seed."""
    console.quiet()
    content = read_yaml(Path("params.yaml"))
    chosen = {name: fields for name, fields in SETTINGS.items() if not only or any(word in name for word in only)}
    results: dict[tuple[str, float], list[dict[str, Any]]] = {}
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out and out.exists() else []
    finished = {(line["setting"], line["lr"], line["seed"]): line for line in lines}
    with distributed():
        for seed in range(seeds):
            base = work / f"base-{seed}"
            for rate in lr or (content["update"]["lr"],):
                for name, fields in chosen.items():
                    if (name, rate, seed) in finished:
                        results.setdefault((name, rate), []).append(finished[name, rate, seed])
                        continue
                    gift = {**content["update"]["match"]["gift"], **DEFAULT, **fields}
                    kept = {"zero_targets": gift.pop("zero_targets")} if "zero_targets" in gift else {}
                    update = {**content["update"], **kept, "lr": rate, "match": {"gift": gift}}
                    params = check(Params, {**content, "seed": seed, "update": update}, "params.yaml")
                    if not (base / "config.json").exists():
                        train(params.arithmetic, seed, base, work / f"training-{seed}")
                    start = time.monotonic()
                    result = run(params, base, num_rounds)
                    results.setdefault((name, rate), []).append(result)
                    line = {"setting": name, "lr": rate, "seed": seed, "seconds": time.monotonic() - start, **result}
                    print(json.dumps(line), file=sys.stderr, flush=True)
                    if out:
                        with out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")
    print("| setting | lr | greedy accuracy by round, mean | gain, mean | gain, worst seed | length | stopped |")
    print("|---|---|---|---|---|---|---|")
    for (name, rate), runs in results.items():
        # A run that the drift guard stopped keeps its last accuracy.
        curves = [[r["accuracy"][min(i, len(r["accuracy"]) - 1)] for i in range(num_rounds + 1)] for r in runs]
        means = " ".join(f"{statistics.fmean(values):.3f}" for values in zip(*curves, strict=True))
        gains = [r["accuracy"][-1] - r["accuracy"][0] for r in runs]
        lengths = [statistics.fmean(r["length"][i] for r in runs) for i in (0, -1)]
        stopped = sum(bool(r["stopped"]) for r in runs)
        print(
            f"| {name} | {rate:g} | {means} | {statistics.fmean(gains):+.3f} | {min(gains):+.3f} | "
            f"{lengths[0]:.1f} -> {lengths[1]:.1f} | {stopped} of {len(runs)} |"
        )


if __name__ == "__main__":
    main()
