"""compare/compare.yaml: which methods are compared, over which seeds and learning rates, and what each one changes."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator

from gift.compare.presets import read_preset
from gift.methods.names import METHOD_KEYS
from gift.project.errors import UserError
from gift.project.sections import Count, Positive, Section, check, did_you_mean
from gift.project.yaml import read_yaml
from gift.sampling.settings import Evaluate, Generate
from gift.scoring.settings import Score
from gift.training.reference.settings import Reference
from gift.training.settings import Update

SECTIONS: dict[str, Any] = {
    "generate": Generate,
    "score": Score,
    "reference": Reference,
    "update": Update,
    "evaluate": Evaluate,
}
"""What of params.yaml a method may change."""

Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Sweep(Section):
    """The learning rates that every method may choose from, by the dev split, and the seeds of those runs."""

    lrs: Annotated[list[Positive], Field(min_length=1)]
    seeds: Seeds


class More(Section):
    """Further seeds for some methods: those of which a difference is to be called one."""

    run: list[str] = Field([])
    seeds: list[Annotated[int, Field(ge=0)]] = Field([])


class Fixed(Section):
    """Methods that are not swept: their rate is the `update.lr` of their entry, or that of params.yaml."""

    run: list[str] = Field([])
    seeds: list[Annotated[int, Field(ge=0)]] = Field([])


class Plan(Section):
    """A comparison. A method is a file of presets/methods/, the keys of params.yaml in which it differs, or both."""

    rounds: Count
    run: Annotated[list[str], Field(min_length=1, description="the methods that run, by name")]
    seeds: Seeds
    more: More = More()
    fixed: Fixed = Fixed()
    sweep: Sweep
    metric: str = Field("eval/reward", description="which number of stage evaluate chooses a rate, and is compared")
    baseline: str = Field(description="the method with which every other one is compared")
    against: dict[str, str] = Field({}, description="methods that are compared with another one")
    methods: dict[str, dict[str, Any]] = Field({}, description="names that are no preset's, and what they stand for")

    @model_validator(mode="after")
    def baseline_runs(self) -> "Plan":
        if self.baseline not in self.run:
            raise ValueError(f"baseline: {self.baseline}: must be one of the methods that run; add it to run")
        return self

    @field_validator("run", "seeds")
    @classmethod
    def each_once(cls, value: list[Any], info: ValidationInfo) -> list[Any]:
        repeated = [each for index, each in enumerate(value) if each in value[:index]]
        if repeated:
            raise ValueError(f"{repeated[0]} stands there twice; take one away")
        return value

    @model_validator(mode="after")
    def sweep_is_apart(self) -> "Plan":
        if both := sorted({*self.seeds, *self.more.seeds, *self.fixed.seeds} & {*self.sweep.seeds}):
            raise ValueError(f"sweep.seeds: {both[0]} is one of seeds, too; what chooses a rate must not report on it")
        return self

    @model_validator(mode="after")
    def more_is_more(self) -> "Plan":
        if others := [name for name in self.more.run if name not in self.run]:
            raise ValueError(f"more.run: {others[0]}: is not among those that run; add it to run")
        if both := sorted({*self.seeds} & {*self.more.seeds}):
            raise ValueError(f"more.seeds: {both[0]} is one of seeds already; take it away")
        return self

    @model_validator(mode="after")
    def fixed_is_apart(self) -> "Plan":
        if self.fixed.run and not self.fixed.seeds:
            raise ValueError("fixed.seeds: must name at least one seed where fixed.run names methods")
        if both := [name for name in self.fixed.run if name in self.run]:
            raise ValueError(f"fixed.run: {both[0]}: is among those of run, which are swept; take it away from one")
        return self

    @model_validator(mode="after")
    def against_runs(self) -> "Plan":
        for name, other in self.against.items():
            if unknown := [each for each in (name, other) if each not in self.names]:
                raise ValueError(f"against: {unknown[0]}: is no method that runs; add it to run, or to fixed.run")
        return self

    @property
    def names(self) -> list[str]:
        """All methods that run."""
        return [*self.run, *self.fixed.run]

    def seeds_of(self, name: str) -> list[int]:
        if name in self.fixed.run:
            return self.fixed.seeds
        return [*self.seeds, *(self.more.seeds if name in self.more.run else ())]


def read_plan(path: Path) -> Plan:
    content = read_yaml(path)
    for key in ("more", "fixed"):  # compare/dvc.yaml names them, and DVC knows no defaults
        if key not in content:
            raise UserError(f"{path}: {key}: missing; where there are none, write {key}: {{run: [], seeds: []}}")
    return check(Plan, content, str(path))


def changes_of(name: str, plan: Plan, presets: Path, file: Path) -> dict[str, dict[str, Any]]:
    """The sections of params.yaml that a method changes, and in them the keys, each with its whole value.

    Of the keys that make a method (`METHOD_KEYS`) those that neither it nor its preset names are at their defaults.
    """
    own = dict(plan.methods.get(name, {}))
    preset = own.pop("preset", None if name in plan.methods else name)
    if preset is not None and not (presets / f"{preset}.yaml").exists():
        known = sorted([*plan.methods, *(path.stem for path in presets.glob("*.yaml"))])
        where = f"methods.{name}.preset" if name in plan.methods else "run"
        raise UserError(f"{file}: {where}: {preset}: no such method; {did_you_mean(str(preset), known)}")
    for key, section in own.items():
        if key not in SECTIONS or not isinstance(section, dict):
            hint = did_you_mean(str(key), ["preset", *SECTIONS])
            raise UserError(f"{file}: methods.{name}.{key}: must be a section of params.yaml, a map; {hint}")
    changes = {key: dict(section) for key, section in own.items()}
    chosen = read_preset(presets / f"{preset}.yaml") if preset else {"update": {}}
    for key, section in chosen.items():
        changes[key] = {**section, **changes.get(key, {})}
    return changes


def laid_over(
    content: dict[str, Any], changes: dict[str, dict[str, Any]], lr: float | None, seed: int
) -> dict[str, Any]:
    """The content of params.yaml for one run: a method's changes, its learning rate (None: the file's) and the seed."""
    made = {**content, "seed": seed}
    for key in (*changes, *(METHOD_KEYS.keys() - changes.keys())):
        kept = {name: value for name, value in content.get(key, {}).items() if name not in METHOD_KEYS.get(key, ())}
        made[key] = {**kept, **changes.get(key, {})}
    if lr is not None:
        made["update"] = {**made["update"], "lr": lr}
    return made


def check_content(content: dict[str, Any], where: str) -> None:
    """Refuse settings that a stage of the run would refuse."""
    fields: dict[str, Any] = {name: (each, ...) for name, each in SECTIONS.items()}
    check(
        create_model("File", __base__=Section, **fields),
        {name: content[name] for name in SECTIONS if name in content},
        where,
    )
