"""The reward of programs: right ones pass, wrong ones do not, none can forge a verdict, and broken tests are no 0."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bubblewrap import WHY_NOT

from gift.project.errors import UserError
from gift.rewards.programs.code_tests import FILES, BrokenTest, Verdict, code_tests, verdict_of
from gift.sandbox.run import Limits, SandboxError
from gift.scoring.plan import load_plan
from gift.scoring.rows import Asked
from gift.scoring.settings import Reward, Score

needs_bwrap = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def value(program: str, row: dict[str, Any], **settings: Any) -> Any:
    """The reward of one completion that holds the program in a fenced block."""
    columns = {name: [column] for name, column in row.items()}
    completion = f"So:\n```python\n{program}\n```\n"
    (item,) = code_tests([""], [completion], [[]], **columns, **settings)
    return item


def asserts(*tests: str, **row: Any) -> dict[str, Any]:
    return {"test_list": list(tests), **row}


@needs_bwrap
def test_both_forms_of_completions_and_the_whole_text() -> None:
    row = {"test_list": [["assert f() == 1"]] * 3}
    block = "```python\ndef f(): return 1\n```"
    completions = [block, [{"role": "assistant", "content": block}], "def f(): return 1"]
    assert code_tests([""] * 3, completions, [[]] * 3, **row) == [1.0, 1.0, 0.0]
    assert code_tests([""] * 3, completions, [[]] * 3, whole_completion=True, **row) == [1.0, 1.0, 1.0]


HUMAN_SIGNATURE = '''
import math

def poly(xs: list, x: float):
    """Evaluates a polynomial with coefficients xs at x."""
    return sum([c * math.pow(x, i) for i, c in enumerate(xs)])


def find_zero(xs: list):
    """Finds x such that poly(xs, x) = 0, for a list of even length."""
'''
HUMAN_TEST = """
METADATA = {"author": "a test"}

def check(candidate):
    import copy
    for coeffs in ([1.0, 2.0], [-6.0, 11.0, -6.0, 1.0]):
        solution = candidate(copy.deepcopy(coeffs))
        assert math.fabs(poly(coeffs, solution)) < 1e-3
"""
FIND_ZERO = """
    low, high = -1000.0, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        if poly(xs, middle) * poly(xs, high) <= 0:
            low = middle
        else:
            high = middle
    return low
"""
HUMAN = {"test": HUMAN_TEST, "entry_point": "find_zero", "signature_text": HUMAN_SIGNATURE}
TREE = """
class Node:
    def __init__(self, value, left=None, right=None):
        self.value, self.left, self.right = value, left, right
