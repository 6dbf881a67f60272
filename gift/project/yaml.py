"""Reading the project's YAML files (YAML 1.2, as DVC reads them: `1e-6` is a number) with one-line errors."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gift.project.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an unreadable file is a `UserError` naming file, line and problem."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not a {type(content).__name__}")
    return content
