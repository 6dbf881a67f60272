"""A stage says where it is, and ends at once, with the right exit code, all that it said, and nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from gift.project import console
from gift.project.console import Progress, through, within

STAGE = """
import atexit, multiprocessing, signal, sys, threading, time
import click
from gift.project import console
from gift.project.errors import UserError

class Slow:
    def __del__(self):
        print("torn down")

kept = Slow()

@click.command()
def main():
    atexit.register(lambda: print("registered"))
    print("said")
    {body}

console.run(main)
"""


def run(body: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", STAGE.format(body=body)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.split("\n")[:-1] + done.stderr.split("\n")[-2:-1]


def test_a_finished_stage_ends_without_clearing_up_memory() -> None:
    assert run("pass") == (0, ["said", "registered"])


def test_a_failed_stage_does_so_too_with_its_exit_code() -> None:
    assert run("raise UserError('what is wrong')") == (1, ["said", "registered", "error: what is wrong"])
    assert run("sys.exit(3)") == (3, ["said", "registered"])


def test_ctrl_c_is_a_line() -> None:
    code, lines = run("signal.raise_signal(signal.SIGINT)")
    assert code == 130
    assert lines == ["said", "registered", "interrupted; `make repro` goes on from here"]


@pytest.mark.parametrize(
    ("body", "last"),
    [("raise ValueError('a bug')", "ValueError: a bug"), ("sys.exit('a last word')", "a last word")],
)
def test_what_python_has_to_print_ends_in_its_own_way(body: str, last: str) -> None:
    code, lines = run(body)
    assert code == 1
    assert lines[-1] == last
    assert "torn down" in lines


def test_threads_and_processes_are_waited_for() -> None:
    thread = "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()"
    assert run(thread) == (0, ["said", "thread", "registered", "torn down"])
    child = "multiprocessing.get_context('fork').Process(target=lambda: (time.sleep(0.2), print('child'))).start()"
    code, lines = run(child)
    assert code == 0
    assert "child" in lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a progress believes have passed."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_long_step_says_where_it_is(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    within(0.5)  # nothing is shown: nobody hears it
    with Progress("update@r1", 10, "steps", done=2) as progress:
        for seconds, share in ((30, 0.25), (61, 0.5), (100, 0.75), (122, 1.0)):
            clock[0] = seconds
            within(share)
        clock[0] = 140
        progress.advance()
    assert capsys.readouterr().err.splitlines() == [
        "update@r1: 2/10 steps were finished before; going on",
        "update@r1: 2.5/10 steps, 915 s left",
        "update@r1: 3.0/10 steps, 854 s left",
        "update@r1: 3/10 steps, 980 s left",
    ]


def test_a_part_counts_what_is_in_it(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("generate@r1", 160, "prompts") as progress:
        progress.count = 64
        clock[0] = 90
        within(0.3)
    assert capsys.readouterr().err == "generate@r1: 19/160 prompts, 660 s left\n"


def test_items_go_through_one_by_one(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reference@r1", 2, "parts"):
        for item in through(["a", "b"], part=1, parts=2):
            clock[0] += 100 if item == "a" else 0
    assert capsys.readouterr().err == "reference@r1: 0.8/2 parts, 167 s left\n"
