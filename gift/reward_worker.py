"""The process that calls reward functions, started by gift/reward_pool.py with the number of a socket.

It reads what to load, answers None or what is wrong, then gets batches of calls and sends one outcome a call.
"""

import importlib.util
import inspect
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from gift.rewards.names import REWARDS

MAX_MESSAGE = 300
ORPHAN_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What one reward function made of one row; `seconds` is for people and goes into no table."""

    value: float | None
    status: str
    message: str | None
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Loaded:
    """A reward function as params.yaml names it: `file` is None for one of ours, its settings, its argument names."""

    name: str
    file: str | None
    function: str
    settings: dict[str, Any]
    arguments: list[str]


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    rewards, timeout_seconds = connection.recv()
    functions: dict[str, Callable[..., Any]] = {}
    for reward in rewards:
        problem = _load(reward, functions)
        if problem:
            connection.send(f"params.yaml: score.rewards.{reward.name}.{problem}")
            return
    connection.send(None)
    settings = {reward.name: reward.settings for reward in rewards}
    with suppress(EOFError, ConnectionError):  # the pool is gone
        while True:
            for name, row in connection.recv():
                # The pool kills at the limit; should the pool itself be killed, the kernel ends a row that hangs.
                signal.setitimer(signal.ITIMER_REAL, timeout_seconds + ORPHAN_SECONDS)
                start = time.monotonic()
                value, status, message = _call(functions[name], row, settings[name])
                connection.send(Outcome(value, status, message, time.monotonic() - start))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _load(reward: Loaded, functions: dict[str, Callable[..., Any]]) -> str | None:
    """Find the function and check that it takes its settings and columns; returns the key and what is wrong."""
    if reward.file is None:
        function = REWARDS[reward.function]
    else:
        where = f"function: '{reward.file}:{reward.function}'"
        try:
            module = _import(Path(reward.file))
        except BaseException as error:
            return f"{where}: the file cannot be imported: {_describe(error)}{_line_in(reward.file, error)}"
        if not callable(module.__dict__.get(reward.function)):
            there = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
            return f"{where}: no such function; the file has {', '.join(there) or 'none'}"
        function = module.__dict__[reward.function]
    parameters = inspect.signature(function).parameters
    for key in reward.settings:
        if key not in parameters or key in reward.arguments:
            free = [
                name
                for name, parameter in parameters.items()
                if name not in reward.arguments and parameter.kind != parameter.VAR_KEYWORD
            ]
            return f"settings.{key}: {reward.function} has no such setting; it has {', '.join(free) or 'none'}"
    try:
        inspect.signature(function).bind(**dict.fromkeys([*reward.arguments, *reward.settings]))
    except TypeError as error:
        return (
            f"function: {reward.function}: {error}; it is called with {', '.join(reward.arguments)} (with all "
            "columns of the prompts table) and its settings; let it take **columns for those it does not use"
        )
    functions[reward.name] = function
    return _try_without_rows(reward, function) if reward.file is None else None


def _try_without_rows(reward: Loaded, function: Callable[..., Any]) -> str | None:
    """Call one of ours with no row: it checks its settings, and loads what it needs outside the limit of a call."""
    settings = [each.name for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
    for name in settings:
        if name in reward.arguments:
            return (
                f"settings.{name}: {reward.function} has a setting of that name, and the prompts table a column; give "
                f"the column another name in prepare.columns"
            )
    try:
        function(**{name: [] for name in reward.arguments}, **reward.settings)
    except Exception as error:
        return str(error) if str(error).startswith("settings") else f"settings: {_describe(error)}"
    return None


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _call(
    function: Callable[..., Any], row: dict[str, list[Any]], settings: dict[str, Any]
) -> tuple[float | None, str, str | None]:
    """Value, status and message of one call with lists of one row; nothing a function does passes for a number."""
    try:
        returned = function(**row, **settings)
    except BaseException as error:
        return None, "error", _describe(error)
    try:
        if isinstance(returned, (str, bytes, dict)) or len(values := list(returned)) != 1:
            return (
                None,
                "invalid",
                one_line(f"returned {_show(returned)} for one completion; must be a list of one number or None"),
            )
        value = values[0]
        if value is None:
            return None, "abstain", None
        if isinstance(value, (str, bytes)):
            return None, "invalid", one_line(f"returned the text {_show(value)}; must be a number or None")
        number = float(value)
    except BaseException as error:
        return (
            None,
            "invalid",
            one_line(f"returned {_show(returned)}; must be a list of one number or None ({_describe(error)})"),
        )
    if not math.isfinite(number):
        return None, "invalid", f"returned {number}; must be finite, or None to abstain"
    return number, "ok", None


def one_line(text: str) -> str:
    """A message that is one line, short, storable, and the same in every process (no memory addresses)."""
    text = re.sub(r"0x[0-9a-fA-F]{4,}", "0x...", " ".join(text.split()))
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def _describe(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # a user's exception may fail to print itself
        text = ""
    return one_line(f"{kind}: {text}" if text else kind)


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except BaseException:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _line_in(file: str, error: BaseException) -> str:
    """Where in the user's file an import went wrong, as ' (file:line)'."""
    if isinstance(error, SyntaxError):
        return f" ({file}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
    return f" ({file}:{frames[-1].lineno})" if frames else ""
