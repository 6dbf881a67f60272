"""Runs as lines of numbers to draw: the branches of a project's folder or git revision, the methods of a comparison."""

import io
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gift.project.errors import UserError
from gift.project.rounds import ROUNDS, branches, read_rounds
from gift.project.work import read_json
from gift.report.history import HISTORY, read_history
from gift.report.outcome import ACCURACY

Row = dict[str, Any]
MAX_STEPS = 2000
"""Steps that are drawn of a line; of more, means over equally many."""


@dataclass(frozen=True)
class Line:
    """A branch, or a method of a comparison: a row a policy, from the first one on, and a row an optimizer step.

    `rollouts` of a row counts the completions that were sampled on the way to its policy. `branch` is the first round
    of the line, a name that stays when rounds are added.
    """

    name: str
    branch: str
    rounds: list[Row]
    steps: list[Row]


def lines_of(folder: Path, name: str = "") -> list[Line]:
    """The branches of a project; of one branch alone the name is that of the run."""
    known = read_rounds(folder / ROUNDS)
    lines = branches(known)
    rounds, steps = read_history(folder / HISTORY, lines)
    found: list[Line] = []
    sampled: dict[str, float | None] = {"base": 0.0}
    numbers = {row["name"]: row for row in rounds}
    for names in lines.values():
        for name_ in names[1:]:  # after the one that it comes from
            before, own_ = sampled.get(known[name_].parent), _sampled(folder, name_, numbers.get(name_, {}))
            sampled[name_] = None if before is None or own_ is None else before + own_
    for branch, names in lines.items():
        rows = [row | {"rollouts": sampled.get(row["name"])} for row in rounds if row["branch"] == branch]
        if any(row["name"] != names[0] for row in rows) or len(lines) == 1:
            words = [name] if name else []
            made = [row["name"] for row in rows if row["name"] != names[0]] or names[1:]
            words += [_span(made)] if len(lines) > 1 or not name else []
            own = [step for step in steps if step["branch"] == branch]
            found.append(Line(" ".join(words), branch, rows, own))
    return found


def _sampled(folder: Path, name: str, row: Row) -> float | None:
    """The completions that a round took, those that its method drew and left out among them; None is not known."""
    metrics = folder / "data/rounds" / name / "metrics/generate.json"
    generate = read_json(metrics) if metrics.is_file() else {}
    numbers = [generate.get("num_completions_sampled"), row.get("num_rollouts"), generate.get("num_completions")]
    return next((float(each) for each in numbers if isinstance(each, int | float)), None)


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def thinned(steps: list[Row]) -> list[Row]:
    """At most `MAX_STEPS` rows, each the mean of as many steps, with the last one's number and round."""
    size = -(-len(steps) // MAX_STEPS)
    if size <= 1:
        return steps
    parts = [steps[first : first + size] for first in range(0, len(steps), size)]
    return [{name: _mean(name, part) for name in part[-1]} for part in parts]


def _mean(name: str, part: Sequence[Row]) -> Any:
    if name in ("step", "round", "branch"):
        return part[-1][name]
    known = [row[name] for row in part if row.get(name) is not None]
    return fmean(known) if known else None


def runs_named(words: Sequence[str]) -> Iterator[Line]:
    """The lines of other runs: each word is a project's folder, or a git revision or DVC experiment of this one.

    `NAME=WORD` gives it another name. A `UserError` where a word is neither.
    """
    for word in words:
        whole = "=" not in word or Path(word).is_dir() or _commit(word)
        name, where = ("", word) if whole else word.split("=", 1)
        if not where:
            raise UserError(f"--with '{word}': names nothing; write a folder, a git revision, or NAME=one of these")
        if Path(where).is_dir():
            if not (Path(where) / ROUNDS).is_file():
                raise UserError(f"--with {word}: {where} has no {ROUNDS}, so it is no project")
            yield from lines_of(Path(where), name or Path(where).resolve().name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            _unpack(where, Path(folder))
            yield from lines_of(Path(folder), name or where)


def distinct(lines: Sequence[Line]) -> list[Line]:
    """The lines under names of their own: `demo`, `demo (2)`."""
    found: dict[str, Line] = {}
    for line in lines:
        names = (line.name if number == 1 else f"{line.name} ({number})" for number in count(1))
        name = next(each for each in names if each not in found)
        found[name] = replace(line, name=name)
    return list(found.values())


def _commit(revision: str) -> str:
    """The commit of a revision or an experiment; nothing where there is none."""
    if not revision or revision.startswith("-"):
        return ""
    commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    if not commit:
        names = _git("for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
        commit = next((name for name in names if name.rpartition("/")[2] == revision), "")
    return commit


def _unpack(revision: str, folder: Path) -> None:
    """What git has of a revision's rounds and their numbers."""
    commit = _commit(revision)
    if not commit:
        raise UserError(f"{revision}: no folder, git revision or DVC experiment of this name; name one of these")
    there = _git("ls-tree", "--name-only", commit, str(ROUNDS), f"{HISTORY}/").decode().split()
    if str(ROUNDS) not in there or len(there) < 2:
        raise UserError(
            f"{revision}: git has no {ROUNDS} or no {HISTORY} there; `git add -A && git commit` after a run keeps them"
        )
    metrics = _git("ls-tree", "-r", "--name-only", commit, "data/rounds/").decode().split("\n")
    paths = [str(ROUNDS), str(HISTORY), *(path for path in metrics if path.endswith("/metrics/generate.json"))]
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit, *paths))) as archive:
        archive.extractall(folder, filter="data")


def _git(*words: str) -> bytes:
    """What git says, nothing where it refuses."""
    return subprocess.run(["git", *words], capture_output=True, check=False).stdout


def compared(folder: Path) -> list[Line]:
    """The methods of a comparison (`gift compare`): means over its seeds, with standard errors of these as `_se`.

    The best stand first. folder: has runs/<method>/<seed>.json. A round counts in which every seed has a policy.
    """
    found = []
    for method in sorted(path for path in folder.glob("runs/*") if path.is_dir()):
        seeds = [_rows(path) for path in sorted(method.glob("*.json"))]
        rows: list[Row] = []
        rollouts = 0.0
        for each in zip(*seeds, strict=False):
            rows.append({"name": _policy(each[0]), "rollouts": rollouts, **_over_seeds(each)})
            rollouts += fmean(row.get("completions") or 0 for row in each)
        if rows:
            name = f"{method.name} ({len(seeds)} seeds)" if seeds[1:] else method.name
            found.append(Line(name, method.name, rows, []))
    if not found:
        raise UserError(f"{folder / 'runs'}: no run of a comparison; `gift compare` makes them")
    return sorted(found, key=lambda line: -(line.rounds[-1].get(ACCURACY) or 0.0))


def _rows(path: Path) -> list[Row]:
    content = read_json(path)
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "round" in row for row in rows):
        raise UserError(f"{path}: no run of a comparison; remove it, and `gift compare` makes it again")
    return rows


def _policy(row: Row) -> str:
    return f"r{row['round']}" if row["round"] else "base"


def _over_seeds(rows: Sequence[Row]) -> Row:
    found: Row = {}
    for name in rows[0]:
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if values:
            found[name] = fmean(values)
        if len(values) > 1 and name != "round":
            found[f"{name}_se"] = stdev(values) / len(values) ** 0.5
    return found


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the numbers of rows, standard errors aside, in the order of the alphabet."""
    names = {
        name
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and not re.search(r"_se$", name)
    }
    return sorted(names - {"round", "rollouts", "step"})
