"""The sandbox: a program sees nothing, reaches nothing, takes no more than its limits, and leaves nothing behind."""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from bubblewrap import WHY_NOT

from gift.sandbox import seccomp
from gift.sandbox.run import Limits, Result, SandboxError, check_sandbox, run

ROOT = Path(__file__).parents[1]
SANDBOX = sorted((ROOT / "gift/sandbox").glob("*.py"))
OTHER_USER = 54321
SECRET = "a secret of the environment"
MARKER = "gift-left-over"
NAME_ITSELF = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(15, b"{MARKER}", 0, 0, 0)
"""

if WHY_NOT:
    pytest.skip(WHY_NOT, allow_module_level=True)

Runner = Callable[..., Result]


def python_for_others() -> str | None:
    """A Python that any user may read: this one's own, or the system's."""
    for name in (f"{sys.base_prefix}/bin/python3", "/usr/bin/python3"):
        probe = [name, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(probe, user=OTHER_USER, group=OTHER_USER, extra_groups=[], check=False).returncode == 0:
                return name
        except OSError:
            continue
    return None


@pytest.fixture(scope="session")
def other_user() -> Iterator[Runner]:
    """`run` in a process of an ordinary user, where these tests are root's."""
    if os.geteuid() != 0:
        pytest.skip("these tests are an ordinary user's already")
    python = python_for_others()
    if python is None:
        pytest.skip("no Python 3.11 that other users may read")
    folder = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(Path(click.__file__).parent, folder / "click")
        for name in ("__init__", "project/__init__", "project/errors", *(f"sandbox/{path.stem}" for path in SANDBOX)):
            (folder / "gift" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "gift" / f"{name}.py", folder / "gift" / f"{name}.py")
        shutil.copy(ROOT / "tests" / "sandbox_user.py", folder)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        with subprocess.Popen(
            [python, "-B", folder / "sandbox_user.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=OTHER_USER,
            group=OTHER_USER,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "SECRET": SECRET},
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            asks, answers = process.stdin, process.stdout

            def ask(program: str, stdin: str = "", **limits: Any) -> Result:
                print(json.dumps({"program": program, "stdin": stdin, "limits": limits}), file=asks, flush=True)
                return Result(**json.loads(answers.readline()))

            yield ask
            asks.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["this_user", "other_user"])
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """run(program, stdin, **limits), as the user of the tests and, where that is root, as an ordinary one."""
    ask = request.getfixturevalue("other_user") if request.param == "other_user" else None
    monkeypatch.setenv("SECRET", SECRET)

    def start(program: str, stdin: str = "", **limits: Any) -> Result:
        program = textwrap.dedent(program)
        return ask(program, stdin, **limits) if ask else run(program, stdin=stdin, limits=Limits(**limits))

    return start


def told(result: Result) -> Any:
    """What the program printed, as JSON; it must have ended well."""
    assert result.status == "ok", result
    return json.loads(result.stdout)


