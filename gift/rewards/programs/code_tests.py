"""Reward for programs: the share of a row's tests that the completion's Python program passes, inside the sandbox."""

import ast
import builtins
import json
import re
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gift.project.errors import UserError
from gift.project.sections import Count, Positive
from gift.rewards.programs import runner, wire
from gift.rewards.signature import checked
from gift.rewards.text import Completions, completion_text
from gift.sandbox.run import Limits, SandboxError, run

_PYTHONS_OWN = frozenset(dir(builtins))
_FENCE = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)[^`]*")
_LANGUAGES = ("", "python", "python3", "py")
VERDICT_KIB = 2  # at most, with MAX_REASON characters as JSON
_KINDS = ({"test_list"}, {"test", "entry_point"}, {"inputs", "outputs"})
_COLUMNS = set.union(*_KINDS, {"challenge_test_list", "test_imports", "test_setup_code"})
_NEEDS = "it needs test_list, or test and entry_point, or inputs and outputs"
NO_PROGRAM = "no program in the completion"
RUNNER = Path(runner.__file__).read_text(encoding="utf-8")
FILES = {"gift/rewards/programs/wire.py": Path(wire.__file__).read_text(encoding="utf-8")}


class BrokenTest(ValueError):
    """A row's tests cannot judge any program."""


@dataclass(frozen=True)
class Verdict:
    """Tests passed, of how many, and why the first one failed ("" where none did)."""

    passed: int
    total: int
    reason: str = ""


@checked
def code_tests(
    prompts: Any,
    completions: Completions,
    completion_ids: Any,
    *,
    signature_column: str | None = None,
    whole_completion: bool = False,
    partial: bool = False,
    challenge: bool = False,
    seconds: Positive = 6.0,
    memory_mib: Count = 512,
    processes: Count = 8,
    scratch_mib: Count = 64,
    output_kib: Count = 64,
    **columns: Any,
) -> list[float | Exception]:
    """1 where the program in the completion passes all tests of its row, else 0; with `partial` the share it passes.

    The program is the last fenced Python block (with `whole_completion`, the whole text where there is none). A row has
    one kind of tests: `test_list` (MBPP: assert statements; with `test_imports` before the program, `test_setup_code`
    after it, and with `challenge` also those of `challenge_test_list`), `test` and `entry_point` (HumanEval:
    `check(candidate)`; `signature_column` names the column whose text the program continues, "prompts" for the prompt),
    or `inputs` and `outputs` (texts for stdin and what stdout must be, white space at the ends of lines aside).

    A program that fails, hangs (`seconds` for all tests of a row) or takes too much memory gets 0. Tests that are
    missing or broken, and a sandbox that cannot start, are an exception in the row's place. What tests can and cannot
    see of the program: docs/sandbox.md.
    """
    limits = Limits(seconds, memory_mib, processes, scratch_mib, output_kib)
    named = {name: columns[name] for name in _COLUMNS if name in columns}
    if not challenge:
        named.pop("challenge_test_list", None)
    if signature_column is not None:
        named["signature"] = {**columns, "prompts": prompts}.get(signature_column)
        if named["signature"] is None:
            raise ValueError(f"signature_column: the prompts table has no column '{signature_column}'")
    if not completions and not any(kind <= named.keys() for kind in _KINDS):
        problem = f"the prompts table has no columns with tests; {_NEEDS}: name the source's in prepare.columns"
        raise UserError(f"function: code_tests: {problem}")
    items: list[float | Exception] = []
    for index, completion in enumerate(completions):
        row = {name: values[index] for name, values in named.items()}
        try:
            verdict = verdict_of(program_of(completion_text(completion), whole_completion), row, limits, partial)
            items.append(verdict.passed / verdict.total if partial else float(verdict.passed == verdict.total))
        except (BrokenTest, SandboxError) as error:
            items.append(error)
    return items


def program_of(text: str, whole: bool = False) -> str | None:
    """The last closed fenced block of Python (or of no named language); without one, the text itself if `whole`."""
    found: str | None = None
    fence, wanted = "", False
    block: list[str] = []
    for line in text.splitlines():
        match = _FENCE.fullmatch(line)
        if not fence and match:
            fence, wanted, block = match["fence"], match["language"].lower() in _LANGUAGES, []
        elif fence and match and match["fence"].startswith(fence) and not match["language"]:
            found = "\n".join(block) if wanted else found
            fence = ""
        else:
            block.append(line)
    return text if found is None and whole else found


def verdict_of(program: str | None, row: dict[str, Any], limits: Limits, partial: bool = False) -> Verdict:
    """The verdict on a program by the tests of a row. Raises `BrokenTest` or `SandboxError`."""
    kinds = [kind for kind in ("test_list", "test", "inputs") if row.get(kind)]
    if not kinds:
        raise BrokenTest(f"the row has no tests; {_NEEDS}")
    if len(kinds) > 1:
        raise BrokenTest(f"the row has tests of several kinds: {', '.join(kinds)}; leave one")
    if kinds == ["inputs"]:
        inputs, outputs = _texts(row, "inputs"), _texts(row, "outputs")
        if len(inputs) != len(outputs):
            raise BrokenTest(f"{len(inputs)} inputs for {len(outputs)} outputs")
        if program is None:
            return Verdict(0, len(inputs), NO_PROGRAM)
        return _run_streams(program, inputs, outputs, limits, partial)
    task = _asserts_task(row, program or "") if kinds == ["test_list"] else _check_task(row, program or "")
    return _run_tests(task, limits) if program is not None else Verdict(0, len(task["tests"]), NO_PROGRAM)


def _run_tests(task: dict[str, Any], limits: Limits) -> Verdict:
    """Run the runner and the program; whatever ends them before all verdicts are told is the program's doing."""
    # What the program prints goes nowhere, so the limit on output holds for the runner's verdicts alone.
    room = replace(limits, output_kib=limits.output_kib + VERDICT_KIB * len(task["tests"]))
    result = run(RUNNER, FILES, json.dumps(task), room)
    lines = [json.loads(line) for line in result.stdout.splitlines(keepends=True) if line.endswith("\n")]
    for line in lines:
        if "broken" in line:
            raise BrokenTest(line["broken"])
    if not lines:
        raise SandboxError(f"the runner did not start ({result.status}): {result.stderr[-200:]}")
    verdicts = lines[1:]
    reasons = [line["reason"] for line in verdicts if not line["passed"]]
    if len(verdicts) < len(task["tests"]):
        reasons.append(f"{result.status} at test {len(verdicts) + 1}")
    return Verdict(sum(line["passed"] for line in verdicts), len(task["tests"]), (reasons or [""])[0])


def _run_streams(program: str, inputs: list[str], outputs: list[str], limits: Limits, partial: bool) -> Verdict:
    """Run the program once for each input, until the time is used up or, without `partial`, one output is wrong."""
    deadline = time.monotonic() + limits.seconds
    passed, reason = 0, ""
    for number, (given, expected) in enumerate(zip(inputs, outputs, strict=True), start=1):
        left = deadline - time.monotonic()
        result = run(program, stdin=given, limits=replace(limits, seconds=left)) if left > 0 else None
        if result and result.status == "ok" and _lines(result.stdout) == _lines(expected):
            passed += 1
            continue
        status = result.status if result else "timeout"
        reason = reason or f"test {number}: {'wrong output' if status == 'ok' else status}"
        if not partial or not result:
            break
    return Verdict(passed, len(inputs), reason)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _asserts_task(row: dict[str, Any], program: str) -> dict[str, Any]:
    """The runner's task for an MBPP row: each text of `test_list` is a test."""
    tests = [*_texts(row, "test_list"), *_texts(row, "challenge_test_list")]
    imports, setup = _texts(row, "test_imports"), _texts(row, "test_setup_code")
    for number, test in enumerate(tests, start=1):
        if not _has_assert(_parse(test, f"test {number}")):
            raise BrokenTest(f"test {number} asserts nothing: {test!r}")
    _parse("\n".join(setup), "test_setup_code")
    names, modules, called = _used_names(_parse("\n".join([*imports, *tests]), "test_imports"))
    if not names and not called:
        raise BrokenTest("the tests use no name of the program")
    return {
        "own": imports,
        "program": [*imports, program, *setup],
        "tests": tests,
        "names": sorted(names),
        # The program's function may be called like one of Python's own (MBPP has a `sum`): where nothing else is used.
        "required": [] if names else sorted(called),
        "modules": sorted(modules),
        "candidate": None,
    }


def _check_task(row: dict[str, Any], program: str) -> dict[str, Any]:
    """The runner's task for a HumanEval row: `check(candidate)` is one test; it has the signature's helpers too."""
    test, entry, signature = ("\n".join(_texts(row, column)) for column in ("test", "entry_point", "signature"))
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


def _texts(row: dict[str, Any], column: str) -> list[str]:
    """A column's list of texts; a single text is a list of one, nothing is an empty one."""
    value = row.get(column)
    texts = [] if value is None or value == "" else [value] if isinstance(value, str) else list(value)
    if not all(isinstance(text, str) for text in texts):
        raise BrokenTest(f"{column} must be a text or a list of texts")
    return texts


def _parse(text: str, what: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the style of the tests, such as "\d" in a plain string
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BrokenTest(f"{what} is no Python: {error}") from None


def _has_assert(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree))
