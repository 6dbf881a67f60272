"""Reading one section of params.yaml or launch.yaml; nothing here knows what the sections hold."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from gift.project.errors import UserError
from gift.project.rounds import ROUNDS, Round, lay_over
from gift.project.sections import Model, Section, check
from gift.project.work import json_text
from gift.project.yaml import read_yaml

PARAMS = Path("params.yaml")
OWN_LAUNCH = "GIFT_LAUNCH"
"""Of the environment: another launch.yaml, such as one for this machine alone, which git need not know."""
LAUNCH = Path(os.environ.get(OWN_LAUNCH, "launch.yaml"))


def read_section(name: str, model: type[Model], overrides: Path | None = None, file: Path = PARAMS) -> Model:
    """One section as a typed object, or a `UserError` with every wrong key, its value, the rule and the remedy.

    `overrides` is the folder of the keys in which a round differs (stages/overrides.py); they are checked as strictly.
    """
    content = read_yaml(file)
    section: Model = _read(name, (model, ...), file, content)
    if overrides is not None:
        round_, changes = read_overrides(overrides / f"{name}.json")
        changed = {name: lay_over(content[name], changes)}
        section = _read(name, (model, ...), f"{ROUNDS}: rounds.{round_}", changed, ".")
    return section


def overrides_text(round_: Round, section: str) -> str:
    """What a round changes in a section, as the file that its stage depends on."""
    return json_text({"round": round_.name, "changes": round_.overrides.get(section, {})})


def read_overrides(path: Path) -> tuple[str, dict[str, Any]]:
    """The round's name and the keys that it changes, as in `overrides_text`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["round"], content["changes"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path}: not readable; `dvc repro overrides` makes it again") from None


def read_launch(name: str, model: type[Model], file: Path = LAUNCH) -> Model:
    """How this machine runs a stage; without the file or the section, its defaults."""
    if file == LAUNCH and OWN_LAUNCH in os.environ and not file.exists():
        raise UserError(f"{file}: no such file; {OWN_LAUNCH} in the environment names it")
    return _read(name, (model, model()), file, read_yaml(file) if file.exists() else {})


def read_seed(file: Path = PARAMS) -> int:
    """The seed of everything that is drawn."""
    return int(_read("seed", (Annotated[int, Field(ge=0)], ...), file, read_yaml(file)))


def _read(name: str, field: Any, file: Path | str, content: dict[str, Any], joint: str = ": ") -> Any:
    """One key of a file: only what is asked for is looked at; `gift doctor` looks at all."""
    one = {name: content[name]} if name in content else {}
    return getattr(check(create_model("File", __base__=Section, **{name: field}), one, str(file), joint), name)


def settings_of(section: Section) -> dict[str, Any]:
    """A section for metadata, without defaults, so that a new key with a neutral default changes no byte."""
    return section.model_dump(mode="json", exclude_defaults=True)