def named(marker: str = MARKER) -> list[str]:
    """The processes of this machine that have given themselves the marker as a name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == marker[:15]:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_program_runs_with_its_input_and_modules(sandbox: Runner) -> None:
    result = sandbox(
        "import sys, json, decimal, random, re\nprint(input()[::-1])\nprint('x', file=sys.stderr)", "abc\n"
    )
    assert result == Result("ok", 0, "cba\n", "x\n")
    assert run("from folder.part import value\nprint(value)", {"folder/part.py": "value = 7"}).stdout == "7\n"


@pytest.mark.parametrize(
    ("program", "status", "code"),
    [
        ("raise SystemExit(3)", "failed", 3),
        ("1 / 0", "failed", 1),
        ("def", "failed", 1),
        ("import os; os.kill(os.getpid(), 11)", "killed", 139),
        ("bytearray(1 << 40)", "memory", 1),
        ("print('x' * 100_000)", "output", None),
        ("import sys; sys.stderr.write('x' * 100_000)", "output", None),
        ("import os; os._exit(0)", "ok", 0),
    ],
)
def test_how_a_run_ended(program: str, status: str, code: int | None) -> None:
    result = run(program)
    assert (result.status, result.exit_code) == (status, code)
    assert len(result.stdout) + len(result.stderr) <= 2 * 64 * 1024


def test_no_file_outside_can_be_read(sandbox: Runner) -> None:
    wanted = [__file__, str(ROOT / "params.yaml"), "/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/maps"]
    wanted += ["/bin/sh", "/usr/bin/env", "/dev/mem", "/dev/tty", "/sys/kernel", "/run", "/home", click.__file__]
    for path in wanted[:4]:
        assert Path(path).exists()
    program = f"""
        import json, os
        print(json.dumps([path for path in {wanted} if os.path.lexists(path)] + sorted(os.listdir("/"))))
    """
    shown = told(sandbox(program))
    assert set(shown) <= {"code", "dev", "etc", "lib", "lib64", "prelude.py", "tmp", "usr", *sys.base_prefix.split("/")}


def test_packages_the_environment_and_open_files_stay_outside(sandbox: Runner) -> None:
    program = """
        import importlib.util, json, os, sys
        files = []
        for number in range(3, 64):
            try:
                files.append(os.fstat(number).st_mode)
            except OSError:
                pass
        names = [name for name in ("click", "pytest", "pip", "gift") if importlib.util.find_spec(name)]
        print(json.dumps([sorted(os.environ), files, names, sys.flags.no_site, os.getuid() not in (0, 54321)]))
    """
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    try:
        assert told(sandbox(program)) == [["LC_CTYPE", "PWD", "PYTHONHASHSEED"], [], [], 1, True]
    finally:
        os.close(reads)
        os.close(writes)


def test_nothing_outside_the_scratch_folder_can_be_written(sandbox: Runner) -> None:
    program = """
        import json, os
        done = []
        for folder in ("/", "/dev", "/code", "/etc", "/usr", "/usr/lib", os.path.dirname(os.__file__), "/tmp"):
            try:
                with open(f"{folder}/made", "w") as file:
                    file.write("x")
                done.append(folder)
            except OSError:
                pass
        for path in ("/code/main.py", "/prelude.py", os.__file__):
            for act in (os.unlink, lambda path: os.chmod(path, 0o777), lambda path: open(path, "a")):
                try:
                    act(path)
                    done.append(path)
                except OSError:
                    pass
        print(json.dumps(done))
    """
    assert told(sandbox(program)) == ["/tmp"]
    assert told(sandbox("import json, os; print(json.dumps(os.listdir('/tmp')))")) == []


def test_links_lead_nowhere(sandbox: Runner) -> None:
    program = f"""
        import json, os
        done = []
        for target in ("/etc/passwd", "{ROOT}/params.yaml", "/proc/1/root/etc/passwd", "../../../etc/passwd"):
            os.symlink(target, "link")
            try:
                done.append(open("link").read())
            except OSError:
                pass
            os.unlink("link")
        for target in (os.__file__, "/code/main.py"):
            os.symlink(target, "link")
            try:
                open("link", "a").write("x")
                done.append(target)
            except OSError:
                pass
            os.unlink("link")
        print(json.dumps(done))
    """
    assert told(sandbox(program)) == []


def test_there_is_no_network(sandbox: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0gift-sandbox-test")
        local.listen()
        program = f"""
            import json, socket
            done = []
            tries = [
                (socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})),
                (socket.AF_INET, ("192.0.2.1", 80)),
                (socket.AF_UNIX, "\\0gift-sandbox-test"),
                (socket.AF_VSOCK, (2, 1)),
                (socket.AF_NETLINK, (0, 0)),
                (socket.AF_PACKET, ("lo", 0)),
            ]
            for family, address in tries:
                try:
                    with socket.socket(family) as made:
                        done.append(int(family))
                        made.settimeout(1)
                        made.connect(address)
                        done.append("connected")
                except OSError:
                    pass
            try:
                done.append(socket.getaddrinfo("localhost.example.com", 80))
            except OSError:
                pass
            print(json.dumps(done))
        """
        assert told(sandbox(program)) == [socket.AF_UNIX]
        for listener in (server, local):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_processes_are_limited(sandbox: Runner) -> None:
    program = """
        import os, time
        children = 0
        try:
            while children < 100:
                if os.fork() == 0:
                    time.sleep(60)
                children += 1
        except BlockingIOError:
            print(children)
    """
    for processes in (4, 8):
        assert processes - 3 <= told(sandbox(program, processes=processes)) < processes


def test_threads_are_limited(sandbox: Runner) -> None:
    program = """
        import os, threading, time
        threads = 0
        try:
            while threads < 100:
                threading.Thread(target=time.sleep, args=(60,)).start()
                threads += 1
        except RuntimeError:
            print(threads, flush=True)
            os._exit(0)
    """
    assert 4 <= told(sandbox(program)) < 8


def test_a_fork_bomb_ends_at_the_limit(sandbox: Runner) -> None:
    program = NAME_ITSELF + "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    start = time.monotonic()
    assert sandbox(program, seconds=1.0).status in ("timeout", "killed")
    assert time.monotonic() - start < 5
    assert named() == []


def test_memory_is_limited_for_each_process_and_for_all(sandbox: Runner) -> None:
    program = """
        import json, os, signal

        def take():
            blocks = []
            try:
                while len(blocks) < 100:
                    blocks.append(bytearray(2 << 20))
            except MemoryError:
                pass
            return blocks

        reads, writes = os.pipe()
        children = 0
        try:
            while True:
                if os.fork() == 0:
                    held = take()
                    os.write(writes, bytes([len(held)]))
                    signal.pause()
                children += 1
        except BlockingIOError:
            print(json.dumps([os.read(reads, 1)[0] for _ in range(children)]))
    """
    taken = told(sandbox(program, memory_mib=100))
    assert 5 <= len(taken) < 8
    assert all(20 < each < 50 for each in taken)  # blocks of 2 MiB, held by all at once
    assert sandbox("blocks = []\nwhile True: blocks.append(bytearray(1 << 20))").status == "memory"


def test_memory_that_belongs_to_no_process_is_refused(sandbox: Runner) -> None:
    program = """
        import ctypes, json, os
        libc = ctypes.CDLL(None, use_errno=True)
        done = [libc.shmget(0, 1 << 20, 0o1600), libc.msgget(0, 0o1600), libc.semget(0, 1, 0o1600)]
        try:
            done.append(os.memfd_create("x"))
        except PermissionError:
            pass
        print(json.dumps(done))
    """
    assert told(sandbox(program)) == [-1, -1, -1]


def test_the_scratch_folder_is_small(sandbox: Runner) -> None:
    program = """
        import json
        done, number = [], 0
        try:
            while number < 200:
                with open(f"/tmp/{number}", "wb") as file:
                    file.write(bytes(1 << 20))
                number += 1
        except OSError as error:
            print(json.dumps([number, error.errno]))
    """
    assert told(sandbox(program)) == [64, 28]  # ENOSPC
    assert told(sandbox(program, scratch_mib=3)) == [3, 28]
    assert sandbox("open('/tmp/one', 'wb').write(bytes(65 << 20))").status in ("failed", "killed")


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_the_clock_is_limited(sandbox: Runner, program: str) -> None:
    start = time.monotonic()
    assert sandbox(program, seconds=0.7).status == "timeout"
    assert 0.7 <= time.monotonic() - start < 3


def test_output_is_limited_while_it_is_written(sandbox: Runner) -> None:
    start = time.monotonic()
    result = sandbox("while True: print('x' * 1000)", output_kib=8)
    assert (result.status, len(result.stdout)) == ("output", 8192)
    assert time.monotonic() - start < 5


def test_a_program_that_closes_its_output_is_waited_for(sandbox: Runner) -> None:
    close = "import os, time\nfor number in (0, 1, 2): os.close(number)\n"
    assert sandbox(close + "time.sleep(0.2)\nos._exit(5)").exit_code == 5
    assert sandbox(close + "time.sleep(60)", seconds=0.7).status == "timeout"


def test_signals_reach_nobody_outside(sandbox: Runner) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        program = f"""
            import os
            for number in (os.getppid(), 1, {os.getpid()}, {bystander.pid}, -{os.getpgid(0)}, 0, -1):
                for kill in (15, 9):
                    try:
                        os.kill(number, kill) if number not in (0, -1) or kill == 9 else None
                    except OSError:
                        pass
        """
        result = sandbox("import signal\nsignal.signal(15, signal.SIG_IGN)\n" + textwrap.dedent(program))
        assert result.status in ("ok", "killed"), result
        assert bystander.poll() is None
        bystander.kill()


def test_no_process_is_left_behind(sandbox: Runner) -> None:
    program = NAME_ITSELF + textwrap.dedent("""
        import os, signal, time
        for number in (1, 2, 15):
            signal.signal(number, signal.SIG_IGN)
        for daemon in range(2):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    if daemon:
                        for number in (0, 1, 2):
                            os.close(number)
                    time.sleep(60)
                os._exit(0)
        time.sleep(0.1)
        print("1", flush=True)
    """)
    start = time.monotonic()
    assert told(sandbox(program)) == 1
    assert time.monotonic() - start < 4
    assert named() == []


def test_a_worker_that_is_killed_takes_its_sandbox_along() -> None:
    marker = "gift-orphan"
    program = NAME_ITSELF.replace(MARKER, marker) + "import time\ntime.sleep(60)"
    imports = "from gift.sandbox.run import Limits\nfrom gift.sandbox.run import run\n"
    script = f"{imports}run({program!r}, limits=Limits(seconds=60))"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as worker:
        wait_until(lambda: len(named(marker)) == 1)
        worker.kill()
    wait_until(lambda: not named(marker))


@pytest.mark.parametrize("program", ["pass", "import time; time.sleep(60)", "import os; os.kill(-1, 9)"])
def test_a_process_that_adopts_orphans_gets_none(program: str) -> None:
    script = f"""
