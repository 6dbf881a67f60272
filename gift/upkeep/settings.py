"""The section `repro` of launch.yaml."""

from typing import Annotated

from pydantic import Field

from gift.project.sections import Section


class ReproLaunch(Section):
    """`ask_from_minutes`: finished work that took so long does not run again without being asked for."""

    ask_from_minutes: Annotated[float, Field(ge=0)] = 15.0
