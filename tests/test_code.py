"""The code of a stage is one number: what the fingerprint sees, how a number is given, and where a stage stops."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from gift.cli import main as cli
from gift.project import code
from gift.project.errors import UserError
from gift.project.work import Work
from stages.code import main as write_codes

MODULE = '''"""A module."""
from gift.used import f

class A:
    """A class."""

    x: int = 1
    """An attribute."""

def g(y):
    """A function."""
    if y:
        raise UserError(f"{y}: wrong; " "mend it")
    return f(f"{y:.3f} and {{{y}}}")
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the stages one (gift.module, gift.used, a late gift.late) and two (nothing)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    monkeypatch.setattr(code, "RESULTS", tmp_path / "stages/results.yaml")
    monkeypatch.setattr(code, "UNSEEN", {tmp_path / "gift/project/console.py"})
    files = {
        "stages/__init__.py": "",
        "stages/one.py": "from gift.module import g\nfrom gift.project import console\n",
        "stages/two.py": "import json\n",
        "stages/results.yaml": "# keep me\ntwo: {1: []}\none: {3: []}\n",
        "gift/__init__.py": "",
        "gift/module.py": MODULE,
        "gift/used.py": "def f(x):\n    from gift.late import y\n    return y\n",
        "gift/late.py": "y = 1\n",
        "gift/unused.py": "z = 1\n",
        "gift/project/__init__.py": "",
        "gift/project/console.py": "width = 80\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def replace(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\nclass", "\n# a comment\n\n\nclass"),
        ("x: int = 1", "x: int = (\n        1)"),
        ("A module.", "Another module."),
        ("A class.", "Another class."),
        ("An attribute.", "Another."),
        ('    """A function."""\n', ""),
        ("mend it", "do mend it"),
        ("wrong; ", "not right; "),
        ('f"{y}: wrong; " "mend it"', '"mend it"'),
    ],
)
def test_what_changes_no_result_changes_no_fingerprint(old: str, new: str) -> None:
    before = code.fingerprint("one")
    replace("gift/module.py", old, new)
    assert code.fingerprint("one") == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("int = 1", "int = 2"),
        ("int = 1", "int = 1.0"),
        ("int = 1", 'int = "1"'),
        ("x: int", "x: float"),
        (":.3f", ":.4f"),
        (" and ", " or "),
        ("if y", "if not y"),
        ("UserError", "ValueError"),
        ("import f", "import f as g"),
        ("class A:", "class A(dict):"),
    ],
)
def test_what_may_change_a_result_changes_the_fingerprint(old: str, new: str) -> None:
    before = code.fingerprint("one")
    replace("gift/module.py", old, new)
    assert code.fingerprint("one") != before


def test_every_file_counts_that_the_stage_imports_however_far_and_no_other() -> None:
    for name, counts in {
        "stages/one.py": True,
        "gift/__init__.py": True,
        "gift/used.py": True,
        "gift/late.py": True,
        "gift/unused.py": False,
        "gift/project/console.py": False,
        "stages/two.py": False,
    }.items():
        before = code.fingerprint("one")
        Path(name).write_text(Path(name).read_text() + "more = 1\n")
        assert (code.fingerprint("one") != before) == counts, name


def test_the_fingerprint_is_the_same_under_every_version_of_python() -> None:
    """A fingerprint that is shipped must be that of every user's Python; this one was made by 3.11, 3.12 and 3.13."""
    assert code.fingerprint("one") == "01c45ddfd322"


def test_a_fingerprint_gets_the_number_or_the_next_one() -> None:
    made = code.fingerprint("one")
    assert code.code_of("one") == f"edited {made}"
    assert code.record("one", same=True) == f'one: {{3: ["{made}"]}}'
    assert code.record("one", same=True) == f'one: {{3: ["{made}"]}}'
    assert code.code_of("one") == "3"
    replace("gift/module.py", "int = 1", "int = 2")
    other = code.fingerprint("one")
    assert code.record("one", same=False) == f'one: {{3: ["{made}"], 4: ["{other}"]}}'
    assert code.code_of("one") == "4"
    replace("gift/module.py", "int = 2", "int = 1")
    assert code.code_of("one") == "3", "code as it was makes what it made"
    lines = Path("stages/results.yaml").read_text().splitlines()
    assert lines == ["# keep me", "two: {1: []}", f'one: {{3: ["{made}"], 4: ["{other}"]}}']


