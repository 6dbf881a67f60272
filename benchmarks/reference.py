"""The log-prob pass of the reference stage against a bare forward on perfectly packed input, in turn in one process."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.cases import Run, cases, measured, models_option
from benchmarks.measure import fresh, say
from benchmarks.results import finish, has_gpu, markdown, met
from benchmarks.shapes import SHAPES, Rollouts, Shape

GOAL = 0.9
PACKED = "ours, packed"
SIDES = (PACKED, "ours, shared prompts", "bare, logits", "bare, log-probs")


@measured(quick={"repeats": 1, "passes": 2}, times=4, repeats=3, passes=3, tokens_per_batch=16384)
@models_option
def main(run: Run, models: tuple[str, ...]) -> None:
    """Tokens/s of the reference pass over those of the bare forward; goal: 90%."""
    found = {}
    for case in cases(models, run.quick, lambda shape: replace(shape, groups=shape.groups * run.times)):
        seconds: dict[str, list[float]] = {}
        options = (run.dtype, run.tokens_per_batch, run.passes, has_gpu())
        for turn in range(run.repeats):
            done = fresh(compare, case.folder, case.shape, case.rollouts, *options)
            for side, values in done.items():
                seconds.setdefault(side, []).extend(values)
            shown = ", ".join(f"{side} {min(values):.3g} s" for side, values in done.items())
            say(f"{case.name}, {turn + 1} of {run.repeats}: {shown}")
        found[case.name] = {
            "parameters": case.parameters,
            "completions": len(case.rollouts.rewards),
            "positions": case.rollouts.num_positions,
            "medians": {side: statistics.median(values) for side, values in seconds.items()},
            "seconds": seconds,
        }
    finish("reference", run.settings, {"models": found}, table, run.out)


def compare(
    folder: Path, shape: Shape, rollouts: Rollouts, dtype: str, tokens_per_batch: int, passes: int, cuda: bool
) -> dict[str, list[float]]:
    """Seconds of each pass of each side over models of the same weights, after one pass of each that does not count."""
    import torch

    device = torch.device("cuda" if cuda else "cpu")
    packed, shared, plain = (
        ours.load_logprobs(folder, dtype, device, packing) for packing in ("packed", "shared", "padded")
    )
    work = {
        "ours, packed": lambda: ours.reference_pass(packed, rollouts, tokens_per_batch),
        "ours, shared prompts": lambda: ours.reference_pass(shared, rollouts, tokens_per_batch),
        "bare, logits": lambda: bare(plain.model, shape, rollouts, tokens_per_batch, log_probs=False),
        "bare, log-probs": lambda: bare(plain.model, shape, rollouts, tokens_per_batch, log_probs=True),
    }
    for each in work.values():
        each()
    seconds: dict[str, list[float]] = {side: [] for side in work}
    for _ in range(passes):
        for side, each in work.items():
            seconds[side].append(ours.timed(each, device))
    return seconds


def bare(model: Any, shape: Shape, rollouts: Rollouts, tokens_per_batch: int, log_probs: bool) -> None:
    """The decoder on rectangles without padding, as many tokens in all, and the head at as many positions.

    Rows are as long as the mean sequence. The head's logits stand in chunks of 64 MiB.
    """
    import torch

    count = len(rollouts.rewards)
    length = rollouts.num_positions // count
    scored = -(-rollouts.num_tokens // count)
    rows = max(1, min(count, tokens_per_batch // length))
    chunk = max(1, 64 * 2**20 // (4 * shape.vocab))
    ids = torch.randint(0, shape.vocab, (count, length), device=model.device)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for part in ids.split(rows):
            hidden = model.get_decoder()(input_ids=part, use_cache=False).last_hidden_state
            hidden, targets = hidden[:, -scored:].flatten(0, 1), part[:, -scored:].flatten()
            for piece, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
                logits = head(piece)
                if log_probs:
                    torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")


def table(result: dict[str, Any]) -> str:
    """A row a model and side: median seconds a pass, tokens/s, and the speed of ours without sharing against it."""
    rows = []
    models = {name: result["models"][name] for name in SHAPES if name in result["models"]}
    for name, model in models.items():
        for side in SIDES:
            seconds = model["medians"][side]
            rows.append(
                [
                    f"{name}, {model['parameters'] / 1e6:.3g}M",
                    side,
                    f"{seconds:.3g}",
                    f"{model['positions'] / seconds:,.0f}",
                    "" if side == PACKED else f"{seconds / model['medians'][PACKED]:.0%}",
                ]
            )
    lines = [markdown(["model", "side", "seconds a pass, median", "tokens/s", "ours, packed, against it"], rows)]
    for name, model in models.items():
        share = model["medians"]["bare, logits"] / model["medians"][PACKED]
        lines.append(
            f"\nGoal, {name}: packed against the bare forward to logits, {GOAL:.0%}: {share:.0%}, {met(share, GOAL)}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
