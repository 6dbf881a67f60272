"""gift.json of a policy folder: the digest of its files, and where they come from."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from gift.project.errors import UserError
from gift.project.work import tree_digest, write_json

LINEAGE_FILE = "gift.json"


class Lineage(BaseModel):
    """Where a policy comes from. `base` and `parent` are digests; counts run over all rounds since the base.

    Version 1 called `base` `initial`, and is still read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1, 2] = 2
    digest: str
    base: str = Field(validation_alias=AliasChoices("base", "initial"))
    parent: str | None = None
    round: int = 0
    prompts_consumed: int = 0
    optimizer_steps: int = 0
    completion_tokens: int = 0


def policy_digest(folder: Path) -> str:
    """sha256 over every file of the folder but gift.json."""
    return tree_digest(folder, exclude=frozenset({LINEAGE_FILE}))


def read_lineage(folder: Path, verify: bool = True) -> Lineage:
    """gift.json of a policy folder; with `verify` the files must still be those that the digest was taken of."""
    path = folder / LINEAGE_FILE
    try:
        lineage = Lineage.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no policy here ({LINEAGE_FILE} is missing); `dvc repro` makes it, `dvc pull` fetches it"
        ) from None
    except (json.JSONDecodeError, ValidationError):
        raise UserError(
            f"{path}: is damaged; remove the folder, then `dvc checkout` or `dvc repro` brings it back"
        ) from None
    if verify and policy_digest(folder) != lineage.digest:
        raise UserError(
            f"{folder}: its files are not those of digest {lineage.digest[:12]} in {LINEAGE_FILE}: they were "
            "changed after the stage that made them; `dvc checkout` (base: `dvc repro -f -s base`) brings them back"
        )
    return lineage


def write_lineage(folder: Path, **fields: Any) -> Lineage:
    """Take the digest of a finished policy folder and write its gift.json; without `base` it is its own base."""
    digest = policy_digest(folder)
    lineage = Lineage(**{"digest": digest, "base": digest, **fields})
    write_json(folder / LINEAGE_FILE, lineage.model_dump())
    return lineage
