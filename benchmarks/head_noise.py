"""What rounding the logits to bfloat16 adds to the log-ratio of a completion, which GIFT divides by its spread.

The head has the size of Qwen2.5-0.5B's; hidden states, and the small move of a policy from its reference, are random.
What is compared is exact otherwise: the same bfloat16 states and weights, with the logits in float64, in float32, or
rounded to bfloat16 before the softmax.
"""

import statistics
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.cases import Run, measured
from benchmarks.measure import say
from benchmarks.results import finish, markdown
from gift.logprobs.logits import float32_product

VOCABULARY, HIDDEN = 151_936, 896
SCALE = 6.0  # standard deviation of the logits; the largest of 151,936 is then near 26
MOVE = 0.002  # of the hidden states, against their size


@measured(quick={"repeats": 1}, repeats=1)
@click.option("--completions", default=16, show_default=True)
@click.option("--tokens", default=1500, show_default=True, help="Of a completion.")
def main(run: Run, completions: int, tokens: int) -> None:
    """Standard deviation, in nats, of the error of a completion's log-ratio, and of the log-ratio itself."""
    if run.quick:
        completions, tokens = 2, 32
    draw = torch.Generator().manual_seed(0)
    weight = (torch.randn(VOCABULARY, HIDDEN, generator=draw) * SCALE / HIDDEN**0.5).bfloat16()
    ratios: dict[str, list[float]] = {"float64": [], "float32": [], "bfloat16": []}
    for number in range(completions):
        states = torch.randn(tokens, HIDDEN, generator=draw).bfloat16()
        moved = (states.float() * (1 + MOVE * torch.randn(tokens, HIDDEN, generator=draw))).bfloat16()
        targets = torch.empty(tokens, dtype=torch.int64)
        logprobs: dict[str, Tensor] = {name: torch.empty(2, tokens, dtype=torch.float64) for name in ratios}
        for begin in range(0, tokens, 100):
            part = slice(begin, begin + 100)
            for policy, hidden in enumerate((states[part], moved[part])):
                logits = float32_product(hidden, weight)
                exact = hidden.double() @ weight.double().t()
                if policy == 0:
                    noise = -torch.log(-torch.log(torch.rand(exact.shape, generator=draw, dtype=torch.float64)))
                    targets[part] = (exact + noise).argmax(1)
                for name, each in (("float64", exact), ("float32", logits), ("bfloat16", logits.bfloat16().float())):
                    found = each.log_softmax(1).gather(1, targets[part].unsqueeze(1)).squeeze(1)
                    logprobs[name][policy, part] = found.double()
        for name, each in logprobs.items():
            ratios[name].append(float((each[1] - each[0]).sum()))
        say(f"{number + 1} of {completions}: " + ", ".join(f"{name} {each[-1]:.4f}" for name, each in ratios.items()))
    errors = {name: [a - b for a, b in zip(each, ratios["float64"], strict=True)] for name, each in ratios.items()}
    spread = {name: statistics.stdev(each) for name, each in errors.items() if name != "float64"}
    content = {"ratios": ratios, "noise": spread, "log_ratio_std": statistics.stdev(ratios["float64"])}
    sizes = {"vocabulary": VOCABULARY, "hidden": HIDDEN, "scale": SCALE, "move": MOVE, "tokens": tokens}
    finish("head_noise", {**run.settings, **sizes}, content, table, run.out)


def table(result: dict[str, Any]) -> str:
    """A row for each way to hold logits."""
    rows = [[name, f"{noise:.2g}"] for name, noise in result["noise"].items()]
    spread = f"\nThe log-ratios themselves have a standard deviation of {result['log_ratio_std']:.2g} nats."
    return markdown(["logits in", "noise of a completion's log-ratio, nats"], rows) + "\n" + spread


if __name__ == "__main__":
    main()
