"""Where the weights of a policy lie: the folder of a whole model, or an adapter's on top of the base policy."""

from dataclasses import dataclass
from pathlib import Path

from gift.policy.adapter import CONFIG_FILE
from gift.policy.lineage import Lineage, read_lineage
from gift.project.errors import UserError


@dataclass(frozen=True)
class PolicyFiles:
    """The folder of a whole model, and that of an adapter on top of it, if any."""

    model: Path
    adapter: Path | None = None

    @property
    def folder(self) -> Path:
        """The policy's own."""
        return self.adapter or self.model


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").exists()


def find_policy(folder: Path, base: Path) -> tuple[PolicyFiles, Lineage]:
    """The files and the lineage of a policy, each file hashed once; an adapter must have been trained on `base`."""
    lineage = read_lineage(folder)
    if not is_adapter(folder):
        return PolicyFiles(folder), lineage
    found = read_lineage(base).digest
    if found != lineage.base:
        raise UserError(
            f"{folder}: an adapter on the base policy {lineage.base[:12]}, but {base} is {found[:12]}; "
            "`dvc repro` trains it again on this one"
        )
    return PolicyFiles(base, folder), lineage


def find_reference(base: Path, policy: PolicyFiles, lineage: Lineage) -> tuple[PolicyFiles, str]:
    """The base as the reference of a round, and its digest; `policy` itself where it is the base."""
    found = read_lineage(base, verify=policy.model != base)  # hashed already, with the policy
    return (policy, lineage.digest) if found.digest == lineage.digest else (PolicyFiles(base), found.digest)
