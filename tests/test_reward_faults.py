"""Verifiers that do their worst: every other row is scored, statuses are right, time is bounded, nothing lives on."""

import time
from pathlib import Path

import psutil
import pytest
from test_score import METADATA, score_of, write_rollouts

from gift.scoring.score import score_parts
from gift.tables.parts import read_table
from gift.tables.scores import check_scores, everything

# What a row's column `mode` makes the function do.
HOSTILE = '''
import ctypes, json, os, signal, subprocess, sys, threading, time

KEPT = []

def note(pid):
    with open(os.path.join(os.environ["NOTES"], str(pid)), "w"):
        pass

def sleep_apart():
    """A grandchild in a session of its own, whose parent is gone."""
    if not os.fork():
        os.setsid()
        if not os.fork():
            note(os.getpid())
            time.sleep(600)
        os._exit(0)
    os.wait()

def child():
    note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid)

def loop():
    while True:
        pass

def eat():
    while True:
        KEPT.append(bytearray(2**26))

def eat_and_hide():
    try:
        eat()
    except MemoryError:
        KEPT.pop()

def recurse():
    return [recurse()]

def write():
    with open("large", "wb") as file:
        file.seek(2**31)
        file.write(b"x")

def say():
    for stream in (sys.stdout, sys.stderr):
        for _ in range(2**6):
            stream.write("x" * 2**20)

def everywhere(content):
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            os.write(number, content)
        except OSError:
            pass

def fork():
    os.fork()

def leave_and_die():
    sleep_apart()
    os._exit(0)

def elsewhere():
    os.chdir("/")

def leave_and_hang():
    sleep_apart()
    time.sleep(600)

def busy_thread():
    threading.Thread(target=time.sleep, args=(600,)).start()

def bomb():
    """The process dies in some later call, or between two."""
    threading.Timer(0.3, os._exit, (9,)).start()

ACTS = {
    "loop": loop, "bomb": bomb, "sleep": lambda: time.sleep(600), "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "child": child, "apart": sleep_apart, "fork": fork, "leave and die": leave_and_die, "thread": busy_thread,
    "apart and hang": leave_and_hang, "alarm": lambda: signal.alarm(1), "elsewhere": elsewhere,
    "eat": eat, "eat and hide": eat_and_hide, "eat at once": lambda: bytearray(2**40), "recurse": recurse,
    "write": write, "say": say, "garbage": lambda: everywhere(b"x" * 99), "line": lambda: everywhere(b"[0, 1]\\n"),
    "much garbage": lambda: everywhere(b"x" * 2**26), "close": lambda: os.closerange(0, 2**16),
    "quit": lambda: sys.exit(0), "exit": lambda: os._exit(0), "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort, "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "raise": lambda: 1 / 0,
    "exec": lambda: os.execv("/bin/sleep", ["sleep", "600"]),
}
RETURNS = {"nan": [float("nan")], "two": [1.0, 2.0], "none": [], "text": ["x"], "number": 1.0}

def hostile(prompts, completions, completion_ids, mode, **columns):
    ACTS.get(mode[0], lambda: None)()
    completion_ids[0].clear()  # the next function of this row must not see that
    return RETURNS.get(mode[0], [1.0])

def tame(prompts, completions, completion_ids, mode, **columns):
    return [float(len(completion_ids[0]))]
'''
EXPECTED = {
    **dict.fromkeys(("loop", "sleep", "stop", "apart and hang"), ("timeout", "no result after 1.5 s")),
    **dict.fromkeys(
        ("fine", "child", "apart", "fork", "thread", "bomb", "alarm", "elsewhere", "eat and hide", "say"), ("ok", None)
    ),
    **dict.fromkeys(("eat", "eat at once"), ("error", "MemoryError")),
    **dict.fromkeys(
        ("garbage", "line", "much garbage"), ("error", "the worker process wrote to the connection of the pool")
    ),
    **dict.fromkeys(("close", "exec"), ("error", "the worker process closed its connection")),
    **dict.fromkeys(("leave and die", "exit"), ("error", "the worker process died (exit code 0)")),
    "recurse": ("error", "RecursionError: maximum recursion depth exceeded"),
    "write": ("error", "OSError: [Errno 27] File too large"),
    "quit": ("error", "SystemExit: 0"),
    "segfault": ("error", "the worker process died (SIGSEGV)"),
    "abort": ("error", "the worker process died (SIGABRT)"),
    "kill": ("error", "the worker process died (SIGKILL, perhaps for its memory)"),
    "raise": ("error", "ZeroDivisionError: division by zero"),
    "nan": ("invalid", "returned nan; must be finite, or None to abstain"),
    "two": ("invalid", "returned [1.0, 2.0] for one completion; must be a list of one number or None"),
    "none": ("invalid", "returned [] for one completion; must be a list of one number or None"),
    "text": ("invalid", "returned the text 'x'; must be a number or None"),
    "number": (
        "invalid",
        "returned 1.0; must be a list of one number or None (TypeError: 'float' object is not iterable)",
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    for name in ("rewards", "notes"):
        Path(name).mkdir()
    Path("rewards/hostile.py").write_text(HOSTILE)
    return tmp_path


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_the_worst_costs_its_own_rows_and_nothing_lives_on() -> None:
    before = {child.pid for child in psutil.Process().children()}
    modes = [*EXPECTED, "fine", "fine"]
    names = {"mine": "rewards/hostile.py:hostile", "tame": "rewards/hostile.py:tame"}
    score = score_of(timeout_seconds=1.5, **{name: {"function": function} for name, function in names.items()})
    score = score.model_copy(update={"memory_gib": 0.5})
    start = time.monotonic()
    rollouts, prompts = write_rollouts(modes)
    score_parts(Path("scores"), rollouts, prompts, score, 2, METADATA, "score@r1")
    assert time.monotonic() - start < 60
    rows = read_table(Path("scores"), everything(score.rewards), check_scores)[0].to_pylist()
    assert [row["tame"] for row in rows] == [2.0] * len(rows)
    found = {
        mode: {(row["mine_status"], row["mine_message"]) for row in rows[2 * at : 2 * at + 2]}
        for at, mode in enumerate(modes)
    }
    assert found == {mode: {expected} for mode, expected in EXPECTED.items()}
    started = [int(path.name) for path in Path("notes").iterdir()]
    assert len(started) >= 2 * 4
    assert [pid for pid in started if alive(pid)] == []
    assert {child.pid for child in psutil.Process().children()} == before