def test_a_fingerprint_that_reads_as_a_number_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for made in ("123456789012", "12345e678901", "0x1234567890"):
        monkeypatch.setattr(code, "fingerprint", lambda stage, made=made: made)
        code.record("one", same=True)
        assert code.code_of("one") == "3"


@pytest.mark.parametrize("line", ["one: 3", "one: {3: abc}", "one: {3: [123]}", "one: {x: []}"])
def test_results_that_are_not_in_their_form_are_one_line(line: str) -> None:
    Path("stages/results.yaml").write_text(line + "\n")
    with pytest.raises(UserError, match=r"results.yaml: one: must be a map of numbers to fingerprints"):
        code.code_of("one")


def test_the_command_shows_and_lists() -> None:
    def said(*words: str) -> str:
        return str(CliRunner().invoke(cli, ["code", *words]).output)

    made = code.fingerprint("one")
    assert re.search(rf"^one +{made}  edited {made}$", said(), re.MULTILINE)
    assert said("--same", "one") == f'one: {{3: ["{made}"]}}\n'
    assert re.search(rf"^one +{made}  results 3$", said(), re.MULTILINE)
    assert said("--same").startswith("two: {1: [")  # all that are edited; `one` is not
    assert said("--same") == ""
    assert "--same or --other, not both" in said("--same", "--other", "one")
    assert "oen: no such stage; did you mean 'one'?" in said("--same", "oen")


def test_a_file_whose_stage_has_not_changed_is_not_touched() -> None:
    code.record("one", same=True)
    assert CliRunner().invoke(write_codes, ["data/code"]).output == "code: stages 2, edited two\n"
    assert Path("data/code/one.txt").read_text() == "3\n"
    inodes = {path.name: path.stat().st_ino for path in Path("data/code").iterdir()}
    Path("stages/two.py").write_text("import csv\n")
    CliRunner().invoke(write_codes, ["data/code"])
    again = {path.name: path.stat().st_ino for path in Path("data/code").iterdir()}
    assert {name for name in inodes if inodes[name] != again[name]} == {"two.txt"}


def test_a_stage_whose_code_is_not_the_recorded_one_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    code.check_code("one")  # outside DVC, where there is no file
    monkeypatch.setenv("DVC_STAGE", "one@r1")
    with pytest.raises(UserError, match=r"data/code/one.txt: missing; run `dvc repro code`"):
        code.check_code("one")
    CliRunner().invoke(write_codes, ["data/code"])
    code.check_code("one")
    replace("gift/used.py", "return y", "return 2 * y")
    for variable in ("DVC_STAGE", None):  # a file is believed also where the stage is started by hand
        if variable is None:
            monkeypatch.delenv("DVC_STAGE")
        with pytest.raises(UserError, match=r"one: its code is not what data/code/one.txt says .*run `dvc repro code`"):
            Work("one@r1", {})
    assert not Path("data/.work").exists()


def begin() -> Work:
    work = Work("one@r1", {"seed": 0})
    (work.folder / "part").write_text("a part")
    return work


def test_code_that_is_edited_while_the_stage_runs_publishes_nothing_and_loses_nothing() -> None:
    CliRunner().invoke(write_codes, ["data/code"])
    work = begin()
    replace("gift/late.py", "y = 1", "y = 2")
    CliRunner().invoke(write_codes, ["data/code"])  # and somebody ran `dvc repro code` meanwhile
    with pytest.raises(UserError, match="one: its code was edited while it ran, so nothing is published"):
        work.publish({work.folder / "part": Path("out")})
    assert not Path("out").exists()
    replace("gift/late.py", "y = 2", "y = 1")
    CliRunner().invoke(write_codes, ["data/code"])
    again = Work("one@r1", {"seed": 0})
    again.publish({again.folder / "part": Path("out")})
    assert Path("out").read_text() == "a part"


def test_unfinished_work_outlives_an_edit_of_code_that_the_stage_does_not_run() -> None:
    begin()
    replace("gift/unused.py", "z = 1", "z = 2")
    replace("gift/module.py", "mend it", "do mend it")
    assert (Work("one@r1", {"seed": 0}).folder / "part").exists()
    replace("gift/used.py", "return y", "return 2 * y")
    assert not (Work("one@r1", {"seed": 0}).folder / "part").exists()
