"""Reading the project's YAML files (YAML 1.2, as DVC reads them: `1e-6` is a number) with one-line errors.

dvc.lock is read and written as text in blocks, one a stage: at 100 rounds it has 28,000 lines, and YAML reads 15,000 a
second.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gift.project.errors import UserError

KNOWN = Path("data/.cache")
"""Here lies, for each dvc.lock, what its blocks say that were read before, by their MD5."""

HEAD = "schema: '2.0'\nstages:\n"
_BLOCK = re.compile(r"^  (\S.*):\n(?:(?:    .*)?\n)*", re.MULTILINE)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an unreadable file is a `UserError` naming file, line and problem."""
    try:
        text = path.read_text(encoding="utf-8")
        content = deepcopy(_parsed(text))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        remedy = "; put quotes around it" if "unexpected ':'" in problem else ""
        raise UserError(f"{path}{line}: not valid YAML: {problem}{remedy}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not a {type(content).__name__}")
    return content


@cache
def _parsed(text: str) -> Any:
    """Once a process, by the parser in C as DVC does; the slow one has the better errors."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError:
        YAML(typ="safe", pure=True).load(text)
        raise  # C alone refuses such as `{function: rewards/mine.py:right}`


def blocks_of(text: str) -> dict[str, str] | None:
    """The text of each stage of a dvc.lock, by name; None where it is not in the form that DVC writes."""
    if not text.startswith(HEAD):
        return None
    found, place = {}, len(HEAD)
    for match in _BLOCK.finditer(text, place):
        if match.start() != place:
            return None
        found[match[1]] = match[0]
        place = match.end()
    return found if place == len(text) else None


def load_lock(text: str, path: Path) -> Any:
    """What the dvc.lock at a path says; of blocks that were read before without YAML."""
    blocks = blocks_of(text)
    if blocks is None:
        return YAML(typ="safe").load(text)
    file = KNOWN / f"{'-'.join(path.parts)}.json"
    known = _known(file)
    stages: dict[str, Any] = {}
    keys = {name: hashlib.md5(block.encode(), usedforsecurity=False).hexdigest() for name, block in blocks.items()}
    for name, block in blocks.items():
        found = known.get(keys[name])
        stages |= found if found is not None else dict(YAML(typ="safe").load(block))
    here = {*keys.values()}
    if here - known.keys():
        new = {keys[name]: {name: stages[name]} for name in blocks if name in stages and keys[name] not in known}
        same = {key: each for key, each in new.items() if _survives(each)}
        _keep(file, {key: each for key, each in known.items() if key in here} | same)
    return {"schema": "2.0", "stages": stages}


def with_stages(text: str, stages: dict[str, str]) -> str | None:
    """The text with other blocks of some stages; None as above."""
    blocks = blocks_of(text or HEAD)
    return None if blocks is None else HEAD + "".join((blocks | stages).values())


def _known(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _keep(file: Path, known: Mapping[str, dict[str, Any]]) -> None:
    """For the next time."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(file)


def _survives(content: dict[str, Any]) -> bool:
    """Not so where JSON gives back something else: of a key that is a number, say."""
    try:
        return bool(json.loads(json.dumps(content)) == content)
    except TypeError:  # a date, say
        return False
