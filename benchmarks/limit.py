"""The step against its limit: the time of the matrix products that no implementation can leave out, nothing else."""

import statistics
import time
from collections import Counter
from typing import Any

from benchmarks import ours
from benchmarks.cases import Run, cases, measured, models_option
from benchmarks.measure import fresh, pooled, say
from benchmarks.results import finish, has_gpu, markdown, met
from benchmarks.shapes import SHAPES, Rollouts, Shape, model_config

GOAL = 0.7
OUT_BYTES = 256 * 2**20  # the head's product is cut into rows so that its output is at most this


@measured(quick={"repeats": 1, "steps": 2}, repeats=3, steps=3, tokens_per_batch=16384)
@models_option
def main(run: Run, models: tuple[str, ...]) -> None:
    """Our step's time over that of its matrix products; goal: the products are 70% of it on the 100M model."""
    found = {}
    for case in cases(models, run.quick):
        step_runs, product_runs = [], []
        for turn in range(run.repeats):
            least = 0.02 if run.quick else 0.3
            product_runs.append(fresh(products, case.shape, case.rollouts, run.dtype, has_gpu(), least))
            step = fresh(ours.update_steps, case.folder, case.rollouts, run.dtype, run.tokens_per_batch, 1, run.steps)
            step_runs.append(step)
            limit, seconds = product_runs[-1]["once_a_group"]["seconds"], pooled([step])["seconds"]
            say(f"{case.name}, {turn + 1} of {run.repeats}: products {limit:.3g} s, step {seconds:.3g} s")
        found[case.name] = {
            "parameters": case.parameters,
            "completion_tokens": case.rollouts.num_tokens,
            "positions": case.rollouts.num_positions,
            "step": {**pooled(step_runs), "runs": step_runs},
            "fastest_step": min(min(each["seconds"]) for each in step_runs),
            **{
                count: {
                    "median": statistics.median(each[count]["seconds"] for each in product_runs),
                    "fastest": min((each[count] for each in product_runs), key=lambda each: each["seconds"]),
                }
                for count in product_runs[0]
            },
            "runs": product_runs,
        }
    finish("limit", run.settings, {"models": found}, table, run.out)


def products(shape: Shape, rollouts: Rollouts, dtype: str, cuda: bool, seconds: float) -> dict[str, Any]:
    """The limit of a step, in seconds and floating-point operations, two ways of counting prompts.

    once_a_group: every prompt is computed once for its whole group, the least that causal attention allows;
    once_a_completion: as often as it has completions, as without that sharing.
    """
    import torch

    device = torch.device("cuda" if cuda else "cpu")
    rate = Rate(device, getattr(torch, dtype), seconds)
    groups = len(rollouts.rewards) // rollouts.group_size
    # The last token of a completion is only ever predicted, so no model computes anything at it.
    completions = rollouts.num_tokens - len(rollouts.rewards)
    found = {}
    for count, prompts in (
        ("once_a_group", sum(len(rollouts.prompt_ids[g * rollouts.group_size]) for g in range(groups))),
        ("once_a_completion", sum(map(len, rollouts.prompt_ids))),
    ):
        body = linear_shapes(shape)
        total, operations = 0.0, 0.0
        for (inputs, outputs), number in body.items():
            spent, done = rate.linear(prompts + completions, inputs, outputs)
            total, operations = total + number * spent, operations + number * done
        head, done = rate.linear(rollouts.num_tokens, shape.hidden, shape.vocab)
        attention, more = attention_products(shape, rollouts, rate, count == "once_a_group")
        found[count] = {
            "seconds": total + head + attention,
            "operations": operations + done + more,
            "body": total,
            "head": head,
            "attention": attention,
        }
    return found


def linear_shapes(shape: Shape) -> Counter[tuple[int, int]]:
    """(inputs, outputs) of every linear map of the decoder, and how many there are of it."""
    import torch
    from transformers import Qwen3Model

    with torch.device("meta"):
        modules = Qwen3Model(model_config(shape)).modules()
    linears = [module for module in modules if isinstance(module, torch.nn.Linear)]
    return Counter((module.in_features, module.out_features) for module in linears)


