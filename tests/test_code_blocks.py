"""Which of a completion's fenced blocks is the program, in linear time whatever the completion holds."""

import time

import pytest
from bubblewrap import WHY_NOT

from gift.rewards.programs.blocks import program_of
from gift.rewards.programs.code_tests import code_tests
from gift.rewards.programs.tasks import wanted_names

F, G = "def f(x):\n    return x", "def g(x):\n    return x"
PYTHON = f"```python\n{F}\n```"
BLOCKS = [
    ("```python\na = 1\n```", "a = 1"),
    ("```\na = 1\n```", "a = 1"),
    ("```py\na\n```\ntext\n```python\nb\n```\nend", "b"),
    ("```python\na\n```\n```bash\nrm\n```", "a"),
    ("~~~python\na\n~~~", "a"),
    ("````python\n'''\n```\n'''\n````", "'''\n```\n'''"),
    ("```python title=x\na\n```", "a"),
    ("```python\n# ```inline``` is no fence\na\n```", "# ```inline``` is no fence\na"),
    ("```python\n\n```", ""),
    ("no block", None),
    ("use `a` here", None),
    # A plain block counts where none is marked as Python.
    (f"{PYTHON}\nOutput:\n```\n4\n```", F),
    ("```\na\n```\n```\nb\n```", "b"),
    ("```text\na\n```", None),
    (f"```\n{F}\n```\n```python\nprint(f(2))\n```", F),
    *((f"```{language}\n{F}\n```\n```\n4\n```", F) for language in ("py3", "python3", "Python3.11", "python2")),
    *((f"```{language}\n{F}\n```\n```\n4\n```", F) for language in ("{.python}", "{python}", "python:f.py")),
    *((f"```{language}\na\n```\n```\nb\n```", "b") for language in ("pycon", "python-repl", "pytest", "cpp")),
    # Of several the one that defines what is wanted, which is f.
    (f"{PYTHON}\nFor instance:\n```python\nprint(f(2))\n```", F),
    (f"{PYTHON}\n```python\nassert f(2) == 4\nx = f(3)\n    f = 2\n```", F),
    (f"{PYTHON}\n```python\nf = abs\n```", "f = abs"),
    (f"{PYTHON}\n```python\nasync def f(x): return 2\n```", "async def f(x): return 2"),
    (f"{PYTHON}\n```python\nf: object = abs\n```", "f: object = abs"),
    (f"{PYTHON}\n```python\nclass f(int): pass\n```", "class f(int): pass"),
    (f"{PYTHON}\n```python\nf == 3\n```", F),
    (f"{PYTHON}\n```python\ndef ff(): pass\n```", F),
    ("```python\na\n```\n```python\nb\n```", "b"),
    # Inside a list the fence's margin is no part of the program.
    (f"1. So:\n   ```python\n   {F.replace(chr(10), chr(10) + '   ')}\n   ```", F),
    (f"1. ```python\n   {F.replace(chr(10), chr(10) + '   ')}\n   ```", F),
    (f"- ```python\n\t{F.replace(chr(10), chr(10) + '  ')}\n\n  ```", F + "\n"),
    ("  ```python\na\n    b\n  ```", "a\n  b"),
    ("```python\n    a\n```", "    a"),
    # A thought ends with what is open in it, and its blocks count where the answer has none.
    (f"<think>\n```python\na\n```</think>\n{PYTHON}", F),
    (f"<think>\n```python\na\n</think>\n{PYTHON}", F),
    (f"<think>\n{PYTHON}\n</think>\nSo:\n```python\n{G}\n```", G),
    (f"<think>\n{PYTHON}\n</think> So it is.", F),
    (f"<think>\n{PYTHON}\n</think>\n```text\n4\n```", F),
    (f"No block.</think>{PYTHON}", F),
    ("```python\nf = '</think>'\n```", "f = '</think>'"),
    # One that is open at the end counts where no closed one defines as much.
    ("```python\na", "a"),
    ("```python\na\n```\n```python\nb", "a"),
    (f"```python\na\n```\n```python\n{F}", F),
    (f"{PYTHON}\n```python\ndef f(x):\n    ret", F),
    ("```\n4\n```\n```python\na", "a"),
    # The lines of Python, and no others.
    ("```python\r\na\r\nb\r\n```\r\n", "a\nb"),
    ("```python\na = '\u2028\x0c\x85'\n```", "a = '\u2028\x0c\x85'"),
]


@pytest.mark.parametrize(("text", "program"), BLOCKS)
def test_the_block_that_is_the_program(text: str, program: str | None) -> None:
    assert program_of(text, wanted=["f"]) == program
    assert program_of(text, whole=True, wanted=["f"]) == (text if program is None else program)


def test_without_a_wanted_name_the_last_closed_block_counts() -> None:
    assert program_of(f"{PYTHON}\n```python\nprint(f(2))\n```\n```python\n{F}") == "print(f(2))"
    both = f"```python\n{F}\n{G}\n```\n```python\n{G}\n```"
    assert program_of(both, wanted=["f", "g"]) == f"{F}\n{G}"
    assert program_of(both, wanted=["g"]) == G


def test_what_a_rows_tests_want() -> None:
    assert wanted_names({"test_list": ["assert f(C(1)) == 1", "assert f(2) == abs(3)"]}) == ["C", "f"]
    assert wanted_names({"test_list": ["assert sum(1, 2) == 3"]}) == ["sum"]
    assert wanted_names({"test": "def check(c): assert c(1)", "entry_point": "f"}) == ["f"]
    assert wanted_names({"inputs": ["1"], "outputs": ["1"]}) == wanted_names({"test_list": ["assert"]}) == []
    assert program_of(PYTHON, wanted=["f("]) == F


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_a_usage_behind_the_program_costs_nothing() -> None:
    program = "```python\ndef f(x): return 2 * x\n```"
    completion = f"{program}\nUse it:\n```python\nprint(f(2))\n```\nOutput:\n```\n4\n```"
    assert code_tests([""], [completion], [[]], test_list=[["assert f(2) == 4"]], seconds=30.0) == [1.0]
    check = {"test": ["def check(c): assert c(2) == 4"], "entry_point": ["f"]}
    assert code_tests([""], [completion], [[]], seconds=30.0, **check) == [1.0]


def test_degenerate_completions_take_linear_time() -> None:
    start = time.process_time()
    for piece in ("~", "`", "~ ", " ", "\t", "1. ", "```py`\n", "~~~\n", "</think>", "f:\n", "f :", "async "):
        text = piece * (30_000 // len(piece))
        for each in (f"{text}`", f"```python\n{text}`\n```"):
            program_of(each, wanted=["f"])
    assert time.process_time() - start < 0.5
