"""The program inside the sandbox that tests another: the tests run in one process, the tested program in a second.

Only plain values pass between them, so an answer is fixed before anything compares it: the program never sees what is
expected, nor the runner's memory, and cannot change what `assert` or `==` mean there. code_tests.py starts it in the
sandbox with the task as JSON on stdin, and reads the verdicts, one JSON line a test, from stdout.
"""

import builtins
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from gift.rewards.programs.wire import FUNCTIONS, CannotPass, Line, error_text


def serve(line: Line) -> None:
    """The program's process: do what the runner asks, until it ends."""
    module = type(sys)("program")
    sys.modules["program"] = module

    def start(*texts: str) -> None:
        for text in texts:
            exec(compile(text, "<program>", "exec"), module.__dict__)

    def names(wanted: list[str]) -> dict[str, Any]:
        return {name: module.__dict__[name] for name in wanted if name in module.__dict__}

    line.functions = {**FUNCTIONS, "start": start, "names": names}
    while True:
        line.send(line.answer(line.receive()))


def call(function: Any, *args: Any, **kwargs: Any) -> Any:
    """All that the program may ask of the runner: to call a function that a test has handed over."""
    if isinstance(function, type):
        raise TypeError("classes are not called for the program")
    return function(*args, **kwargs)


def run_tests(line: Line, task: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Run the program, then each test, and tell each verdict as soon as it is known."""
    space: dict[str, Any] = {"__name__": "tests", "__builtins__": vars(builtins)}
    asked = (*task["names"], *task["required"])
    try:
        for text in task["own"]:
            exec(compile(text, "<tests>", "exec"), space)
        space |= {name: __import__(name) for name in task["modules"] if name not in space}
    except BaseException as error:
        return tell({"broken": f"the tests' own code fails: {_named(error)}"})
    tell({"ready": True})
    try:
        line.ask("start", *task["program"])
        answer = line.ask("names", list(asked))
        # Whatever the program's process answers or changes: a name that was not asked for stays the tests' own.
        found = {name: answer[name] for name in asked if name in answer}
        for name in task["required"]:
            if name not in found:
                raise NameError(f"the program does not define {name}")
    except BaseException as error:
        return tell({"passed": False, "reason": _named(error)})
    space |= {name: value for name, value in found.items() if name in task["required"] or name not in space}
    if task["candidate"]:
        space["candidate"] = space[task["candidate"]]
    for number, text in enumerate(task["tests"], start=1):
        try:
            exec(compile(text, f"<test {number}>", "exec"), space)
        except CannotPass as error:
            return tell({"broken": f"test {number} {error}"})
        except BaseException as error:
            # An import of the test's own: what the program raises has no name of a module here.
            if isinstance(error, ModuleNotFoundError) and error.name:
                return tell({"broken": f"test {number}: {error_text(error)}"})
            tell({"passed": False, "reason": f"test {number}: {_named(error)}"})
        else:
            tell({"passed": True})
    return None


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error_text(error)}".removesuffix(": ")


def main() -> None:
    asks, asked = os.pipe()
    answered, answers = os.pipe()
    nothing = os.open("/dev/null", os.O_RDWR)
    # The fork comes before the tests are read: the program's process never holds them.
    if os.fork() == 0:
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.close(asked)
        os.close(answered)
        serve(Line(asks, answers, "program", FUNCTIONS))
    os.close(asks)
    os.close(answers)
    verdicts = os.dup(1)
    task = json.loads(sys.stdin.read())
    os.dup2(nothing, 1)  # what a test prints is no verdict

    def tell(verdict: dict[str, Any]) -> None:
        os.write(verdicts, json.dumps(verdict).encode() + b"\n")

    run_tests(Line(answered, asked, "runner", {"call": call}), task, tell)
    os._exit(0)  # there is nothing to tidy up, and Python would take milliseconds


if __name__ == "__main__":
    main()
