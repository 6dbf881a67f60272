"""The section `repro` of launch.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from gift.project.sections import Section

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class ReproLaunch(Section):
    """`ask_from_minutes`: finished work that took so long does not run again without being asked for. `export`: the
    trackers that get the history after each round (`gift export`). `preload`: stages are forks of a Python that has
    imported their libraries; null: where there is no GPU. `keep_engine`: vLLM stays in memory between the stages of a
    run, and only its weights change; null: where there is no GPU, and it is small (docs/cluster.md)."""

    ask_from_minutes: Annotated[float, Field(ge=0)] = 15.0
    preload: bool | None = None
    keep_engine: bool | None = None
    export: tuple[Tracker, ...] = ()
