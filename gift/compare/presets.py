"""Methods as files: the few keys of params.yaml that make one, laid over those of another."""

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from gift.methods.names import METHOD_KEYS
from gift.project.errors import UserError
from gift.project.sections import Section, check, did_you_mean
from gift.project.work import whole_file
from gift.project.yaml import read_yaml
from gift.sampling.settings import Generate
from gift.training.settings import Update

SECTIONS: dict[str, type[Section]] = {"generate": Generate, "update": Update}


def read_preset(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a file of presets/methods, `update` among them; they have only keys that make a method."""
    content = read_yaml(path)
    rule = f"a method is update's {', '.join(METHOD_KEYS['update'])}, generate's sample, and no other key"
    for name, section in content.items():
        if name not in METHOD_KEYS or not isinstance(section, dict):
            raise UserError(f"{path}: {name}: {rule}")
        if others := sorted(section.keys() - {*METHOD_KEYS[name]}):
            raise UserError(f"{path}: {name}.{others[0]}: {rule}")
    if "update" not in content:
        raise UserError(f"{path}: update: missing; {rule}")
    return content


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
    chosen = yaml.load(preset.read_text(encoding="utf-8"))  # as it is written there, in one line
    for section, names in METHOD_KEYS.items():
        own = chosen.get(section, {})
        if own and section not in content:
            content[section] = CommentedMap()
        keys = content.get(section, {})
        for name in names:
            if name in own and name not in keys:
                keys.insert(0, name, own[name])  # a blank line behind the last key stays there
            elif name in own:
                keys[name] = own[name]
            else:
                keys.pop(name, None)
        if own:
            check(SECTIONS[section], json.loads(json.dumps(keys)), f"{params}: with {preset}: {section}", ".")
    with whole_file(params) as temporary, temporary.open("w", encoding="utf-8") as out:
        yaml.dump(content, out)
    return [
        f"{section}.{name}: {json.dumps(chosen[section][name])}"
        for section, names in METHOD_KEYS.items()
        for name in names
        if name in chosen.get(section, {})
    ]
