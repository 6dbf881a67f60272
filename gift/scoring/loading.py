"""What a worker loads: the function that params.yaml names, with settings and columns that fit it."""

import importlib.util
import inspect
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
from gift.rewards.verl import ARGUMENTS, from_verl
from gift.scoring.workers.messages import describe


@dataclass(frozen=True)
class Loaded:
    """A reward function as params.yaml names it, and how it is called.

    `file` is None for one of ours; `arguments` are the names it is called with, settings aside. `batch` is the rows of
    a call, `timeout_seconds` (None: the pool's) its limit, and `alone` gives the function a worker of its own.
    """

    name: str
    file: str | None
    function: str
    settings: dict[str, Any]
    arguments: list[str]
    signature: Literal["trl", "verl"] = "trl"
    batch: int | Literal["group"] = 1
    timeout_seconds: float | None = None
    alone: bool = False


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
    problem = misfit(reward, function)
    if problem:
        return problem
    bound = partial(_awaited(function) if inspect.iscoroutinefunction(function) else function, **reward.settings)
    functions[reward.name] = from_verl(bound) if reward.signature == "verl" else bound
    return try_without_rows(reward, function) if reward.file is None else None


def misfit(reward: Loaded, function: Callable[..., Any]) -> str | None:
    """The key of a setting or column that does not fit a function, and what is wrong; the function is not called."""
    parameters = inspect.signature(function).parameters
    arguments = list(ARGUMENTS) if reward.signature == "verl" else reward.arguments
    for key in reward.settings:
        if key not in parameters or key in arguments:
            free = [
                name
                for name, parameter in parameters.items()
                if name not in arguments and parameter.kind != parameter.VAR_KEYWORD
            ]
            return f"settings.{key}: {reward.function} has no such setting; it has {', '.join(free) or 'none'}"
    wrong = wrong_settings(function, reward.settings) if reward.file is None else None
    if wrong:
        return wrong
    try:
        inspect.signature(function).bind(**dict.fromkeys([*arguments, *reward.settings]))
    except TypeError as error:
        columns = " (with all columns of the prompts table)" if reward.signature == "trl" else ""
        remedy = "; let it take **columns for those it does not use" if reward.signature == "trl" else ""
        if reward.file is None:
            remedy = "; name the source's column in prepare.columns"
        return (
            f"function: {reward.function}: {error}; it is called with {', '.join(arguments)}{columns} and its "
            f"settings{remedy}"
        )
    return _hidden_setting(reward, function) if reward.file is None else None


def _hidden_setting(reward: Loaded, function: Callable[..., Any]) -> str | None:
    """The setting of one of ours whose name a column has too."""
    settings = [each.name for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
    for name in settings:
        if name in reward.arguments:
            return (
                f"settings.{name}: {reward.function} has a setting of that name, and the prompts table a column; give "
                f"the column another name in prepare.columns"
            )
    return None


def _awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """An `async def` as a function that returns its result; TRL and verl take such ones too."""
    import asyncio

    def call(**arguments: Any) -> Any:
        return asyncio.run(function(**arguments))

    return call


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
