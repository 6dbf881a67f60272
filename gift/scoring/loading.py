"""What a worker loads, the function that params.yaml names with what fits it, and how it describes an exception."""

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from gift.project.errors import UserError
from gift.rewards.names import REWARDS
from gift.rewards.signature import wrong_settings
from gift.rewards.verl import VERL_ARGUMENTS, from_verl

MAX_MESSAGE = 300


@dataclass(frozen=True)
class Loaded:
    """A reward function as params.yaml names it, and how it is called."""

    name: str
    file: str | None  # None for one of ours
    function: str
    settings: dict[str, Any]
    arguments: list[str]  # the names that it is called with, settings aside
    signature: Literal["trl", "verl"] = "trl"
    batch: int | Literal["group"] = 1  # the rows of a call
    timeout_seconds: float | None = None  # of a call; None: the pool's
    alone: bool = False  # in a worker of its own


def load(reward: Loaded, functions: dict[str, Callable[..., Any]]) -> str | None:
    """Find the function and check that it takes its settings and columns; returns the key and what is wrong."""
    if reward.file is None:
        function = REWARDS[reward.function]
    else:
        where = f"function: '{reward.file}:{reward.function}'"
        try:
            module = _import(Path(reward.file))
        except BaseException as error:
            hint = "; raise score.memory_gib" if isinstance(error, MemoryError) else ""
            return f"{where}: the file cannot be imported: {describe(error)}{_line_in(reward.file, error)}{hint}"
        if not callable(module.__dict__.get(reward.function)):
            there = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
            return f"{where}: no such function; the file has {', '.join(there) or 'none'}"
        function = module.__dict__[reward.function]
    if problem := misfit(reward, function):
        return problem
    bound = partial(_called, partial(function, **reward.settings))
    functions[reward.name] = from_verl(bound) if reward.signature == "verl" else bound
    return try_without_rows(reward, function) if reward.file is None else None


def misfit(reward: Loaded, function: Callable[..., Any]) -> str | None:
    """The key of a setting or column that does not fit a function, and what is wrong; the function is not called."""
    parameters = inspect.signature(function).parameters
    is_ours, is_trl = reward.file is None, reward.signature == "trl"
    arguments = reward.arguments if is_trl else list(VERL_ARGUMENTS)
    for key in reward.settings:
        if key not in parameters or key in arguments:
            known = [each.name for each in parameters.values() if each.kind != each.VAR_KEYWORD]
            free = ", ".join(name for name in known if name not in arguments) or "none"
            return f"settings.{key}: {reward.function} has no such setting; it has {free}"
    if is_ours and (wrong := wrong_settings(function, reward.settings)):
        return wrong
    try:
        inspect.signature(function).bind(**dict.fromkeys([*arguments, *reward.settings]))
    except TypeError as error:
        columns = " (with all columns of the prompts table)" if is_trl else ""
        remedy = "; let it take **columns for those it does not use" if is_trl else ""
        if is_ours:
            remedy = "; name the source's column in prepare.columns"
        called = f"it is called with {', '.join(arguments)}{columns} and its settings{remedy}"
        return f"function: {reward.function}: {error}; {called}"
    for each in parameters.values():
        if is_ours and each.kind is each.KEYWORD_ONLY and each.name in arguments:
            return (
                f"settings.{each.name}: {reward.function} has a setting of that name, and the prompts table a column; "
                "give the column another name in prepare.columns"
            )
    return None


def _called(function: Callable[..., Any], /, **arguments: Any) -> Any:
    """What a function returns; awaited, as TRL and verl do, where it is an `async def` or an instance with one."""
    returned = function(**arguments)
    if not inspect.isawaitable(returned):
        return returned
    import asyncio

    async def wait() -> Any:
        return await returned

    return asyncio.run(wait())


def try_without_rows(reward: Loaded, function: Callable[..., Any]) -> str | None:
    """Call one of ours with no row: it checks its settings, and loads what it needs outside the limit of a call."""
    try:
        function(**{name: [] for name in reward.arguments}, **reward.settings)
    except Exception as error:
        said = str(error).replace(f"{reward.function}: settings", "settings")
        text = said if isinstance(error, UserError) else describe(error)
        return said if said.startswith(("settings", "function: ")) else f"settings: {text}"
    return None


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reward_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _line_in(file: str, error: BaseException) -> str:
    """Where in the user's file an import went wrong, as ' (file:line)'."""
    if isinstance(error, SyntaxError):
        return f" ({file}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
    return f" ({file}:{frames[-1].lineno})" if frames else ""


def one_line(text: str) -> str:
    """A message that is one line, short, storable, and the same in every process (no memory addresses)."""
    text = re.sub(r"0x[0-9a-fA-F]{4,}", "0x...", " ".join(text[: 100 * MAX_MESSAGE].split()))
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def describe(error: BaseException) -> str:
    """Kind and text of an exception."""
    return one_line(f"{type(error).__name__}: {printed(error)}".removesuffix(": "))


def printed(error: BaseException) -> str:
    """The text of an exception; none where it has none, or fails to print itself."""
    try:
        return str(error)
    except BaseException:
        return ""


def show(value: Any) -> str:
    """The start of a value as Python writes it, or its type."""
    try:
        text = repr(value)
    except BaseException:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
