"""Which rewards an update may read, and which are only watched: of weight 0, and known to no total and no update."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gift.project.work import tree_digest

LIMITS = ("timeout_seconds", "memory_gib", "max_failed_share")
"""Keys of a section `score` that limit calls, and change no value."""


def names_that_count(rewards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the rewards as params.yaml holds them the names of those with a weight or `in_update`, and of their gates."""
    chosen = {name for name, each in rewards.items() if each.get("weight", 1) or each.get("in_update")}
    chosen |= {gate for name in chosen if (gate := rewards[name].get("only_if"))}
    return [name for name in rewards if name in chosen]


def what_counts(score: Mapping[str, Any]) -> dict[str, Any]:
    """Of a section `score` what can change a value that an update reads: those rewards, without limits of calls."""
    rewards = score["rewards"]
    content = {key: value for key, value in score.items() if key not in LIMITS}
    chosen = {name: rewards[name] for name in names_that_count(rewards)}
    content["rewards"] = {
        name: {key: value for key, value in each.items() if key not in LIMITS} for name, each in chosen.items()
    }
    return content


def rewards_digest(scores: Sequence[Mapping[str, Any]], code: str, folder: Path = Path("rewards")) -> str:
    """sha256 over what makes the rewards that count: their settings, the stage's code, and the files of the folder.

    scores: the sections `score` of all rounds in question.
    """
    watched = set.intersection(*(watched_files(score, folder) for score in scores))
    settings = sorted({json.dumps(what_counts(score), sort_keys=True) for score in scores})
    content = [settings, code, tree_digest(folder, without=watched)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def watched_files(score: Mapping[str, Any], folder: Path) -> set[Path]:
    """The files of the folder that are there for watched rewards alone: no other file says their names."""
    rewards = score["rewards"]
    counting = names_that_count(rewards)
    files = {name: Path(str(each.get("function")).rpartition(":")[0]) for name, each in rewards.items()}
    watched = {path for name, path in files.items() if name not in counting and path.is_relative_to(folder)}
    watched -= {files[name] for name in counting}
    others = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path not in watched}
    said = {path: re.compile(rb"\b" + re.escape(path.stem.encode()) + rb"\b") for path in watched}
    return {path for path in watched if not any(said[path].search(text) for text in others.values())}
