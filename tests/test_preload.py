"""A stage as a fork of a Python that has its libraries: the same streams, signals, end and code as one started anew."""

import ast
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mini
import psutil
import pytest

from gift.workers.fork import READ_AT_IMPORT
from gift.workers.preload import FORKED, LIBRARIES, OURS, TRAINING, VLLM, kinds_of, modules_for, preloaded
from gift.workers.served import PRELOADED as VARIABLE

CLIENT = (
    "import sys; from gift.workers.served import run; code = run(sys.argv[1:]); sys.exit(77 if code is None else code)"
)
TOY = """
import os, sys, time
here, told = os.getcwd() == os.environ["PWD_TOLD"], os.environ.get("MORE")
print("out", sys.argv, here, "colorsys" in sys.modules, told, flush=True)
print("err", file=sys.stderr)
if sys.argv[1] == "exit":
    sys.exit(int(sys.argv[2]))
if sys.argv[1] == "raise":
    raise ValueError("a bug")
if sys.argv[1] == "sleep":
    open("pid", "w").write(str(os.getpid()))
    time.sleep(60)
"""


STAGE = """
import atexit, os, sys, threading, time, weakref
kept = "stages.helper" in sys.modules
from stages import helper, lasting
print(kept, helper.VALUE, __name__, os.environ.get("GIFT_VERBOSE"))
thing = type("Thing", (), {})()
weakref.finalize(thing, print, "my finalizer")
atexit.register(print, "my end")
def late():
    time.sleep(0.1)
    print("my thread")
threading.Thread(target=late).start()
"""
LASTING = """
import atexit, weakref
from pathlib import Path
Path("loaded").touch()
atexit.register(Path("ended").touch)
weakref.finalize(Path, Path("cleared").touch)
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A server with one small library, and a project with one module."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(TOY)
    env = {**os.environ, "PYTHONPATH": str(mini.ROOT), "PWD_TOLD": str(tmp_path)}
    with preloaded(["colorsys"], env) as own:
        while not any("gift.workers.server" in each.cmdline() for each in psutil.Process().children()):
            time.sleep(0.01)
        time.sleep(0.3)  # it imports while nobody asks
        yield own


def ask(env: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", CLIENT, *words], env=env, **streams)


def said(env: dict[str, str], *words: str) -> tuple[int, str, str]:
    client = ask(env, *words)
    out, err = client.communicate(timeout=30)
    return client.returncode, out, err


def test_a_fork_is_as_a_process_of_its_own(server: dict[str, str]) -> None:
    code, out, err = said({**server, "MORE": "more"}, "toy", "exit", "3")
    assert code == 3
    name = str(Path("toy.py").absolute())
    assert out == f"out {[name, 'exit', '3']} True True more\n"
    assert err == "err\n"


def test_a_bug_is_a_traceback_and_exit_code_1(server: dict[str, str]) -> None:
    code, _, err = said(server, "toy", "raise")
    assert code == 1
    assert err.rstrip().endswith("ValueError: a bug")


def test_code_that_was_edited_meanwhile_runs_as_it_is_now(server: dict[str, str]) -> None:
    assert said(server, "toy", "exit", "0")[0] == 0
    Path("toy.py").write_text("raise SystemExit(5)")
    assert said(server, "toy")[0] == 5


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A server that has imported a stage of the project, what the stage imports, and what that wants at its end."""
    monkeypatch.chdir(tmp_path)
    files = {"__init__": "", "toy": STAGE, "helper": "VALUE = 1", "lasting": LASTING}
    for name, content in files.items():
        (tmp_path / "stages").mkdir(exist_ok=True)
        (tmp_path / f"stages/{name}.py").write_text(content)
    env = {**os.environ, "PYTHONPATH": str(mini.ROOT)}
    with preloaded(["colorsys", "stages.helper", "stages.lasting"], env) as own:
        while not Path("loaded").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        yield own


ENDS = "my thread\nmy end\nmy finalizer\n"
"""As Python has them; what the server's modules registered is not among them."""


def test_code_of_the_project_is_imported_once_and_ends_as_a_process_of_its_own(ours: dict[str, str]) -> None:
    assert said(ours, "stages.toy") == (0, f"True 1 __main__ None\n{ENDS}", "")
    assert not Path("ended").exists()
    assert not Path("cleared").exists()


