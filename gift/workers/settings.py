"""Who makes the parts of a stage: the section `workers` of launch.yaml."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from gift.project.sections import Positive, Section

ADDRESS = re.compile(r"([^\s:]+):(\d{1,5})")


class Workers(Section):
    """Where the workers of the stages run that make their tables in parts; results are the same everywhere."""

    kind: Literal["local", "srun", "ray", "connect"] = Field(
        "local", description="on this machine, a step of SLURM's, actors of Ray's, or whoever connects (`gift worker`)"
    )
    listen: str | None = Field(
        None, description="host:port where workers of other hosts connect; port 0 is a free one; null: nowhere"
    )
    args: list[str] = Field(default_factory=list, description="further words of srun, e.g. ['--nodes=4']")
    address: str | None = Field(
        None, description="of a Ray cluster, `auto` for the one around; null: Ray starts one on this machine"
    )
    timeout_minutes: Positive = Field(30.0, description="how long a worker may load, or show no progress")

    @model_validator(mode="after")
    def each_key_has_its_kind(self) -> "Workers":
        if self.args and self.kind != "srun":
            raise ValueError(f"args: are words of srun, and kind is {self.kind}; remove them, or set kind: srun")
        if self.address is not None and self.kind != "ray":
            raise ValueError(f"address: is that of a Ray cluster, and kind is {self.kind}; remove it, or set kind: ray")
        return self

    @field_validator("listen")
    @classmethod
    def host_and_port(cls, listen: str | None) -> str | None:
        if listen is not None and not is_address(listen):
            raise ValueError("must be host:port, such as 0.0.0.0:0, or null")
        return listen


def is_address(text: str) -> bool:
    """host:port, where a port may be."""
    match = ADDRESS.fullmatch(text)
    return match is not None and int(match[2]) <= 65535
