"""Methods as files: the few keys of `update` that make one, laid over those of a params.yaml."""

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from gift.project.errors import UserError
from gift.project.sections import check, did_you_mean
from gift.project.work import whole_file
from gift.project.yaml import read_yaml
from gift.training.settings import Update

METHODS = Path("presets/methods")
METHOD_KEYS = ("select", "shape", "match", "kl", "kl_in_reward", "correction", "zero_targets", "final_answer")
"""The keys of `update` that make a method: those that a preset does not name go to their defaults."""


def read_preset(path: Path) -> dict[str, Any]:
    """The keys of `update` in a file of presets/methods; it has no others."""
    content = read_yaml(path)
    update = content.get("update")
    if list(content) != ["update"] or not isinstance(update, dict) or (others := update.keys() - {*METHOD_KEYS}):
        other = f"update.{min(others)}" if isinstance(update, dict) and list(content) == ["update"] else min(content)
        raise UserError(f"{path}: {other}: a method is update's {', '.join(METHOD_KEYS)}, and no other key")
    return update


def lay_over_file(params: Path, preset: Path) -> list[str]:
    """Put a method into params.yaml, whose comments and other keys stay; returns a line for each key it has now."""
    if not preset.exists():
        known = sorted(path.stem for path in preset.parent.glob("*.yaml"))
        raise UserError(f"{preset}: no such method; {did_you_mean(preset.stem, known)}")
    read_preset(preset)
    yaml = YAML()  # keeps comments
    yaml.preserve_quotes = True
    yaml.width = 120
    read_yaml(params)
    content = yaml.load(params.read_text(encoding="utf-8"))
    chosen = yaml.load(preset.read_text(encoding="utf-8"))["update"]  # as it is written there, in one line
    update = content.setdefault("update", {})
    for name in METHOD_KEYS:
        if name in chosen:
            update[name] = chosen[name]
        else:
            update.pop(name, None)
    check(Update, json.loads(json.dumps(update)), f"{params}: with {preset}: update", ".")
    with whole_file(params) as temporary, temporary.open("w", encoding="utf-8") as out:
        yaml.dump(content, out)
    return [f"update.{name}: {json.dumps(chosen[name])}" for name in METHOD_KEYS if name in chosen]
