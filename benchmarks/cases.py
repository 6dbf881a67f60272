"""What the benchmarks share: their options, the settings a run is kept with, and models with rollouts to run on."""

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import fresh
from benchmarks.real_tasks import TASKS
from benchmarks.real_weights import real_weights
from benchmarks.results import start
from benchmarks.shapes import SHAPES, Rollouts, Shape, make_model, make_rollouts, shape_of

DTYPE = click.Choice(["float32", "bfloat16"])
HELP = {
    "repeats": "Processes of each side, in turn.",
    "steps": "Timed steps of each process.",
    "passes": "Timed passes of each side in a process, in turn.",
    "warmup": "Steps before; one more settles memory.",
    "tokens_per_batch": "launch.yaml's key.",
    "times": "Times as many rollouts as in an update's step.",
}


@dataclass(frozen=True)
class Run:
    """The shared options of one call; a benchmark without an option has its 0 or ''. `settings` go into the result."""

    settings: dict[str, Any]
    quick: bool
    out: Path | None
    repeats: int = 0
    steps: int = 0
    passes: int = 0
    warmup: int = 0
    tokens_per_batch: int = 0
    times: int = 0
    dtype: str = "float32"


def measured(
    quick: dict[str, int] | None = None, dtypes: bool = True, **defaults: int
) -> Callable[[Callable[..., None]], Any]:
    """A command with --threads, --quick, --out and (`dtypes`) --dtype, and an option for each of `defaults`.

    It gets a `Run`; `quick` are the values of a quick one.
    """

    def decorate(main: Callable[..., None]) -> Any:
        @wraps(main)
        def command(threads: int, quick_run: bool, out: Path | None, **given: Any) -> None:
            numbers = {name: given.pop(name) for name in defaults} | ((quick or {}) if quick_run else {})
            dtype = {"dtype": given.pop("dtype")} if dtypes else {}
            settings = start(threads, quick_run, **numbers, **dtype)
            main(run=Run(settings, quick_run, out, **numbers, **dtype), **given)

        shared = [
            *(
                click.option(f"--{name.replace('_', '-')}", default=value, show_default=True, help=HELP[name])
                for name, value in defaults.items()
            ),
            *([click.option("--dtype", default="float32", show_default=True, type=DTYPE)] if dtypes else []),
            click.option("--threads", default=0, help="Threads of every process; 0 is one a core."),
            click.option("--quick", "quick_run", is_flag=True, help="Toy sizes: does it run? Kept with --out alone."),
            click.option("--out", type=Path, help="Result file; without it one in benchmarks/results."),
        ]
        decorated: Any = command
        for option in reversed(shared):
            decorated = option(decorated)
        return click.command()(decorated)

    return decorate


models_option = click.option(
    "--model", "models", multiple=True, type=click.Choice(list(SHAPES)), help="Without it: all of them."
)


@contextmanager
def model_of(shape: Shape) -> Iterator[tuple[Path, int]]:
    """A folder with a model of the shape, for as long as it is needed; and the number of its parameters."""
    with tempfile.TemporaryDirectory() as work:
        yield Path(work), fresh(make_model, shape, Path(work))


REAL = "smollm2"
# The steps of the real weights: the chats of `real_tasks` as prompts, and random tokens behind them.
REAL_SHAPE = Shape(576, 30, 9, 1536, 49_152, groups=2, group_size=8, prompt=1, shortest=10, longest=48)


@dataclass(frozen=True)
class Case:
    """A model in a folder, and rollouts for it."""

    name: str
    shape: Shape
    rollouts: Rollouts
    folder: Path
    parameters: int


def cases(models: Sequence[str], quick: bool, change: Callable[[Shape], Shape] = lambda shape: shape) -> Iterator[Case]:
    """The models by name (all without one), each in a folder that lasts until the next; `change` is made to shapes."""
    for name in models or SHAPES:
        shape = change(shape_of(name, quick))
        with model_of(shape) as (folder, parameters):
            yield Case(name, shape, make_rollouts(shape), folder, parameters)


def real_case(quick: bool) -> Case:
    """The trained weights of benchmarks/real_model.py, which random ones cannot stand for in all things."""
    shape = replace(REAL_SHAPE, groups=1, group_size=2) if quick else REAL_SHAPE
    folder = real_weights()
    prompts, parameters = fresh(chats_of, folder, shape.groups)
    rollouts = make_rollouts(shape)
    prompt_ids = [prompts[row // shape.group_size] for row in range(len(rollouts.rewards))]
    return Case(REAL, shape, replace(rollouts, prompt_ids=prompt_ids), folder, parameters)


def chats_of(folder: Path, number: int) -> tuple[list[list[int]], int]:
    """The tokens of some chats, a task each, under the model's chat template; and the model's number of parameters."""
    from safetensors import safe_open

    from gift.policy.folder import load_tokenizer

    tokenizer, rng = load_tokenizer(folder), random.Random("chats")
    asked = [[{"role": "user", "content": ask(rng)[0]}] for ask in list(TASKS.values())[:number]]
    chats = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in asked]
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return chats, sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