import ctypes, os
from gift.sandbox.run import Limits
from gift.sandbox.run import run
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
print(run({program!r}, limits=Limits(seconds=1)).status)
try:
    print(os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT))
except ChildProcessError:
    print("no child")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[1] == "no child"


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_dangerous_system_calls_are_refused(sandbox: Runner) -> None:
    numbers = {name: column[0 if platform.machine() == "x86_64" else 1] for name, column in seccomp._DENIED.items()}
    clone = 56 if platform.machine() == "x86_64" else 220
    program = f"""
        import ctypes, json, os
        libc = ctypes.CDLL(None, use_errno=True)
        done = []
        for name, number in {numbers}.items():
            if number is not None and (libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1):
                done.append(name)
        for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            if libc.syscall({clone}, flag | 17, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
                done.append(flag)
        for act in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chroot("/tmp"),
                    lambda: os.mknod("/tmp/disk", 0o60600, 0x0801), lambda: os.nice(-5)):
            try:
                act()
                done.append("act")
            except OSError:
                pass
        print(json.dumps(done))
    """
    assert told(sandbox(program)) == []


def test_the_numbers_of_system_calls_are_the_kernels() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    generic = Path("/usr/include/asm-generic/unistd.h")
    if not (header.exists() and generic.exists()):
        pytest.skip("the kernel's headers are not installed")
    pattern = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
    ours = {**seccomp._DENIED, "clone": seccomp._CLONE, "clone3": seccomp._CLONE3, "socket": seccomp._SOCKET}
    for column, path in enumerate((header, generic)):
        kernels = {name: int(number) for name, number in pattern.findall(path.read_text())}
        known = {name: numbers[column] for name, numbers in ours.items() if name in kernels}
        assert len(known) > 40
        assert known == {name: kernels[name] for name in known}


