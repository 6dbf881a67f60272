"""Programs that know how the tests reach them, and answer with anything: each gets its 0, never a 1 and no error."""

from typing import Any

import pytest
from bubblewrap import WHY_NOT

from gift.rewards.programs.code_tests import BrokenTest, verdict_of
from gift.sandbox.run import Limits

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
LIMITS = Limits(seconds=10.0)

# What each of them begins with. `reply(line, do, args)` answers in place of the program, where it is not None.
TAKE_OVER = """
from gift.rewards.programs import wire
honest = wire.Line.answer

def take_over(reply):
    def answer(line, message):
        made = reply(line, message["do"], message["args"])
        return honest(line, message) if made is None else made
    wire.Line.answer = answer

def call_gives(**reply):
    take_over(lambda line, do, args: reply if do == "call" else None)

def call_writes(text):
    take_over(lambda line, do, args: line.writes.write(text) and {} if do == "call" else None)

def call_back(*called):
    def reply(line, do, args):
        if do == "call":
            line.send({"do": "call", "args": called, "kwargs": {}})
            return {"value": line.receive().get("value", 0)}
    take_over(reply)

class Odd:
    __eq__ = __contains__ = lambda self, other: True
    __call__ = __getattr__ = __getitem__ = lambda self, *args: Odd()
    __hash__ = lambda self: 0

f = g = lambda *args: Odd()
"""
# The question is for f; the answer holds the words of the tests too.
MORE_NAMES = """
made = dict.fromkeys(("set", "sorted", "round", "len", "tuple", "str"), lambda *args: 0)
made |= {"abs": lambda x: -1, "isinstance": lambda *args: True, "all": lambda values: True, "math": Odd()}
made["f"] = lambda *args: 7.5
take_over(lambda line, do, args: {"value": line.encode(made), "changed": []} if do == "names" else None)
"""
BUILTINS = MORE_NAMES.replace("encode(made)", 'encode({"f": f, "__builtins__": made})')
LONGER_QUESTION = MORE_NAMES.replace("[]", "[[0, list(made)]]")
STOP = 'take_over(lambda line, do, args: {"error": [["StopIteration"], ""]} if do not in ("names", "call") else None)'
NUMBER, LIST = "def f(x): return 2 * x", "def f(x): return [2 * x]"
G = "\ndef g(x): return 4"
WORDS = [
    ("assert abs(f(2) - 4) < 1e-6", NUMBER),
    ("assert set(f(2)) == set((4,))", LIST),
    ("assert sorted(f(2)) == sorted([4])", LIST),
    ("assert round(f(2)) == round(4.2)", NUMBER),
    ("assert isinstance(f(2), int)", NUMBER),
    ("assert all([f(2) == 4])", NUMBER),
    ("assert all(y == 4 for y in [f(2)])", NUMBER),
    ("assert len(f(2)) == len('a')", LIST),
    ("assert math.isclose(f(2), 4.0)", NUMBER),
]
EQUAL = "assert f(2) == 4"
# What the program does, the test, a program that passes it.
FORGERIES: list[Any] = [
    *((act, *row) for act in (MORE_NAMES, LONGER_QUESTION) for row in WORDS),
    *(pytest.param(BUILTINS, *row, marks=pytest.mark.slow) for row in WORDS),
    ('take_over(lambda line, do, args: {"value": line.encode(f)} if do == "names" else None)', EQUAL, NUMBER),
    ('take_over(lambda line, do, args: {"value": ["f"]} if do == "names" else None)', EQUAL, NUMBER),
    # What ends a `map` ends it with nothing compared.
    (STOP, "assert all(map(lambda x: f(x).imag == 1, [2]))", "def f(x): return 1j"),
    (STOP, "assert all(map(lambda x: f(x)[0] == 4, [2]))", LIST),
    (STOP, "assert all(map(lambda x: len(f(x)) == 1, [2]))", LIST),
    (STOP, "assert all(map(lambda x: list(f(x)) == [4], [2]))", LIST),
    (STOP, "assert all(map(lambda x: str(f(x)) == '4', [2]))", NUMBER),
    # Answers that the test would hand over again, and that have no plain form: an error in place of a 0.
    ("", "assert f(2)[:1] == [4]", LIST),
    ("", "assert g(type(f(1))) == 4", NUMBER + G),
    ('call_gives(value={"own": "int"})', "assert g(f(1) | f(2)) == 4", "def f(x): return {x}" + G),
    ('call_gives(value={"own": "list"})', "assert g(f(1)[0]) == 4", LIST + G),
    ('call_gives(value={"own": "int"})', "assert g(f(1).real) == 4", NUMBER + G),
    ('call_gives(value={"own": "map"})', "assert g(f(1)(len, [])) == 4", "def f(x): return lambda *args: 4" + G),
    ('call_gives(value={"make": ["datetime.date", [1, 1, 1]]})', "assert g(type(f(1))) == 4", NUMBER + G),
    ("call_gives(value=None)", "assert g(type(f(1))) == 4", NUMBER + G),
    # What is the runner's own, or nobody's.
    ('call_gives(value={"own": "eval"})', "assert f('2')('2') == 2", "def f(x): return int"),
    ('call_gives(value={"runner": 0})', "assert f(max) == max(3, 4)", "def f(x): return x(3, 4)"),
    ('call_gives(value={"make": ["os.getcwd", []]})', EQUAL, NUMBER),
    ('call_gives(value={"make": ["decimal.Decimal", ["sNaN"]]})', EQUAL, NUMBER),
    ('call_gives(value={"bytes": "zz"})', EQUAL, NUMBER),
    ("call_gives(value={})", EQUAL, NUMBER),
    ('call_gives(value=float("nan"))', "assert abs(f(2) - 4) < 1e-6", NUMBER),
    ("call_gives()", EQUAL, NUMBER),
    (
        'call_gives(value=None, changed=[[0, {"make": ["tuple", [[4]]]}]])',
        "assert f([2]) == [4]",
        "def f(x): return [4]",
    ),
    ('call_back({"own": "eval"}, "4")', EQUAL, NUMBER),
    ('call_back({"own": "int"}, "4")', EQUAL, NUMBER),
    ('call_back({"runner": 9})', EQUAL, NUMBER),
    ('call_back({"runner": 0}, {"program": 0})', "assert f(lambda x: x == 4) is True", "def f(test): return test(4)"),
    # Exceptions that the tests, or the runner itself, would take for others.
    *(
        (f'call_gives(error=[["{name}", "Exception"], "odd"])', "assert all(map(lambda x: f(x) == 4, [2]))", NUMBER)
        for name in ("AssertionError", "SystemExit", "GeneratorExit", "KeyboardInterrupt", "ModuleNotFoundError")
    ),
    ('call_gives(error=[["CannotPass", "BaseException"], "odd"])', EQUAL, NUMBER),
    ("call_gives(error=[[], {}])", EQUAL, NUMBER),
    ("import os, signal\nf = lambda x: os.kill(os.getppid(), signal.SIGINT)", EQUAL, NUMBER),
    # Messages out of form and order.
    ("call_writes(b'null\\n')", EQUAL, NUMBER),
    ("call_writes(b'[' * 100_000 + b'\\n')", EQUAL, NUMBER),
    ("call_writes(b'{\"value\": ' + b'9' * 5000 + b'}\\n')", EQUAL, NUMBER),
    ("call_writes(b'x' * wire.MAX_MESSAGE)", EQUAL, NUMBER),
    ("call_writes(b'{\"value\": 1}\\n' * 9)", "assert [f(1), f(2), f(3)] == [2, 4, 6]", NUMBER),
    ('call_writes(b\'{"do": "names", "args": [], "kwargs": {}}\\n{"value": 1}\\n\')', EQUAL, NUMBER),
]


