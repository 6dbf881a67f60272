"""Reading one section of params.yaml or launch.yaml; nothing here knows what the sections hold."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from gift.project.sections import Model, Section, check
from gift.project.yaml import read_yaml

PARAMS, LAUNCH = Path("params.yaml"), Path("launch.yaml")


class _File(Section):
    """Of a whole file only the sections that are asked for are looked at; `gift doctor` looks at all."""

    model_config = ConfigDict(extra="ignore")


def read_section(name: str, model: type[Model], file: Path = PARAMS) -> Model:
    """One section as a typed object, or a `UserError` with every wrong key, its value, the rule and the remedy."""
    return _read(name, (model, ...), file, read_yaml(file))


def read_launch(name: str, model: type[Model], file: Path = LAUNCH) -> Model:
    """How this machine runs a stage; without the file or the section, its defaults."""
    return _read(name, (model, model()), file, read_yaml(file) if file.exists() else {})


def read_seed(file: Path = PARAMS) -> int:
    """The seed of everything that is drawn."""
    return int(_read("seed", (Annotated[int, Field(ge=0)], ...), file, read_yaml(file)))


def _read(name: str, field: Any, file: Path, content: dict[str, Any]) -> Any:
    return getattr(check(create_model("File", __base__=_File, **{name: field}), content, str(file)), name)


def settings_of(section: Section) -> dict[str, Any]:
    """A section for metadata: what is not its default alone, so that a new key with a neutral default changes no byte."""
    return section.model_dump(mode="json", exclude_defaults=True)
