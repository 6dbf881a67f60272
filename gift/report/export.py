"""The history as runs of TensorBoard, MLflow, W&B or trackio: a run a branch; what is new goes behind what was sent."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from gift.project.errors import UserError
from gift.project.work import hold, write_json
from gift.report.runs import Line, lines_of

SENT = Path("data/.cache/export")
TENSORBOARD = Path("data/report/tensorboard")


class Point(NamedTuple):
    """Numbers of a round (`axis` is round) or of an optimizer step (step), and which one it is."""

    axis: str
    at: int
    numbers: dict[str, float]


Sink = Callable[[str, str, str | None, Sequence[Point]], str]
"""Sends points of a run (project, name, its id if it was sent before); returns the run's id."""


def export(to: str, project: str) -> dict[str, int]:
    """Send what a tracker does not have yet; returns the points sent of each branch.

    A branch that was made again since is sent whole, as a new run: what was sent of it stays where it is.
    """
    path = SENT / f"{to}.json"
    hold(f"export-{to}")
    known = _read(path)
    sent = {}
    for line in lines_of(Path()):
        points = points_of(line)
        digests = [hashlib.sha256(json.dumps(each).encode()).hexdigest()[:16] for each in points]
        key = f"{project}/{line.branch}"
        before = known.get(key, {"id": None, "sent": [], "time": 1})
        if digests[: len(before["sent"])] != before["sent"]:
            before = {"id": None, "sent": [], "time": before["time"] + 1}
        new = points[len(before["sent"]) :]
        if new:
            name = line.branch if before["time"] == 1 else f"{line.branch}-{before['time']}"
            known[key] = {**before, "id": _send(to, project, name, before["id"], new), "sent": digests}
            write_json(path, known)
        sent[line.branch] = len(new)
    return sent


def _read(path: Path) -> dict[str, Any]:
    """What was sent; nothing where that is not known, so that all is sent again."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _send(to: str, project: str, name: str, run: str | None, points: Sequence[Point]) -> str:
    try:
        return SINKS[to](project, name, run, points)
    except UserError:
        raise
    except Exception as error:  # of any type: no network, no account, a folder that cannot be written
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{to}: {type(error).__name__}: {first}; nothing of {name} counts as sent") from None


def points_of(line: Line) -> list[Point]:
    """Of each policy the steps that made it, then its own numbers; so what is added later stands behind."""
    found = []
    for row in line.rounds:
        steps = [step for step in line.steps if step["round"] == row["round"]]
        found += [Point("step", int(step["step"]), _numbers(step)) for step in steps]
        found.append(Point("round", int(row["round"]), _numbers(row)))
    return found


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float) and name != "step"}


def _library(to: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(
            f"{to}: the package is not installed; name it in a line of requirements/own.txt, and `make env` installs it"
        ) from None


def _tensorboard(project: str, name: str, run: str | None, points: Sequence[Point]) -> str:
    _library("tensorboard", "tensorboard")
    writer = _library("tensorboard", "torch.utils.tensorboard").SummaryWriter(str(TENSORBOARD / name))
    for axis, at, numbers in points:
        for key, value in numbers.items():
            writer.add_scalar(f"{axis}/{key}", value, at)
    writer.close()
    return name


def _mlflow(project: str, name: str, run: str | None, points: Sequence[Point]) -> str:
    mlflow = _library("mlflow", "mlflow")
    mlflow.set_experiment(project)
    with mlflow.start_run(run_id=run, run_name=None if run else name) as active:
        for axis, at, numbers in points:  # @ may not stand in a name there
            mlflow.log_metrics({f"{axis}/{key}".replace("@", "_at_"): each for key, each in numbers.items()}, step=at)
        return str(active.info.run_id)


def _wandb(project: str, name: str, run: str | None, points: Sequence[Point]) -> str:
    wandb = _library("wandb", "wandb")
    with wandb.init(project=project, name=name, id=run, resume="allow") as active:
        for axis in ("round", "step"):  # two axes, each of its own numbers
            active.define_metric(f"{axis}/*", step_metric=f"{axis}/at")
        for axis, at, numbers in points:
            active.log({f"{axis}/at": at, **{f"{axis}/{key}": each for key, each in numbers.items()}})
        return str(active.id)


def _trackio(project: str, name: str, run: str | None, points: Sequence[Point]) -> str:
    trackio = _library("trackio", "trackio")
    trackio.init(project=project, name=name, resume="allow")
    for axis, at, numbers in points:
        trackio.log({f"{axis}/{key}": each for key, each in numbers.items()}, step=at)
    trackio.finish()
    return name


SINKS: dict[str, Sink] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb, "trackio": _trackio}
