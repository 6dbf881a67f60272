"""Reward for programs: the share of a row's tests that the completion's Python program passes, inside the sandbox."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gift.project.errors import UserError
from gift.project.sections import Count, Positive
from gift.rewards.programs import runner, wire
from gift.rewards.programs.blocks import program_of
from gift.rewards.programs.tasks import BrokenTest, asserts_task, check_task, texts, wanted_names
from gift.rewards.signature import checked
from gift.rewards.text import Completions, completion_text
from gift.sandbox.run import Limits, SandboxError, run

VERDICT_KIB = 3  # at most, with MAX_REASON characters as JSON
_KINDS = ({"test_list"}, {"test", "entry_point"}, {"inputs", "outputs"})
_COLUMNS = set.union(*_KINDS, {"challenge_test_list", "test_imports", "test_setup_code"})
_NEEDS = "it needs test_list, or test and entry_point, or inputs and outputs"
NO_PROGRAM = "no program in the completion"
RUNNER = Path(runner.__file__).read_text(encoding="utf-8")
FILES = {"gift/rewards/programs/wire.py": Path(wire.__file__).read_text(encoding="utf-8")}


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

    The program is a fenced Python block (`program_of`; with `whole_completion` the text where there is none). A row has
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
            program = program_of(completion_text(completion), whole_completion, wanted_names(row))
            verdict = verdict_of(program, row, limits, partial)
            items.append(verdict.passed / verdict.total if partial else float(verdict.passed == verdict.total))
        except (BrokenTest, SandboxError) as error:
            items.append(error)
    return items


def verdict_of(program: str | None, row: dict[str, Any], limits: Limits, partial: bool = False) -> Verdict:
    """The verdict on a program by the tests of a row. Raises `BrokenTest` or `SandboxError`."""
    kinds = [kind for kind in ("test_list", "test", "inputs") if row.get(kind)]
    if not kinds:
        raise BrokenTest(f"the row has no tests; {_NEEDS}")
    if len(kinds) > 1:
        raise BrokenTest(f"the row has tests of several kinds: {', '.join(kinds)}; leave one")
    if kinds == ["inputs"]:
        inputs, outputs = texts(row, "inputs"), texts(row, "outputs")
        if len(inputs) != len(outputs):
            raise BrokenTest(f"{len(inputs)} inputs for {len(outputs)} outputs")
        if program is None:
            return Verdict(0, len(inputs), NO_PROGRAM)
        return _run_streams(program, inputs, outputs, limits, partial)
    task = asserts_task(row, program or "") if kinds == ["test_list"] else check_task(row, program or "")
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