def test_what_was_edited_since_it_was_imported_is_imported_anew(ours: dict[str, str]) -> None:
    path = Path("stages/helper.py")
    before = path.stat()
    path.write_text("VALUE = 2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.rmtree("stages/__pycache__", ignore_errors=True)  # where Python itself goes by time and size
    assert said(ours, "stages.toy")[1].startswith("False 2")


def test_what_another_process_would_import_otherwise_is_imported_anew(
    ours: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said({**ours, "GIFT_VERBOSE": "1"}, "stages.toy")[1].startswith("False 1 __main__ 1")
    shutil.copytree("stages", tmp_path / "other/stages")
    (tmp_path / "other/stages/helper.py").write_text("VALUE = 33")
    monkeypatch.chdir("other")
    assert said(ours, "stages.toy")[1].startswith("False 33")


def test_variables_that_our_modules_read_when_they_are_imported_are_known() -> None:
    """A fork has them as the server did, unless it imports the modules anew."""
    found = set()
    for path in (mini.ROOT / "gift").rglob("*.py"):
        statements = [each for each in ast.parse(path.read_text()).body if isinstance(each, ast.Assign | ast.AnnAssign)]
        strings = {ast.unparse(each.targets[0]): each.value for each in statements if isinstance(each, ast.Assign)}
        for each in (part for statement in statements for part in ast.walk(statement)):
            if isinstance(each, ast.Call) and ast.unparse(each.func) == "os.environ.get":
                name = strings.get(ast.unparse(each.args[0]), each.args[0])
                found.add(ast.literal_eval(name))
    assert found == set(READ_AT_IMPORT)


def test_a_process_with_other_threads_starts_by_itself(server: dict[str, str]) -> None:
    assert said({**server, "OMP_NUM_THREADS": "7"}, "toy", "exit", "0")[0] == 77
    assert said({**server, VARIABLE: "gift-of-nobody"}, "toy", "exit", "0")[0] == 77
    assert said({name: value for name, value in server.items() if name != VARIABLE}, "toy", "exit", "0")[0] == 77


def sleeping(env: dict[str, str]) -> tuple["subprocess.Popen[str]", psutil.Process]:
    client = ask(env, "toy", "sleep")
    while not (path := Path("pid")).exists() or not path.read_text():
        time.sleep(0.01)
    return client, psutil.Process(int(path.read_text()))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1), (signal.SIGHUP, 129)])
def test_a_signal_goes_to_the_fork_and_its_end_is_that_of_the_process(
    server: dict[str, str], number: signal.Signals, code: int
) -> None:
    client, fork = sleeping(server)
    client.send_signal(number)
    client.communicate(timeout=10)
    assert client.returncode == code
    assert not fork.is_running()


def test_a_fork_ends_with_who_asked_for_it(server: dict[str, str]) -> None:
    client, fork = sleeping(server)
    client.kill()
    client.communicate()
    assert not psutil.wait_procs([fork], 10)[1]
    assert said(server, "toy", "exit", "0")[0] == 0, "the server goes on"


def test_two_forks_run_at_once(server: dict[str, str]) -> None:
    client, fork = sleeping(server)
    assert said(server, "toy", "exit", "4")[0] == 4
    assert fork.is_running()
    client.terminate()
    client.communicate()


@pytest.mark.parametrize("words", [b"", b"abc", struct.pack("q", 2**62), struct.pack("q", 3) + b"[1]"])
def test_who_asks_for_nothing_sensible_ends_no_stage(server: dict[str, str], words: bytes) -> None:
    client, fork = sleeping(server)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(f"\0{server[VARIABLE]}")
        stranger.sendall(words)
    assert said(server, "toy", "exit", "4")[0] == 4
    assert fork.is_running()
    client.terminate()
    client.communicate()


def test_a_server_ends_with_who_started_it(tmp_path: Path) -> None:
    code = (
        "import os; from gift.workers.preload import preloaded; c = preloaded([], dict(os.environ)); c.__enter__(); "
        "import psutil; print(psutil.Process().children()[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=mini.ROOT, stdout=subprocess.PIPE, text=True, check=False)
    pid = int(done.stdout)
    if psutil.pid_exists(pid):
        assert not psutil.wait_procs([psutil.Process(pid)], 10)[1]


def test_nothing_is_left_of_a_server() -> None:
    before = {each.pid for each in psutil.Process().children()}
    with preloaded([], dict(os.environ)):
        assert len({each.pid for each in psutil.Process().children()} - before) == 1
    assert {each.pid for each in psutil.Process().children()} <= before


@pytest.mark.parametrize(
    ("stages", "params", "in_process", "found"),
    [
        (["evaluate@r1", "report", "update@r1"], {}, True, []),
        (["score@r1", "reference@r1", "update@r1"], {}, True, [*LIBRARIES, *TRAINING]),
        (["reference@r1", "update@r1"], {"update": {"lora": {"r": 8}}}, False, [*LIBRARIES, "peft"]),
        (["generate_eval_base", "generate@r1"], {}, True, [*LIBRARIES, *VLLM]),
        (["generate@r1", "base", "report"], {"generate": {"engine": "transformers"}}, True, list(LIBRARIES)),
    ],
)
def test_only_what_the_stages_import_is_loaded(
    stages: list[str], params: dict[str, dict[str, object]], in_process: bool, found: list[str]
) -> None:
    ours = [*OURS, *(f"stages.{kind}" for kind in kinds_of(stages) if kind in FORKED)]
    assert modules_for(stages, params, in_process) == [*found, *(ours if found else [])]


def test_stages_that_are_forks_are_those_that_the_graph_starts_so() -> None:
    graph = (mini.ROOT / "dvc.yaml").read_text()
    assert set(FORKED) == set(re.findall(r"gift\.launch stages\.(\w+)", graph))