def attention_products(shape: Shape, rollouts: Rollouts, rate: "Rate", shared: bool) -> tuple[float, float]:
    """Seconds and operations of attention: Q K' and P V forward, four products backward, of causal pairs only.

    A dense product of a square computes all pairs, so the causal share of its time counts. With `shared` prompts the
    pairs inside a prompt are counted once a group.
    """
    seconds = operations = 0.0
    size = shape.hidden // shape.heads
    for row, (prompt, completion) in enumerate(zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)):
        length = len(prompt) + len(completion) - 1
        pairs = length * (length + 1) / 2
        if shared and row % rollouts.group_size:
            pairs -= len(prompt) * (len(prompt) + 1) / 2
        square = rate.product((shape.heads, length, size), (shape.heads, size, length))
        seconds += 6 * shape.layers * square * pairs / length**2
        operations += 6 * shape.layers * 2 * shape.heads * size * pairs
    return seconds, operations


class Rate:
    """Seconds of matrix products of given shapes into a ready output: the fastest of many calls, measured once each."""

    def __init__(self, device: Any, dtype: Any, seconds: float) -> None:
        self.device, self.dtype, self.seconds = device, dtype, seconds
        self.known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def linear(self, rows: int, inputs: int, outputs: int) -> tuple[float, float]:
        """A linear map forward, and both products of its backward; seconds and operations."""
        cut = max(1, min(rows, OUT_BYTES // (4 * outputs)))
        pieces = [cut] * (rows // cut) + ([rows % cut] if rows % cut else [])
        seconds = 0.0
        for piece in pieces:
            seconds += self.product((piece, inputs), (inputs, outputs))
            seconds += self.product((piece, outputs), (outputs, inputs))
            seconds += self.product((outputs, piece), (piece, inputs))
        return seconds, 6.0 * rows * inputs * outputs

    def product(self, left: tuple[int, ...], right: tuple[int, ...]) -> float:
        import torch

        if (left, right) not in self.known:
            a = torch.randn(left, device=self.device, dtype=self.dtype)
            b = torch.randn(right, device=self.device, dtype=self.dtype)
            out = torch.matmul(a, b)
            spent: list[float] = []
            while sum(spent) < self.seconds or len(spent) < 3:
                start = time.perf_counter()
                torch.matmul(a, b, out=out)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                spent.append(time.perf_counter() - start)
            self.known[left, right] = min(spent)
        return self.known[left, right]


def table(result: dict[str, Any]) -> str:
    """A row a model: the limit's parts, the step, and the share of the step that the limit is."""
    rows = []
    for name in (each for each in SHAPES if each in result["models"]):
        model = result["models"][name]
        step, fastest = model["step"]["seconds"], model["fastest_step"]
        for count in ("once_a_group", "once_a_completion"):
            limit, median = model[count]["fastest"], model[count]["median"]
            rows.append(
                [
                    f"{name}, {model['parameters'] / 1e6:.3g}M",
                    count.replace("_", " "),
                    *(f"{limit[part]:.3g}" for part in ("body", "head", "attention", "seconds")),
                    f"{limit['operations'] / limit['seconds'] / 1e9:,.0f}",
                    f"{fastest:.3g}",
                    f"{limit['seconds'] / fastest:.0%}",
                    f"{median:.3g}",
                    f"{step:.3g}",
                    f"{median / step:.0%}",
                ]
            )
    header = ["model", "prompts", "body", "head", "attention", "limit, s", "GFLOP/s", "our step, s", "limit / step"]
    header += ["limit, median", "step, median", "limit / step, medians"]
    lines = [markdown(header, rows)]
    if "hundred" in result["models"]:
        model = result["models"]["hundred"]
        share = model["once_a_group"]["fastest"]["seconds"] / model["fastest_step"]
        medians = model["once_a_group"]["median"] / model["step"]["seconds"]
        lines.append(
            f"\nGoal on the 100M model, prompts once a group: the products are {GOAL:.0%} of the step: {share:.0%} "
            f"(fastest of each), {met(share, GOAL)}; {medians:.0%} (medians), {met(medians, GOAL)}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