def test_same_program_same_output(sandbox: Runner) -> None:
    program = "import os\nprint([hash(word) for word in 'abc'], set('hello'), sorted(os.environ.items()))"
    assert sandbox(program).stdout == sandbox(program).stdout


def test_a_sandbox_that_works_passes_the_check() -> None:
    assert check_sandbox() is None


CHILD = '{"child-pid": 999999999}'


@pytest.mark.parametrize(
    ("told", "stdout", "stderr", "words"),
    [
        ([], "", "bwrap: Unknown option --size", "bubblewrap 0.7 or newer is needed"),
        (
            [],
            "",
            "bwrap: Creating new namespace failed: Operation not permitted",
            "start: bwrap: Creating new namespace",
        ),
        ([CHILD], "", "", "cannot start: bwrap ended with exit code 1"),
        ([CHILD, '{"exit-code": 0}'], "50", "", "the limit on processes does not hold"),
        ([CHILD, '{"exit-code": 0}'], "0", "", "Linux 5.14 or newer"),
        ([CHILD, '{"exit-code": 1}'], "", "no libpython", "Python does not start in the sandbox: no libpython"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    told: list[str], stdout: str, stderr: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bwrap(tmp_path, "".join(f"{line}\n" for line in told), stdout, stderr)
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = check_sandbox()
    assert problem is not None
    assert words in problem
    assert "\n" not in problem


def fake_bwrap(folder: Path, told: str, stdout: str, stderr: str) -> None:
    """A program called bwrap that says what a real one says on another machine."""
    code = int("exit-code" not in told or "1}" in told)
    script = f"""#!{sys.executable} -S
import os, sys
os.write(int(sys.argv[sys.argv.index("--json-status-fd") + 1]), {told!r}.encode())
os.write(1, {stdout!r}.encode())
os.write(2, {stderr!r}.encode())
sys.exit({code})
"""
    (folder / "bwrap").write_text(script, encoding="utf-8")
    (folder / "bwrap").chmod(0o755)


def test_without_bubblewrap_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "on Debian, Ubuntu and Fedora the package bubblewrap" in str(check_sandbox())


def test_a_sandbox_that_cannot_start_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bwrap(tmp_path, "", "", "no namespaces here")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="no namespaces here"):
        run("pass")
