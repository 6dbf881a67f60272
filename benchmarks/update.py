"""One optimizer step on frozen rollouts: this project against TRL's GRPOTrainer, in alternating fresh processes."""

import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks import ours, peer_trl
from benchmarks.measure import fresh, pooled, say
from benchmarks.results import finish, markdown, met, options, start
from benchmarks.shapes import SHAPES, make_model, make_rollouts, shape_of

SPEED_GOAL, MEMORY_GOAL = 3.0, 0.4


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(SHAPES)), help="Without it: all of them.")
@click.option("--variant", "variants", multiple=True, type=click.Choice(list(peer_trl.VARIANTS)), help="TRL's; all.")
@click.option("--repeats", default=3, show_default=True, help="Processes of each side, in turn.")
@click.option("--steps", default=3, show_default=True, help="Timed steps of each process.")
@click.option("--warmup", default=1, show_default=True, help="Steps before; one more settles memory.")
@click.option("--tokens-per-batch", default=16384, show_default=True, help="Ours: launch.yaml's key.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@options
def main(
    models: tuple[str, ...],
    variants: tuple[str, ...],
    repeats: int,
    steps: int,
    warmup: int,
    tokens_per_batch: int,
    dtype: str,
    threads: int,
    quick: bool,
    out: Path | None,
) -> None:
    """Seconds a step and memory, against TRL; goals: 3 times its tokens/s at 40% of its peak on the wide model."""
    repeats, steps = (1, 2) if quick else (repeats, steps)
    settings = start(
        threads, quick, repeats=repeats, steps=steps, warmup=warmup, tokens_per_batch=tokens_per_batch, dtype=dtype
    )
    found = {}
    for name in models or SHAPES:
        shape = shape_of(name, quick)
        rollouts = make_rollouts(shape)
        runs: dict[str, list[dict[str, Any]]] = {}
        with tempfile.TemporaryDirectory() as work:
            parameters = fresh(make_model, shape, Path(work))
            for turn in range(repeats):
                for side in ("ours", *(variants or peer_trl.VARIANTS)):
                    common = (Path(work), rollouts, dtype)
                    if side == "ours":
                        run = fresh(ours.update_steps, *common, tokens_per_batch, warmup, steps)
                    else:
                        run = fresh(peer_trl.update_steps, *common, side, warmup, steps)
                    if run["num_tokens"] != rollouts.num_tokens:
                        raise click.ClickException(
                            f"{side}: trained {run['num_tokens']} of {rollouts.num_tokens} tokens"
                        )
                    runs.setdefault(side, []).append(run)
                    seconds = pooled([run])["seconds"]
                    say(f"{name}, {turn + 1} of {repeats}: {side}: {seconds:.3g} s, {run['peak_mib']:,.0f} MiB")
        found[name] = {
            "parameters": parameters,
            "completions": len(rollouts.rewards),
            "completion_tokens": rollouts.num_tokens,
            "positions": rollouts.num_positions,
            "sides": {side: {**pooled(each), "runs": each} for side, each in runs.items()},
        }
    finish("update", settings, {"models": found}, table, out)


def table(result: dict[str, Any]) -> str:
    """A row a side: median seconds a step, completion tokens/s, MiB; ratios are ours against that row of TRL."""
    rows = []
    for name in (each for each in SHAPES if each in result["models"]):
        model = result["models"][name]
        own = model["sides"]["ours"]
        for side in (each for each in ("ours", *peer_trl.VARIANTS) if each in model["sides"]):
            numbers = model["sides"][side]
            row = [
                f"{name}, {model['parameters'] / 1e6:.3g}M",
                side if side == "ours" else f"TRL, {side}",
                f"{numbers['seconds']:.3g} ({numbers['fastest']:.3g} to {numbers['slowest']:.3g})",
                f"{model['completion_tokens'] / numbers['seconds']:,.0f}",
                *(f"{numbers[key]:,.0f}" for key in ("libraries_mib", "rest_mib", "peak_mib")),
                f"{numbers['peak_mib'] - numbers['rest_mib']:,.0f}",
            ]
            if side == "ours":
                row += ["", ""]
            else:
                row += [f"{numbers['seconds'] / own['seconds']:.2f}x", f"{own['peak_mib'] / numbers['peak_mib']:.0%}"]
            rows.append(row)
    header = [
        "model",
        "side",
        "seconds a step, median (all)",
        "tokens/s",
        "libraries",
        "at rest",
        "peak",
        "peak - rest",
    ]
    lines = [markdown([*header, "our speed", "our peak"], rows)]
    peers = {side: n for side, n in result["models"].get("wide", {"sides": {}})["sides"].items() if side != "ours"}
    if peers:
        own = result["models"]["wide"]["sides"]["ours"]
        speed = min(n["seconds"] for side, n in peers.items() if side != "compact head") / own["seconds"]
        fastest = min((n["seconds"], n["peak_mib"]) for side, n in peers.items() if side != "compact head")
        memory = own["peak_mib"] / fastest[1]
        lines.append(
            f"\nGoal on the wide model, against the fastest of TRL as published: {SPEED_GOAL:g} times its tokens/s: "
            f"{speed:.2f}, {met(speed, SPEED_GOAL)}; {MEMORY_GOAL:.0%} of its absolute peak: {memory:.0%}, "
            f"{met(memory, MEMORY_GOAL, at_most=True)}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