@pytest.mark.parametrize(("act", "test", "right"), FORGERIES)
def test_an_answer_out_of_form_is_worth_nothing(act: str, test: str, right: str) -> None:
    row = {"test_list": [test]}
    assert verdict_of(TAKE_OVER + act, row, LIMITS).passed == 0
    assert verdict_of(right, row, LIMITS).passed == 1


CHECK = {"test": "def check(candidate):\n    assert abs(candidate(2) - 4) < 1e-6", "entry_point": "f"}


@pytest.mark.parametrize("act", [MORE_NAMES, LONGER_QUESTION])
def test_the_words_of_a_check_are_not_the_programs(act: str) -> None:
    assert verdict_of(TAKE_OVER + act, CHECK, LIMITS).passed == 0
    assert verdict_of(NUMBER, CHECK, LIMITS).passed == 1


def test_functions_of_pythons_own_cross_by_name_and_run_where_they_are_called() -> None:
    row = {"test_list": ["assert f(eval) == 3", "assert f(sorted) == [0, 1]", "assert f(int) == 0"]}
    program = "x = 3\ndef f(made): return made('x') if made is eval else made([1, 0]) if made is sorted else made()"
    assert verdict_of(program, row, LIMITS).passed == 3
    assert verdict_of("def f(made): return made('globals()')", row, LIMITS).passed == 0


def test_several_functions_of_pythons_own_and_no_other_name_cannot_be_told_apart() -> None:
    row = {"test_list": ["assert set(sum(1, 2)) == set((3,))", "assert set(sum(2, 2)) == set((4,))"]}
    with pytest.raises(BrokenTest, match=r"only functions of Python's own \(set, sum\)"):
        verdict_of("sum = lambda *args: 0\nset = lambda values: 0", row, LIMITS)
    row = {"test_list": ["assert sum(1, 2) == 3", "assert set([sum(2, 2)]) == set((4,))"]}
    assert verdict_of("def sum(a, b): return a + b", row, LIMITS).passed == 2
    assert verdict_of("def sum(a, b): return 3\nset = lambda values: 0", row, LIMITS).passed == 1


def test_a_test_that_swallows_exceptions_is_broken_where_it_hands_over_what_cannot_cross() -> None:
    row = {"test_list": ["try:\n    f(iter([1]))\n    assert False\nexcept Exception:\n    pass"]}
    with pytest.raises(BrokenTest, match="hands over a list_iterator"):
        verdict_of("def f(x): raise ValueError", row, LIMITS)
