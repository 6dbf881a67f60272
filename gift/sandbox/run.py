"""Run a program that a model wrote inside a sandbox: bubblewrap, limits, a filter of system calls (docs/sandbox.md).

The program sees Python's standard library, read-only, and one small scratch folder; no network, no /proc, no other
file, no environment variable, no process outside. All of it ends with the run: when `run` returns, nothing is left.
"""

import json
import os
import secrets
import select
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gift.sandbox import prelude
from gift.sandbox.seccomp import seccomp_filter

PRELUDE = Path(prelude.__file__).read_text(encoding="utf-8")
PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
"""The interpreter behind a virtual environment's."""
STANDARD = str(Path(os.__file__).resolve().parent)
NUM_FILES = 64
CAP_SYS_ADMIN = 21
NUM_USERS = 1 << 15  # of a container that has users of its own
# Where a system forbids namespaces: the switch, the value that forbids, the remedy.
SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "set sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "set sysctl user.max_user_namespaces=10000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "set sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give bwrap an AppArmor profile with `userns,`",
    ),
)
# Starts as many processes as it may: the sandbox works only where that number is limited.
PROBE = """
import os, time
children = 0
try:
    while children < 50:
        if os.fork() == 0:
            time.sleep(60)
        children += 1
except OSError:
    pass
print(children)
"""


@dataclass(frozen=True)
class Limits:
    """What one run may use. Memory is the address space of each process; the other limits hold for all together."""

    seconds: float = 6.0  # of the clock, and of processor time for each process
    memory_mib: int = 512
    processes: int = 8  # and threads, with two of the sandbox's own
    scratch_mib: int = 64
    output_kib: int = 64  # of stdout and stderr together


DEFAULTS = Limits()


class SandboxError(RuntimeError):
    """The sandbox itself could not start: no fault of the program."""


@dataclass(frozen=True)
class Result:
    """How a run ended: `ok` (exit code 0), `failed` (another), `killed` (by a signal), or the limit that it passed."""

    status: Literal["ok", "failed", "killed", "memory", "output", "timeout"]
    exit_code: int | None  # 128 + the signal where one ended it; None where we did
    stdout: str
    stderr: str


def run(program: str, modules: Mapping[str, str] | None = None, stdin: str = "", limits: Limits = DEFAULTS) -> Result:
    """Run a Python program, which may import `modules` (texts by path), to its end or limit, or raise SandboxError."""
    deadline = time.monotonic() + limits.seconds
    texts = {"/prelude.py": PRELUDE, "/code/main.py": program}
    texts |= {f"/code/{path}": text for path, text in (modules or {}).items()}
    with ExitStack() as stack:
        files = {path: stack.enter_context(_in_memory(text.encode("utf-8", "replace"))) for path, text in texts.items()}
        typed = stack.enter_context(_in_memory(stdin.encode("utf-8", "replace")))
        rules = stack.enter_context(_in_memory(seccomp_filter()))
        told, tells = os.pipe()
        stack.callback(os.close, told)
        try:
            process = subprocess.Popen(
                _command(limits, files, rules, tells),
                stdin=typed,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[*files.values(), rules, tells],
                env={},
                cwd="/",
            )
        finally:
            os.close(tells)
        with process:
            about, inside = b"", None
            while b"\n" not in about and (more := os.read(told, 4096)):  # nothing where bwrap never made a process
                about += more
            if about:  # a handle of the sandbox's first process, whose end is the end of all others
                with suppress(ProcessLookupError):
                    inside = os.pidfd_open(json.loads(about.splitlines()[0])["child-pid"])
            try:
                over, stdout, stderr = _collect(process, deadline, 1024 * limits.output_kib)
            finally:
                _end(process, inside)
        errors = stderr.decode("utf-8", "replace")
        # bwrap tells the exit code only of a program that it has really started.
        if not over and b'"exit-code"' not in about + os.read(told, 4096):
            raise SandboxError(errors.strip() or f"bwrap ended with exit code {process.returncode}")
    code = None if over else process.returncode
    return Result(over or _status(process.returncode, errors), code, stdout.decode("utf-8", "replace"), errors)


def check_sandbox() -> str | None:
    """Start a sandbox and look at its limits; what is wrong and the remedy, on one line, or None where it works."""
    if sys.platform != "linux" or not shutil.which("bwrap"):
        install = "install it (on Debian, Ubuntu and Fedora the package bubblewrap)"
        return f"model-written code runs only in bubblewrap, and `bwrap` is not on PATH; {install}"
    try:
        result = run(PROBE, limits=Limits(seconds=30.0))
    except (SandboxError, OSError) as error:
        return f"the sandbox cannot start: {' '.join(str(error).split())}; {_remedy(error)}"
    if result.status != "ok":
        problem = " ".join(result.stderr.split())[-300:] or result.status
        return (
            f"Python does not start in the sandbox: {problem}; use a Python whose files lie in its own prefix, such as "
            "python.org's or uv's"
        )
    return {
        "50": "the limit on processes does not hold in the sandbox (root without CAP_SYS_ADMIN); run as another user, "
        "or give the container CAP_SYS_ADMIN",
        "0": "no process can be started in the sandbox; Linux 5.14 or newer counts each sandbox's processes alone",
    }.get(result.stdout.strip())


