"""Settings: strict sections, and one line for every wrong key."""

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo

from gift.project.errors import UserError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Dtype = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no silent conversion, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Choice(Section):
    """One of several records by name, with its settings: the map `{name: settings}`; made by `choice`."""

    records: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="after")
    def exactly_one(self) -> "Choice":
        if len(self.model_fields_set) != 1:
            given = " and ".join(sorted(self.model_fields_set)) or "nothing"
            raise ValueError(f"must name exactly one of {', '.join(self.records)}, not {given}")
        return self

    @property
    def name(self) -> str:
        (name,) = self.model_fields_set
        return name

    @property
    def record(self) -> Any:
        return self.records[self.name]

    @property
    def settings(self) -> Any:
        return getattr(self, self.name)


def choice(records: Mapping[str, Any]) -> type[Choice]:
    """The type of a map with exactly one name of `records`; its value is checked by `records[name].settings`."""
    known: dict[str, Any] = {name: (record.settings, None) for name, record in records.items()}
    made: type[Choice] = create_model("Choice", __base__=Choice, **known)
    made.records = records
    return made


Model = TypeVar("Model", bound=Section)


def check(model: type[Model], content: dict[str, Any], file: str, joint: str = ": ") -> Model:
    """The model made of `content`, or a `UserError` with one line for each wrong key, behind `file` and `joint`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = (f"{file}{joint}{_line(model, problem)}" for problem in _by_key(error, content))
        raise UserError("\n       ".join(lines)) from None


def _by_key(error: ValidationError, content: dict[str, Any]) -> list[Any]:
    """The problems of a ValidationError; those of the alternatives of a union (`int | str`) are one."""
    groups: dict[Any, list[Any]] = {}
    for number, problem in enumerate(error.errors()):
        union, path = _place(problem, content)
        groups.setdefault(number if union is None else union, []).append({**problem, "loc": path})
    return [problem for group in groups.values() for problem in _of_one_value(group)]


def _place(problem: Any, content: Any) -> tuple[tuple[Any, ...] | None, tuple[Any, ...]]:
    """Where the union is that a problem is in, or None; and the problem's own place.

    Pydantic puts the name of the alternative into a place, where `content` has no such key.
    """
    union: tuple[Any, ...] | None = None
    path: tuple[Any, ...] = ()
    parts = problem["loc"]
    for part in parts:
        if (isinstance(content, dict) and part in content) or (isinstance(content, list) and isinstance(part, int)):
            content = content[part]
        elif part != "[key]" and not (problem["type"] == "missing" and part is parts[-1]):
            union = path if union is None else union
            continue
        path = (*path, part)
    return union, path


def _of_one_value(group: list[Any]) -> list[Any]:
    """What to say of a value that no alternative takes: what is wrong inside the one that was meant, or all rules."""
    deepest = max(len(each["loc"]) for each in group)
    inside = [each for each in group if len(each["loc"]) == deepest]
    if len(inside) < len(group) or len(group) == 1:
        return inside
    rules = dict.fromkeys(each["msg"].removeprefix("Input should be ") for each in group)
    return [{**group[0], "type": "union", "msg": f"Input should be {' or '.join(rules)}"}]


def _line(model: type[BaseModel], problem: Any) -> str:
    path = [str(part) for part in problem["loc"] if part != "[key]"]
    key = ".".join(path)
    value = problem["input"]
    fields = _fields(model, path[:-1])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {did_you_mean(path[-1], list(fields))}"
    if problem["type"] == "missing":
        description = fields[path[-1]].description
        return f"{key}: missing" + (f"; it is {description}" if description else "")
    rule = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
    remedy = ""
    if problem["type"] == "bool_type":
        rule = "must be true or false"
        remedy = "; it is text (YAML 1.2 has no yes, no, on, off)" if isinstance(value, str) else ""
    elif problem["type"] == "model_type":
        rule = "must be a map"
    elif problem["type"] == "sequence_str" or problem.get("ctx", {}).get("class") == "Sequence":
        rule = "must be a list"
    elif isinstance(value, str) and problem["type"] in ("float_type", "int_type"):
        remedy = "; it is text: take the quotes away (YAML numbers: 0.001, 1.0e-6)"
    shown = "" if isinstance(value, dict) else f"{value!r}: "
    return f"{key}{': ' if key else ''}{shown}{rule}{remedy}"


def _fields(model: type[BaseModel], path: list[str]) -> dict[str, FieldInfo]:
    """The fields a section may have at a path such as ['update', 'gift']; keys of a map (score.rewards) are free."""
    fields: dict[str, FieldInfo] = model.model_fields
    annotation: Any = None
    for part in path:
        annotation = fields[part].annotation if part in fields else (get_args(annotation) or (None,))[-1]
        options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)  # Lora | None
        inner = next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), None)
        fields = inner.model_fields if inner else {}
    return dict(fields)


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint at the known name that is nearest, or else all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"
