"""Which sources params.yaml names for train and for eval, and the rows of one of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.embedded.task import Arithmetic, Split, problems, with_solution
from gift.project.errors import UserError, wrong_param
from gift.prompts.files import Row, local_files, read_hub, read_local
from gift.prompts.settings import Filters, Prepare, Rows

HUB = "hub:"
SPLITS: tuple[Split, ...] = ("train", "eval")


@dataclass(frozen=True)
class Origin:
    """One source of one split: what it is, what becomes of its rows, and its place in params.yaml."""

    source: str
    hub_config: str | None
    split: str
    rows: Rows
    num: int | None
    key: str  # of the settings for its rows: 'prepare', 'prepare.sources.0'
    source_key: str  # of its name: 'prepare.eval_source', 'prepare.sources.0.source'


def origins(settings: Prepare, split: Split) -> list[Origin]:
    """The sources of a split; none for an eval that is split off train."""
    name, listed = ("sources", settings.sources) if split == "train" else ("eval_sources", settings.eval_sources)
    if listed:
        keys = [f"prepare.{name}.{number}" for number in range(len(listed))]
        return [
            Origin(each.source, each.hub_config, each.split or "train", each, each.num, key, f"{key}.source")
            for each, key in zip(listed, keys, strict=True)
        ]
    if settings.source is None:
        return []
    source, source_key, part, rows = settings.source, "prepare.source", settings.train_split, settings
    if split == "eval":
        # `filters` choose what to train on. Eval stays whole, to compare accuracies; eval_sources may filter.
        part, rows = settings.eval_split or part, settings.model_copy(update={"filters": Filters()})
        if settings.eval_source:
            source, source_key = settings.eval_source, "prepare.eval_source"
        elif not settings.eval_split and source != "arithmetic":
            return []
    return [Origin(source, settings.hub_config, part, rows, None, "prepare", source_key)]


def check_origins(settings: Prepare) -> None:
    """Refuse settings that would have no effect, or two meanings."""
    eval_source = settings.eval_source or settings.source or ""
    if settings.sources:
        alone = {"eval_source", "eval_split", "train_split", "hub_config", *Rows.model_fields}
        for name in sorted(settings.model_fields_set & alone):
            raise _wrong(name, "...", "stands in each entry of prepare.sources and prepare.eval_sources; move it there")
    if settings.eval_split and not eval_source.startswith(HUB):
        problem = "only a hub data set has splits; set prepare.eval_source to a file"
        raise _wrong("eval_split", settings.eval_split, problem)
    if settings.eval_source and eval_source.startswith(HUB) and not settings.eval_split:
        raise _wrong("eval_source", settings.eval_source, "say which split: set prepare.eval_split")
    if settings.hub_config and not f"{settings.source}".startswith(HUB) and not eval_source.startswith(HUB):
        raise _wrong("hub_config", settings.hub_config, "only for a source hub:<dataset id>; remove it")
    for name, sources in (("sources", settings.sources), ("eval_sources", settings.eval_sources)):
        for number, each in enumerate(sources):
            if each.source == "arithmetic":
                raise _wrong(f"{name}.{number}.source", each.source, "stands alone: set prepare.source")
            if not each.source.startswith(HUB) and (each.hub_config or each.split):
                raise _wrong(f"{name}.{number}", each.source, "hub_config and split are only for hub:<dataset id>")
    if settings.source == "arithmetic":
        if settings.eval_source or settings.eval_sources or settings.columns or settings.prompt_template:
            raise _wrong("source", "arithmetic", "makes its own prompts; remove eval_source, columns, prompt_template")
        if settings.num_train is None:
            raise _wrong("num_train", None, "arithmetic makes as many problems as you ask for; give a number")


def read_rows(origin: Origin, settings: Prepare, seed: int, split: Split, task: Arithmetic) -> Iterator[Row]:
    """The rows of a source."""
    if origin.source == "arithmetic":
        num = settings.num_eval if split == "eval" else settings.num_train
        try:
            rows = problems(num or 0, seed, task.num_operands, split)
        except ValueError as error:
            raise UserError(f"params.yaml: prepare: {error}") from None
        if task.solution:
            rows = list(map(with_solution, rows))
        return (Row(f"arithmetic problem {number}", dict(row)) for number, row in enumerate(rows))
    if origin.source.startswith(HUB):
        return read_hub(origin.source.removeprefix(HUB), origin.hub_config, origin.split, origin.source_key)
    return read_local(origin.source, origin.source_key)


def num_bytes(settings: Prepare) -> float:
    """Of all sources, about; infinite for a data set of the hub, whose size is not known before it is fetched."""
    named = [each for split in SPLITS for each in origins(settings, split)]
    if any(each.source.startswith(HUB) for each in named):
        return math.inf
    if any(each.source == "arithmetic" for each in named):
        return 100 * ((settings.num_train or 0) + settings.num_eval)
    files = {file for each in named for file in local_files(each.source, each.source_key)}
    return sum(file.stat().st_size for file in files)


def untracked_sources(settings: Prepare) -> list[str]:
    """Local sources outside the folder sources/, which is the one that DVC watches for changes."""
    named = [origin.source for split in SPLITS for origin in origins(settings, split)]
    local = [source for source in dict.fromkeys(named) if source != "arithmetic" and not source.startswith(HUB)]
    watched = Path("sources").absolute()
    return [source for source in local if not Path(source).absolute().is_relative_to(watched)]


def _wrong(key: str, value: Any, problem: str) -> UserError:
    return wrong_param(f"prepare.{key}", value, problem)
