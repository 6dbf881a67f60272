"""What an update allocates for a batch, against the estimate of `gift doctor`."""

from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.cases import Run, measured, model_of
from benchmarks.measure import fresh, say
from benchmarks.results import finish, markdown
from benchmarks.shapes import Shape, make_rollouts, model_config

SHAPES = {
    "deep": Shape(256, 24, 4, 768, 8192, 2, 8, 48, 200, 200),
    "broad": Shape(896, 6, 14, 4864, 8192, 2, 8, 48, 200, 200),
    "vocabulary": Shape(512, 12, 8, 1536, 151_936, 2, 8, 48, 200, 200),
}
TOY = Shape(64, 4, 2, 128, 2048, 2, 8, 6, 15, 15)


@measured(quick={"tokens_per_batch": 128}, dtypes=False, tokens_per_batch=2048)
def main(run: Run) -> None:
    """A step of three models under each kind of gradient checkpointing; goal: within 25 % of the estimate."""
    points = []
    for name, shape in {"toy": TOY}.items() if run.quick else SHAPES.items():
        for dtype, checkpointing in product(("float32", "bfloat16"), (False, "selective", True)):
            with model_of(shape) as (folder, num_parameters):
                rollouts = make_rollouts(shape)
                measured_bytes = fresh(ours.step_bytes, folder, rollouts, dtype, run.tokens_per_batch, checkpointing)
                estimated = fresh(estimate, folder, shape, dtype, checkpointing)
            point = {"shape": name, "parameters": num_parameters, "dtype": dtype, "checkpointing": checkpointing}
            points.append({**point, "measured": measured_bytes, "estimated": estimated})
            say(f"{point}: {measured_bytes / 2**20:,.0f} MiB, estimated {estimated / 2**20:,.0f}")
    finish("activations", run.settings, {"points": points}, table, run.out)


def estimate(folder: Path, shape: Shape, dtype: str, checkpointing: Any) -> int:
    """As the doctor reckons: the gradients of the weights, and what a batch takes; a batch is one group here."""
    from gift.doctor.model import read_model
    from gift.training.deepspeed_config import EngineSettings
    from gift.training.memory import Decoder

    model = read_model(folder)
    decoder = Decoder.of(model_config(shape).to_dict(), model.shapes)
    assert decoder is not None
    batch = decoder.batch_bytes(shape.prompt + shape.group_size * (shape.longest - 1), dtype, checkpointing)
    settings = EngineSettings(dtype=dtype, zero_stage=1 if dtype == "bfloat16" else 0)
    gradients = 4 * model.num_parameters if dtype == "float32" else 0  # in bfloat16 those in float32 stay between steps
    return gradients + settings.bytes_of_a_step(model.num_parameters, model.largest, batch)


def table(result: dict[str, Any]) -> str:
    """A row a point: MiB above what is there between steps, measured and estimated."""
    rows = [
        [
            *(point["shape"], f"{point['parameters'] / 1e6:,.0f}M", point["dtype"]),
            {False: "no", True: "yes"}.get(point["checkpointing"], point["checkpointing"]),
            *(f"{point[name] / 2**20:,.0f}" for name in ("measured", "estimated")),
            f"{point['estimated'] / point['measured'] - 1:+.0%}",
        ]
        for point in result["points"]
    ]
    worst = max(abs(point["estimated"] / point["measured"] - 1) for point in result["points"])
    lines = markdown(["model", "parameters", "dtype", "checkpointing", "measured", "estimated", "off by"], rows)
    return f"{lines}\n\nGoal, within 25 %: {worst:.0%} at most, {'met' if worst <= 0.25 else 'missed'}."


if __name__ == "__main__":
    main()
