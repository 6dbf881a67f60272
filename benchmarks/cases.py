"""What the benchmarks share: their options, the settings a run is kept with, and models with rollouts to run on."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import fresh
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


@dataclass(frozen=True)
class Case:
    """A model of random weights in a folder, and rollouts for it."""

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
