"""A row's tests as a task for the runner: what is run where, and which names the tests take from the program."""

import ast
import builtins
import re
import sys
import warnings
from contextlib import suppress
from typing import Any

_PYTHONS_OWN = frozenset(dir(builtins))


class BrokenTest(ValueError):
    """A row's tests cannot judge any program."""


def wanted_names(row: dict[str, Any]) -> list[str]:
    """The names that a row's tests take from the program; none where they look at its output, or are broken."""
    with suppress(BrokenTest):
        if row.get("test_list"):
            task = asserts_task(row, "")
            return [*task["names"], *task["required"]]
        if row.get("test"):
            return texts(row, "entry_point")
    return []


def asserts_task(row: dict[str, Any], program: str) -> dict[str, Any]:
    """The runner's task for an MBPP row: each text of `test_list` is a test."""
    tests = [*texts(row, "test_list"), *texts(row, "challenge_test_list")]
    imports, setup = texts(row, "test_imports"), texts(row, "test_setup_code")
    called: list[set[str]] = []
    for number, test in enumerate(tests, start=1):
        tree = _parse(test, f"test {number}")
        if not _has_assert(tree):
            raise BrokenTest(f"test {number} asserts nothing: {test!r}")
        called.append(_used_names(tree)[2])
    _parse("\n".join(setup), "test_setup_code")
    names, modules, _ = _used_names(_parse("\n".join([*imports, *tests]), "test_imports"))
    # The program's function may be called like one of Python's own (MBPP has a `sum`): where no other name is used.
    required = [] if names else sorted(set.intersection(*called))
    if not names and not required:
        raise BrokenTest("the tests use no name of the program")
    if len(required) > 1:  # else it would also answer for those that compare
        functions = f"functions of Python's own ({', '.join(required)})"
        raise BrokenTest(f"the tests use only {functions}, and which one is the program's cannot be told; use one")
    return {
        "own": imports,
        "program": [*imports, program, *setup],
        "tests": tests,
        "names": sorted(names),
        "required": required,
        "modules": sorted(modules),
        "candidate": None,
    }


def check_task(row: dict[str, Any], program: str) -> dict[str, Any]:
    """The runner's task for a HumanEval row: `check(candidate)` is one test; it has the signature's helpers too."""
    test, entry, signature = ("\n".join(texts(row, column)) for column in ("test", "entry_point", "signature"))
    tree = _parse(test, "test")
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not checks or len(checks[0].args.args) != 1:
        raise BrokenTest("test defines no check(candidate)")
    if not _has_assert(tree):
        raise BrokenTest("test asserts nothing")
    if not entry.isidentifier():
        raise BrokenTest(f"entry_point {entry!r} is no name of a function")
    if not {checks[0].args.args[0].arg, entry} & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
        raise BrokenTest("check does not use the program")
    own = [test]
    with suppress(BrokenTest):
        if _parse(signature, "").body:
            own = [signature, test]
    names, modules, _ = _used_names(_parse("\n".join(own), "test"))
    whole = re.search(rf"^(async +)?def +{entry}\b|^{entry} *=", program, re.MULTILINE)
    return {
        "own": own,
        # A program that has the signature again, or begins where it ends.
        "program": [signature, program] if whole else [signature.rstrip("\n") + "\n" + program],
        "tests": ["check(candidate)"],
        "names": sorted(names - {"candidate", entry}),
        "required": [entry],
        "modules": sorted(modules),
        "candidate": entry,
    }


def _used_names(tree: ast.Module) -> tuple[set[str], set[str], set[str]]:
    """What tests take from elsewhere: names of the program, modules of Python's library, functions of Python's own.

    Python's own names and modules are never the program's, which could answer `set(a) == set(b)` as it likes.
    """
    used: set[str] = set()
    called: set[str] = set()
    holders: set[str] = set()
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            holders.add(node.value.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.add(node.func.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    modules = (holders & sys.stdlib_module_names) - defined
    return used - defined - modules - _PYTHONS_OWN, modules, (called & _PYTHONS_OWN) - defined


def texts(row: dict[str, Any], column: str) -> list[str]:
    """A column's list of texts; a single text is a list of one, nothing is an empty one."""
    value = row.get(column)
    found = [] if value is None or value == "" else [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) for text in found):
        raise BrokenTest(f"{column} must be a text or a list of texts")
    return found


def _parse(text: str, what: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the style of the tests, such as "\d" in a plain string
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BrokenTest(f"{what} is no Python: {error}") from None


def _has_assert(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree))
