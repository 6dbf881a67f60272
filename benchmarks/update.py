"""One optimizer step on frozen rollouts: this project against TRL's GRPOTrainer, in alternating fresh processes."""

from itertools import chain
from typing import Any

import click

from benchmarks import ours, peer_trl
from benchmarks.cases import REAL, Run, cases, measured, real_case
from benchmarks.measure import fresh, pooled, say
from benchmarks.results import finish, markdown, met
from benchmarks.shapes import SHAPES

SPEED_GOAL, MEMORY_GOAL = 3.0, 0.4
OURS: dict[str, tuple[Any, bool]] = {
    "ours": (False, False),
    "ours, accumulated": (False, True),
    "ours, selective": ("selective", False),
    "ours, selective, accumulated": ("selective", True),
    "ours, checkpointed": (True, False),
}
"""Our sides: launch.yaml's `gradient_checkpointing`, and whether a step takes several batches, as TRL's accumulated."""


@measured(quick={"repeats": 1, "steps": 2}, repeats=3, steps=3, warmup=1, tokens_per_batch=16384)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice([*SHAPES, REAL]),
    help=f"Without it: all of random weights. {REAL}: trained ones.",
)
@click.option("--variant", "variants", multiple=True, type=click.Choice(list(peer_trl.VARIANTS)), help="TRL's; all.")
def main(run: Run, models: tuple[str, ...], variants: tuple[str, ...]) -> None:
    """Seconds a step and memory, against TRL and without checkpointing; goals: 3 times TRL's tokens/s at 40% of its
    peak on the wide model."""
    found = {}
    shapes = [name for name in models or SHAPES if name != REAL]
    for case in chain(cases(shapes, run.quick) if shapes else (), [real_case(run.quick)] if REAL in models else ()):
        rollouts = case.rollouts
        runs: dict[str, list[dict[str, Any]]] = {}
        for turn in range(run.repeats):
            for side in (*OURS, *(variants or peer_trl.VARIANTS)):
                common = (case.folder, rollouts, run.dtype)
                if side in OURS:
                    checkpointing, accumulated = OURS[side]
                    tokens = rollouts.tokens_of_a_quarter if accumulated else run.tokens_per_batch
                    how = (tokens, run.warmup, run.steps, "auto", None, checkpointing)
                    done = fresh(ours.update_steps, *common, *how)
                else:
                    done = fresh(peer_trl.update_steps, *common, side, run.warmup, run.steps)
                if done["num_tokens"] != rollouts.num_tokens:
                    raise click.ClickException(f"{side}: trained {done['num_tokens']} of {rollouts.num_tokens} tokens")
                runs.setdefault(side, []).append(done)
                seconds = pooled([done])["seconds"]
                say(f"{case.name}, {turn + 1} of {run.repeats}: {side}: {seconds:.3g} s, {done['peak_mib']:,.0f} MiB")
        found[case.name] = {
            "parameters": case.parameters,
            "completions": len(rollouts.rewards),
            "completion_tokens": rollouts.num_tokens,
            "positions": rollouts.num_positions,
            "sides": {side: {**pooled(each), "runs": each} for side, each in runs.items()},
        }
    finish("update", run.settings, {"models": found}, table, run.out)


def table(result: dict[str, Any]) -> str:
    """A row a side: median seconds a step, completion tokens/s, MiB; ratios are of `ours` against that row."""
    rows = []
    for name in (each for each in (*SHAPES, REAL) if each in result["models"]):
        model = result["models"][name]
        own = model["sides"]["ours"]
        for side in (each for each in (*OURS, *peer_trl.VARIANTS) if each in model["sides"]):
            numbers = model["sides"][side]
            row = [
                f"{name}, {model['parameters'] / 1e6:.3g}M",
                side if side in OURS else f"TRL, {side}",
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
    peers = {side: n for side, n in result["models"].get("wide", {"sides": {}})["sides"].items() if side not in OURS}
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