"""
# Each: its row, right programs, wrong programs.
PROBLEMS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "sum": (
        asserts("assert add(2, 3) == 5", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'"),
        ["def add(a, b): return a + b", "add = lambda *numbers: numbers[0] + numbers[1]"],
        ["def add(a, b): return a - b", "def add(a): return a", "def plus(a, b): return a + b", "add = 5", ""],
    ),
    "sets": (
        asserts("assert set(similar((3, 4, 5), (5, 7, 4))) == set((4, 5))"),
        ["def similar(a, b): return tuple(set(a) & set(b))", "def similar(a, b):\n    yield from set(a) & set(b)"],
        ["def similar(a, b): return a", "def similar(a, b): return None"],
    ),
    "floats": (
        asserts("assert math.isclose(area(2), 12.566, rel_tol=1e-3)", test_imports=["import math"]),
        ["def area(r): return math.pi * r * r", "from math import pi\narea = lambda r: pi * r ** 2"],
        ["def area(r): return 12"],
    ),
    "types": (
        asserts("assert keep((4, 'a', 7.5, True), int) == [4, True]", "assert keep([], str) == []"),
        ["def keep(values, kind): return [each for each in values if isinstance(each, kind)]"],
        ["def keep(values, kind): return [each for each in values if not isinstance(each, kind)]"],
    ),
    "functions": (
        asserts("assert twice(lambda x: x + 3, 1) == 7", "assert make(2)(5) == 10", "assert twice(len, 'ab') == 2"),
        ["def twice(f, x):\n    return f(f(x)) if x != 'ab' else f(x)\ndef make(n): return lambda x: n * x"],
        ["def twice(f, x): return f(x)\ndef make(n): return lambda x: n * x"],
    ),
    "in place": (
        asserts(
            "x = [3, 1, 2]\nassert sort(x) is None\nassert x == [1, 2, 3]", "d = {}\nfill(d)\nassert d == {1: [2]}"
        ),
        ["def sort(x): x.sort()\ndef fill(d): d[1] = [2]"],
        ["def sort(x): sorted(x)\ndef fill(d): pass"],
    ),
    "tree": (
        asserts("assert height(root) == 3", test_setup_code="root = Node(1, Node(2, Node(4)), Node(3))"),
        [TREE + "def height(node): return 1 + max(height(node.left), height(node.right)) if node else 0"],
        [TREE + "def height(node): return 2", "def height(node): return 3"],
    ),
    "class": (
        asserts(
            "s = Stack()\ns.push(1)\ns.push([2])\nassert s.pop() == [2]\nassert len(s) == 1\nassert s.items[0] == 1"
        ),
        [
            "class Stack(object):\n    def __init__(self): self.items = []\n    def push(self, x): self.items += [x]\n"
            "    def __len__(self): return len(self.items)\n    def pop(self): return self.items.pop()"
        ],
        ["class Stack(list):\n    push = list.append"],
    ),
    "errors": (
        asserts("try:\n    root(-1)\n    assert False\nexcept ValueError as error:\n    assert 'neg' in str(error)"),
        ["def root(x):\n    if x < 0: raise ValueError('negative')\n    return x ** 0.5"],
        ["def root(x): raise TypeError('negative')", "def root(x): return 1"],
    ),
    "values": (
        asserts(
            "assert big(3) == 3 ** 200 and half(3) == Fraction(3, 2) and half(2) == 1",
            "assert day() == datetime.date(2024, 2, 29)",
            "assert mixed() == {'a': (1, 2.5, None, b'x'), 2: {3}, (4,): 1j}",
            "assert list(count('aba').items()) == [('a', 2), ('b', 1)] and first() == (1, 2) and level() == 3",
            test_imports=["from fractions import Fraction", "import datetime"],
        ),
        [
            "import collections, enum\nbig = lambda n: n ** 200\nhalf = lambda n: Fraction(n, 2)\n"
            "day = lambda: datetime.date(2024, 3, 1) - datetime.timedelta(1)\ncount = collections.Counter\n"
            "mixed = lambda: {'a': (1, 2.5, None, b'x'), 2: {3}, (4,): 1j}\n"
            "first = lambda: collections.namedtuple('P', 'x y')(1, 2)\nlevel = lambda: enum.IntEnum('L', 'a b c').c"
        ],
        ["big = half = day = mixed = count = first = level = lambda *x: x"],
    ),
    "like Python's own": (
        asserts("assert sum(10, 15) == 6", "assert sum(100, 150) == 93"),
        ["def sum(a, b):\n    return __builtins__['sum'](n for n in range(1, a + 1) if a % n == b % n == 0)"],
        ["def sum(a, b): return a + b", "pass"],
    ),
    "generator": (
        asserts("g = naturals()\nassert [next(g), next(g)] == [0, 1]", "assert 7 in naturals()"),
        ["import itertools\nnaturals = itertools.count"],
        ["naturals = lambda: iter([0, 1])"],
    ),
    "find_zero": (
        {**HUMAN, "test": HUMAN_TEST},
        [FIND_ZERO, HUMAN_SIGNATURE + FIND_ZERO, "def find_zero(xs):" + FIND_ZERO],
        ["    return 0.0", "    pass", "def poly(xs, x): return 0\ndef find_zero(xs): return 9.0", "return (", "x = 1"],
    ),
    "stdin": (
        {"inputs": ["2 3\n", "10 -4"], "outputs": ["5\n", "6 \n\n"]},
        [
            "print(sum(map(int, input().split())))",
            "import sys\nprint(sum(map(int, sys.stdin.read().split())), end=' \\n')",
        ],
        ["print(5)", "print(sum(map(int, input().split())) + 1)", "input(); 1 / 0", "import os; os._exit(0)"],
    ),
    "surrogates": (
        asserts(r"assert f('\ud800é') == '\ud800é!'", r"assert f('\d') == '\\d!'"),
        ["def f(text): return text + '!'"],
        ["def f(text): return text"],
    ),
}


@needs_bwrap
@pytest.mark.parametrize("name", PROBLEMS)
def test_right_programs_get_one_and_wrong_ones_zero(name: str) -> None:
    row, right, wrong = PROBLEMS[name]
    settings = {"signature_column": "signature_text"} if "signature_text" in row else {}
    assert [value(program, row, **settings) for program in right] == [1.0] * len(right)
    assert [value(program, row, **settings) for program in wrong] == [0.0] * len(wrong)


ADD = asserts("assert add(2, 3) == 5", "assert add(20, 30) == 50")
FAILURES = {
    "while True: pass": "timeout at test 1",
    "def add(a, b):\n    while True: pass": "timeout at test 1",
    "def add(a, b):\n    import time; time.sleep(60)": "timeout at test 1",
    "def add(a, b): return [0] * 10 ** 10": "test 1: MemoryError",
    "held = []\nwhile True: held.append(bytearray(1 << 20))": "MemoryError",
    "def add(a, b): return 'x' * (100 << 20)": "test 1: ",
    "def add(a, b): return add(a, b)": "test 1: RecursionError: maximum recursion depth exceeded",
    "def add(a, b): 1 / 0": "test 1: ZeroDivisionError: division by zero",
    "def add(a, b): return 5": "test 2: AssertionError",
    "class Mine(Exception): pass\ndef add(a, b): raise Mine('x')": "test 1: ProgramError: Mine: x",
    "import os; os.kill(os.getpid(), 11)": "EOFError: the program's process ended",
    "import numpy": "ModuleNotFoundError: No module named 'numpy'",
    "def add(a, b) return": "SyntaxError: expected ':' (<program>, line 1)",
    "a = '\\0'": "NameError: name 'add' is not defined",
}


@needs_bwrap
@pytest.mark.parametrize("program", FAILURES)
def test_why_a_program_failed(program: str) -> None:
    verdict = verdict_of(program, ADD, Limits(seconds=1.5 if "timeout" in FAILURES[program] else 8.0))
    assert verdict.passed < verdict.total == 2
    assert verdict.reason.removeprefix("test 1: ").startswith(FAILURES[program].removeprefix("test 1: "))


@needs_bwrap
def test_partial_values_are_shares_of_the_tests() -> None:
    row = asserts("assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3", "assert f(4) == 4")
    assert value("def f(x): return x if x != 2 else 0", row, partial=True) == 0.75
    assert value("import os\ndef f(x): return x if x < 3 else os._exit(0)", row, partial=True) == 0.5
    assert value("def f(x):\n    while x == 4: pass\n    return x", row, partial=True, seconds=1.5) == 0.75
    assert value("def f(x): return x if x != 2 else 0", row) == 0.0
    hard = {**row, "challenge_test_list": ["assert f(-1) == 1"] * 4}
    assert value("def f(x): return x", hard, partial=True) == 1.0
    assert value("def f(x): return x", hard, partial=True, challenge=True) == 0.5
    texts = {"inputs": ["1", "2", "3", "4"], "outputs": ["1", "2", "3", "4"]}
    assert value("x = int(input())\nprint(x if x != 2 else 0)", texts, partial=True) == 0.75


@needs_bwrap
def test_many_tests_and_long_reasons_are_all_told() -> None:
    row = asserts(*(f"assert f({number}) == {number}" for number in range(300)))
    late = "def f(x):\n    if x < 200: raise ValueError('\u00e9' * 400)\n    return x"
    assert value(late, row, partial=True, output_kib=1, seconds=20.0) == pytest.approx(100 / 300)
    assert value("def f(x): return x", row, output_kib=1, seconds=20.0) == 1.0


# Programs that want 1 without adding anything.
TRICKS = {
    "exit": "import sys; sys.exit(0)",
    "hard exit": """
        import os
        def add(a, b): os._exit(0)
    """,
    "system exit in the test": "def add(a, b): raise SystemExit(0)",
    "equals everything": """
        class E:
            __eq__ = lambda s, o: True
            __hash__ = None
        def add(a, b): return E()
    """,
    "a number that equals everything": """
        class E(int):
            __eq__ = lambda s, o: True
            __ne__ = lambda s, o: False
        def add(a, b): return E(7)
    """,
    "a metaclass that equals everything": """
        class M(type):
            __eq__ = lambda s, o: True
            __hash__ = type.__hash__
        class E(metaclass=M): pass
        def add(a, b): return E
    """,
    "a text that hides": """
        class E(str):
            __class__ = int
            __eq__ = lambda s, o: True
        def add(a, b): return E('x')
    """,
    "own builtins": """
        import builtins
        builtins.AssertionError = type('Never', (BaseException,), {})
        builtins.__build_class__ = builtins.isinstance = lambda *a: True
        def add(a, b): return 0
    """,
    "own hooks": """
        import sys, atexit, os
        sys.excepthook = lambda *a: os._exit(0)
        atexit.register(os._exit, 0)
        sys.settrace(lambda *a: None)
        add = None
    """,
    "printed verdicts": """
        print('{"ready": true}\\n{"passed": true}\\n{"passed": true}', flush=True)
        def add(a, b): print('{"passed": true}\\n' * 9, flush=True)
    """,
    "verdicts in every file": """
        import os
        for number in range(64):
            try: os.write(number, b'{"passed": true}\\n' * 3)
            except OSError: pass
        def add(a, b): return 0
    """,
    "replies ahead of the questions": """
        import os
        for number in range(3, 64):
            try:
                os.write(number, b'{"value": null}\\n{"value": {"dict": [["add", true]]}}\\n')
                os.write(number, b'{"value": true}\\n' * 4)
            except OSError: pass
        def add(a, b): return 0
    """,
    "the wire's own functions": """
        from gift.rewards.programs import wire
        wire.FUNCTIONS['equal'] = lambda *a: True
        wire.Line.encode = lambda self, value: {'runner': 0}
        def add(a, b): return object()
    """,
    "the runner's objects": """
        from gift.rewards.programs.wire import Remote
        import gc
        line = [each for each in gc.get_objects() if type(each).__name__ == 'Line'][0]
        def add(a, b): return Remote(line, 0)
    """,
    "a class in the runner": """
        import gc
        line = [each for each in gc.get_objects() if type(each).__name__ == 'Line'][0]
        def add(a, b):
            made = {"make": ["dict", [[["__eq__", {"program": line._keep(lambda *a: True)}]]]]}
            bases = {"make": ["tuple", [[{"type": "int"}]]]}
            line.send({"do": "call", "args": [{"type": "type"}, "E", bases, made], "kwargs": {}})
            line.receive()
            line.send({"do": "call", "args": [{"runner": -1}, 0], "kwargs": {}})
            line.receive()
            return line.decode({"runner": 0})
    """,
    "answers from memory": """
        import gc, sys
        texts = [each for each in gc.get_objects() if isinstance(each, (dict, list, tuple))]
        frame = sys._getframe()
        while frame:
            texts.append(frame.f_globals | frame.f_locals)
            frame = frame.f_back
        found = [text for text in map(repr, texts) if "".join(reversed("(dda tressa")) in text]
        def add(a, b): return a + b if found else 0
    """,
    "the runner's memory": """
        import ctypes, os
        libc = ctypes.CDLL(None)
        parent = os.getppid()
        opened = [path for path in (f"/proc/{parent}/mem", "/proc/self/mem") if os.path.exists(path)]
        attached = libc.ptrace(16, parent, 0, 0) == 0
        local = (ctypes.c_char * 16)()
        class Piece(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
        ours, theirs = Piece(ctypes.addressof(local), 16), Piece(id(None), 16)
        read = libc.process_vm_readv(parent, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) > 0
        def add(a, b): return a + b if opened or attached or read else 0
    """,
    "the runner's end": """
        import os
        def add(a, b): os.kill(os.getppid(), 9)
    """,
    "everybody's end": """
        import os
        os.kill(-1, 9)
    """,
    "the runner's files": """
        import os
        for path in ('/code/main.py', '/code/gift/rewards/programs/wire.py', '/prelude.py', '/tmp/json.py'):
            try: open(path, 'w').write('raise SystemExit(0)')
            except OSError: pass
        def add(a, b): return 0
    """,
    "the runner's limits": """
        import os, resource
        resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))
        add = max
    """,
    "arguments changed": """
        def add(a, b):
            a.clear()
            b.clear()
            return 0
    """,
}


def test_the_tricks_aim_at_what_is_there() -> None:
    named = re.findall(r"/code/(gift/\w.+?)\.py|from (gift[.\w]+ import [a-z]\w*|gift[.\w]+)", str(TRICKS))
    aims = {(path or re.sub(r" import |\.", "/", name)) + ".py" for path, name in named}
    assert aims == set(FILES)


@needs_bwrap
@pytest.mark.parametrize("trick", TRICKS)
def test_a_verdict_cannot_be_forged(trick: str) -> None:
    assert verdict_of(textwrap.dedent(TRICKS[trick]), ADD, Limits(seconds=5.0)).passed == 0


# Programs that answer the test's own words: Python's functions, its modules, the problem's helpers.
IMPOSTORS = [
    ("set = lambda values: 0\nf = lambda x: x", "assert set(f((1, 2))) == set((3,))"),
    ("abs = lambda x: 0\nf = lambda x: x", "assert abs(f(1) - 2) < 1e-6"),
    ("class D:\n    __sub__ = __rsub__ = __abs__ = lambda *a: 0\nf = lambda x: D()", "assert abs(f(1) - 2) < 1e-6"),
    ("class math: isclose = lambda *a, **k: True\nf = lambda x: x", "assert math.isclose(f(1), 2)"),
    ("import math\nmath.isclose = lambda *a, **k: True\nf = lambda x: x", "assert math.isclose(f(1), 2)"),
    ("class L(list):\n    __contains__ = lambda s, x: True\nf = lambda x: L()", "assert 2 in f(1)"),
    (
        "class L:\n    __contains__ = lambda s, x: True\n    __iter__ = lambda s: iter([])\nf = lambda x: L()",
        "assert 2 in f(1)",
    ),
    ("class L:\n    __lt__ = __gt__ = lambda s, x: True\nf = lambda x: L()", "assert 1 < f(1) < 3"),
    ("def f(x): raise AssertionError", "assert f(1) == 2"),
    ("AssertionError = BaseException\nf = lambda x: x", "assert f(1) == 2"),
    ("def f(x): raise StopIteration", "assert all(a == b for a, b in zip(map(f, [1, 2]), [5, 6]))"),
    ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == 3, [1, 2]))"),
    ("def f(x=0): raise StopIteration", "for each in iter(f, 3):\n    assert each == 2"),
    ("def f(x):\n    x[0] = 2\n    return x", "x = [1]\nassert f(x) == [1]\nassert x == [1]"),
]


@needs_bwrap
@pytest.mark.parametrize(("program", "test"), IMPOSTORS)
def test_the_words_of_a_test_are_not_the_programs(program: str, test: str) -> None:
    assert verdict_of(program, asserts(test), Limits()) != Verdict(1, 1)
    assert verdict_of("def f(x): return x", asserts("assert f(1) == 1"), Limits()) == Verdict(1, 1)


BROKEN = [
    ({}, "the row has no tests"),
    ({"test_list": []}, "the row has no tests"),
    ({"test_list": None}, "the row has no tests"),
    ({"test_list": ["assert f() =="]}, "test 1 is no Python"),
    ({"test_list": ["assert f() == 1", "f()"]}, "test 2 asserts nothing"),
    ({"test_list": ["# nothing"]}, "test 1 asserts nothing"),
    ({"test_list": ["assert 1 == 1"]}, "the tests use no name of the program"),
    ({"test": "def check(c): assert True", "entry_point": "f"}, "check does not use the program"),
    ({"test_list": [1]}, "must be a text or a list of texts"),
    ({"test_list": ["assert f() == 1"], "test_setup_code": "x ="}, "test_setup_code is no Python"),
    ({"test_list": ["assert f() == 1"], "test_imports": ["import numpy"]}, "No module named 'numpy'"),
    ({"test_list": ["import numpy\nassert numpy.isclose(f(), 1)"]}, "test 1: No module named 'numpy'"),
    (
        {"test": "def check(c):\n    import numpy\n    assert c() == 1", "entry_point": "f"},
        "test 1: No module named 'numpy'",
    ),
    ({"test_list": ["assert f() == 1"], "inputs": ["1"], "outputs": ["1"]}, "several kinds: test_list, inputs"),
    ({"test": "def check(c): assert c() == 1"}, "entry_point '' is no name"),
    ({"test": "assert f() == 1", "entry_point": "f"}, "defines no check"),
    ({"test": "def check(c): c()", "entry_point": "f"}, "asserts nothing"),
    ({"test": "def check(c):\nassert", "entry_point": "f"}, "test is no Python"),
    (
        {"test": "1 / 0\ndef check(c): assert c() == 1", "entry_point": "f"},
        "the tests' own code fails: ZeroDivisionError",
    ),
    ({"test_list": ["class A: pass\nassert f(A()) == 1"]}, "test 1 hands over a A; only plain values"),
    ({"inputs": ["1"], "outputs": []}, "1 inputs for 0 outputs"),
]


@needs_bwrap
@pytest.mark.parametrize(("row", "problem"), BROKEN)
def test_broken_tests_are_an_error_and_never_a_value(row: dict[str, Any], problem: str) -> None:
    for program in ("def f(x=0): return 1", "this is no program"):
        if problem.startswith(("test 1 hands over", "test 1: No module")) and "no program" in program:
            continue  # it is seen only when the test runs
        item = value(program, row)
        assert isinstance(item, BrokenTest)
        assert problem in str(item)


@needs_bwrap
def test_rows_are_judged_one_by_one() -> None:
    good, bad = "```python\ndef f(): return 1\n```", "```python\ndef f(): return 2\n```"
    tests = [["assert f() == 1"], ["assert f() == 1"], ["assert"], ["assert f() == 1"]]
    items = code_tests([""] * 4, [good, bad, good, "none"], [[]] * 4, test_list=tests)
    assert [item if isinstance(item, float) else type(item) for item in items] == [1.0, 0.0, BrokenTest, 0.0]


def test_a_signature_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'signatur'"):
        code_tests([""], [""], [[]], test=[""], entry_point=["f"], signature_column="signatur", signature=["def f():"])


def test_without_a_sandbox_no_row_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Score(rewards={"tests": Reward(function="code_tests")})
    prompts = pa.table({"prompt_id": ["a"], "prompt": ["p"], "test_list": [["assert f() == 1"]]})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"params.yaml: score.rewards.tests: .* install it"):
        load_plan(score, Asked(score, prompts))


@needs_bwrap
def test_a_sandbox_that_fails_later_is_the_rows_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(value("def f(): return 1", asserts("assert f() == 1")), SandboxError)