def _remedy(error: Exception) -> str:
    if "nknown option" in str(error):
        return "bubblewrap 0.7 or newer is needed"
    for path, forbids, remedy in SWITCHES:
        with suppress(OSError):
            if Path(path).read_text(encoding="utf-8").strip() == forbids:
                return remedy
    return "in a container, start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined"


@contextmanager
def _in_memory(text: bytes) -> Iterator[int]:
    """An open file without a name."""
    number = os.memfd_create("gift")
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(text)
        os.lseek(number, 0, os.SEEK_SET)
        yield number
    finally:
        os.close(number)


def _collect(
    process: subprocess.Popen[bytes], deadline: float, most: int
) -> tuple[Literal["output", "timeout"] | None, bytes, bytes]:
    """The limit that the run passed, or None, and what it wrote on both streams."""
    assert process.stdout is not None
    assert process.stderr is not None
    written = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    over: Literal["output", "timeout"] | None = None
    with selectors.DefaultSelector() as streams:
        for number in written:
            streams.register(number, selectors.EVENT_READ)
        while streams.get_map() and not over:
            ready = streams.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                written[key.fd] += chunk
                if not chunk:
                    streams.unregister(key.fd)
            if sum(map(len, written.values())) > most:
                over = "output"
            elif not ready:
                over = "timeout"
    if not over:  # both streams are closed, which a program may do long before its end
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            over = "timeout"
    stdout, stderr = (bytes(each[:most]) for each in written.values())
    return over, stdout, stderr


def _end(process: subprocess.Popen[bytes], inside: int | None) -> None:
    """Kill whatever still runs, and wait until nothing does."""
    if inside is None:
        process.kill()
        process.wait()
        return
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(inside, signal.SIGKILL)
    select.select([inside], [], [])
    process.wait()  # bwrap ends with its child
    with suppress(ChildProcessError):  # which falls to us where we adopt orphans (PR_SET_CHILD_SUBREAPER)
        os.waitid(os.P_PIDFD, inside, os.WEXITED | os.WNOHANG)
    os.close(inside)


def _status(code: int, errors: str) -> Literal["ok", "failed", "killed", "memory"]:
    if code == 0:
        return "ok"
    if errors.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    return "killed" if 128 < code <= 192 else "failed"


def _command(limits: Limits, files: dict[str, int], rules: int, tells: int) -> list[str]:
    """bwrap's command line; the numbers are open files that it inherits."""
    words = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session"]
    words += ["--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--hostname", "sandbox", "--cap-drop", "ALL", "--seccomp", str(rules), "--json-status-fd", str(tells)]
    user = _user_to_become()
    if user is not None:
        # The limit on processes does not hold for root, nor for a user namespace's root that is root outside.
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    shown = [["--ro-bind", path, path] for path in _library()]
    shown += [["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]]
    shown += [["--dev-bind", path, path] for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")]
    shown += [["--perms", "0444", "--ro-bind-data", str(number), path] for path, number in files.items()]
    for parent in sorted({str(parent) for *_, path in shown for parent in list(Path(path).parents)[:-1]}):
        words += ["--perms", "0755", "--dir", parent]  # which bwrap would make for root alone
    words += [word for option in shown for word in option]
    for path in ("/lib", "/lib64"):
        if Path(path).is_symlink():
            words += ["--symlink", str(Path(path).readlink()), path]
    installed = (f"{STANDARD}/site-packages", f"{STANDARD}/dist-packages", "/usr/lib/python3/dist-packages")
    for path in filter(os.path.isdir, installed):  # inside the library, to be hidden
        words += ["--tmpfs", path, "--remount-ro", path]
    words += ["--perms", "1777", "--size", str(limits.scratch_mib << 20), "--tmpfs", "/tmp"]
    words += ["--remount-ro", "/", "--chdir", "/tmp"]
    kernel = {
        "AS": limits.memory_mib << 20,
        "CORE": 0,
        "CPU": int(limits.seconds) + 1,
        "FSIZE": limits.scratch_mib << 20,
        "NOFILE": NUM_FILES,
        "NPROC": limits.processes,
    }
    python = [str(PYTHON), "-P", "-s", "-S", "-B", "-X", "utf8", "/prelude.py", "/code/main.py"]
    become = "-" if user is None else str(user)
    return [*words, *python, become, *(f"{name}={value}" for name, value in kernel.items())]


def _library() -> list[str]:
    """What Python needs to start: itself, its standard library, the shared libraries."""
    places = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", str(PYTHON.parents[1] / "lib"), STANDARD]
    found = [str(PYTHON)]
    for place in places:
        path = Path(place)
        if path.is_dir() and not path.is_symlink() and not any(path.is_relative_to(other) for other in found):
            found.append(place)
    return found


def _user_to_become() -> int | None:
    """A user number that nobody has, by chance also no other sandbox, so that its processes are counted alone.

    None where this process cannot become another user, or cannot mount without a user namespace of its own.
    """
    with Path("/proc/self/status").open(encoding="utf-8") as lines:
        effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    start, _, count = map(int, Path("/proc/self/uid_map").read_text(encoding="utf-8").splitlines()[-1].split())
    if os.geteuid() != 0 or not int(effective, 16) >> CAP_SYS_ADMIN & 1 or count < NUM_USERS:
        return None
    return min(start + count, 1 << 31) - 1 - secrets.randbelow(min(count // 4, 1 << 28))
