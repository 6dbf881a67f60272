"""The log-prob pass of the reference stage against a bare forward on perfectly packed input, in turn in one process."""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks import ours
from benchmarks.measure import fresh, say
from benchmarks.results import finish, has_gpu, markdown, met, options, start
from benchmarks.shapes import SHAPES, Rollouts, Shape, make_model, make_rollouts, shape_of

GOAL = 0.9
PACKED = "ours, packed"
SIDES = (PACKED, "ours, shared prompts", "bare, logits", "bare, log-probs")


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(SHAPES)), help="Without it: all of them.")
@click.option("--times", default=4, show_default=True, help="Times as many rollouts as in an update's step.")
@click.option("--repeats", default=3, show_default=True, help="Processes.")
@click.option("--passes", default=3, show_default=True, help="Timed passes of each side in a process, in turn.")
@click.option("--tokens-per-batch", default=16384, show_default=True, help="launch.yaml's key, for both sides.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@options
def main(
    models: tuple[str, ...],
    times: int,
    repeats: int,
    passes: int,
    tokens_per_batch: int,
    dtype: str,
    threads: int,
    quick: bool,
    out: Path | None,
) -> None:
    """Tokens/s of the reference pass over those of the bare forward; goal: 90%."""
    repeats, passes = (1, 2) if quick else (repeats, passes)
    settings = start(
        threads, quick, times=times, repeats=repeats, passes=passes, tokens_per_batch=tokens_per_batch, dtype=dtype
    )
    found = {}
    for name in models or SHAPES:
        shape = shape_of(name, quick)
        shape = replace(shape, groups=shape.groups * times)
        rollouts = make_rollouts(shape)
        seconds: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as work:
            parameters = fresh(make_model, shape, Path(work))
            for turn in range(repeats):
                run = fresh(compare, Path(work), shape, rollouts, dtype, tokens_per_batch, passes, has_gpu())
                for side, values in run.items():
                    seconds.setdefault(side, []).extend(values)
                say(f"{name}, {turn + 1} of {repeats}: " + ", ".join(f"{s} {min(v):.3g} s" for s, v in run.items()))
        found[name] = {
            "parameters": parameters,
            "completions": len(rollouts.rewards),
            "positions": rollouts.num_positions,
            "medians": {side: statistics.median(values) for side, values in seconds.items()},
            "seconds": seconds,
        }
    finish("reference", settings, {"models": found}, table, out)


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
