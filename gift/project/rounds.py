"""rounds.yaml: each round, the one it starts from, and the settings in which it differs; all its laws."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from gift.project.errors import UserError
from gift.project.sections import did_you_mean
from gift.project.yaml import read_yaml

ROUNDS = Path("rounds.yaml")
SECTIONS = ("generate", "score", "reference", "update", "evaluate")
"""The sections of params.yaml that a round may change for itself."""


@dataclass(frozen=True)
class Round:
    """`parent` is the round whose policy this one starts from, or `base`; `overrides` are sections, each a map."""

    name: str
    parent: str
    overrides: dict[str, dict[str, Any]]


def read_rounds(path: Path = ROUNDS) -> dict[str, Round]:
    """The rounds in the file's order; a file that breaks a law is a `UserError` with a line for each."""
    content = read_yaml(path)
    if problems := round_problems(content, path):
        raise UserError("\n       ".join(problems))
    return {
        name: Round(name, value["from"], {key: each for key, each in value.items() if key != "from"})
        for name, value in content["rounds"].items()
    }


def round_problems(content: dict[str, Any], path: Path = ROUNDS) -> list[str]:
    """What is wrong with the content of rounds.yaml, a line for each fault."""
    rounds = content.get("rounds")
    if not isinstance(rounds, dict) or not rounds:
        return [f"{path}: rounds: must be a map with a line a round, such as `r1: {{from: base}}`"]
    wrong = [f"{path}: rounds.{name}{text}" for name, value in rounds.items() for text in _faults(name, value, rounds)]
    if wrong:
        return wrong
    parents = {name: value["from"] for name, value in rounds.items()}
    reached = {"base"}
    while ready := {name for name, parent in parents.items() if parent in reached} - reached:
        reached |= ready
    circle = [name for name in parents if name not in reached]
    if circle:
        text = f"`from` leads in a circle ({', '.join(circle)}); every chain begins at base"
        return [f"{path}: rounds.{circle[0]}: {text}"]
    return []


def _faults(name: Any, value: Any, rounds: dict[Any, Any]) -> list[str]:
    """What is wrong with one line of the map."""
    if not isinstance(name, str):
        # DVC drops the stages of a round whose key is a number, without a word (treeverse/dvc#8903).
        return [f": {name!r}: the name of a round must be a text; write r{name}, or put it in quotes"]
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "base":
        return [": the name of a round is letters, digits, _ and -, and not base; rename it"]
    if not isinstance(value, dict) or "from" not in value:
        return [": must say the round that it starts from: `{from: base}`"]
    faults = []
    if value["from"] != "base" and value["from"] not in rounds:
        known = ", ".join(map(str, rounds))
        faults.append(f".from: {value['from']!r}: there is no such round; there are base, {known}")
    for key, section in value.items():
        if key == "from":
            continue
        if key not in SECTIONS:
            faults.append(f".{key}: a round cannot change this; {did_you_mean(str(key), list(SECTIONS))}")
        elif not isinstance(section, dict):
            faults.append(f".{key}: must be a map with keys of the section `{key}` of params.yaml")
        elif key == "update" and "dtype" in section:
            faults.append(".update.dtype: a round cannot change it, for `reference` computes in it; change params.yaml")
    return faults


def lay_over(section: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A section with the keys of a round in place of its own; a key is replaced whole, also one that holds a map."""
    return {**section, **changes}


def branches(rounds: dict[str, Round]) -> dict[str, list[str]]:
    """Every line of rounds, named by its first one: `base` or the round it branches off, then its own rounds.

    A round goes on with the first round that starts from it; each further one begins a branch. Every round is in
    exactly one line besides being the start of others.
    """
    lines: dict[str, list[str]] = {}
    line_of: dict[str, str] = {}
    for name in _parents_first(rounds):
        parent = rounds[name].parent
        line = line_of.get(parent)
        if line is not None and lines[line][-1] == parent:
            lines[line].append(name)
        else:
            line = name
            lines[name] = [parent, name]
        line_of[name] = line
    return lines


def _parents_first(rounds: dict[str, Round]) -> list[str]:
    """The names in the file's order, but a round after the one that it starts from."""
    done: dict[str, None] = {}

    def add(name: str) -> None:
        if name != "base" and name not in done:
            add(rounds[name].parent)
            done[name] = None

    for name in rounds:
        add(name)
    return list(done)


def extend(path: Path, number: int) -> int:
    """Extend the chain r1, r2, ... to `number` rounds; comments and branches stay. Returns how many are new."""
    yaml = YAML()  # keeps comments
    yaml.preserve_quotes = True
    read_rounds(path)
    content = yaml.load(path.read_text(encoding="utf-8"))
    last = max((int(name[1:]) for name in content["rounds"] if re.fullmatch(r"r\d+", name)), default=0)
    for index in range(last + 1, number + 1):
        line = yaml.map(**{"from": f"r{index - 1}" if index > 1 else "base"})
        line.fa.set_flow_style()
        content["rounds"][f"r{index}"] = line
    if number > last:
        text = io.StringIO()
        yaml.dump(content, text)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text.getvalue(), encoding="utf-8")
        temporary.replace(path)
    return max(number - last, 0)
