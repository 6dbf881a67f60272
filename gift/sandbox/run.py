"""Run a program that a model wrote inside a sandbox: bubblewrap, limits, a filter of system calls (docs/sandbox.md).

The program sees Python's standard library, read-only, and one small scratch folder; no network, no /proc, no other
file, no environment variable, no process outside. All of it ends with the run: when `run` returns, nothing is left.
"""

import json
import os
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

from gift.sandbox import prelude as sandbox_prelude
from gift.sandbox.bubblewrap import Limits, command
from gift.sandbox.seccomp import seccomp_filter

DEFAULTS = Limits()
INSTALL = "install it (on Debian, Ubuntu and Fedora the package bubblewrap)"
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
    """Run the text of a Python program to its end or its first limit; `modules` are files that it may import, by path.

    Raises `SandboxError` where the sandbox cannot start.
    """
    deadline = time.monotonic() + limits.seconds
    texts = {"/prelude.py": _PRELUDE, "/code/main.py": program}
    texts |= {f"/code/{path}": text for path, text in (modules or {}).items()}
    with ExitStack() as stack:
        files = {path: stack.enter_context(_in_memory(text.encode("utf-8", "replace"))) for path, text in texts.items()}
        typed = stack.enter_context(_in_memory(stdin.encode("utf-8", "replace")))
        rules = stack.enter_context(_in_memory(seccomp_filter()))
        told, tells = os.pipe()
        stack.callback(os.close, told)
        try:
            process = subprocess.Popen(
                command(limits, files, rules, tells),
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
            about = _first_line(told)
            inside = _first_process(about)
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
        return f"model-written code runs only in bubblewrap, and `bwrap` is not on PATH; {INSTALL}"
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


def _first_line(told: int) -> bytes:
    """What bwrap tells, to the end of the first line at least; empty where it never made a process."""
    text = b""
    while b"\n" not in text and (more := os.read(told, 4096)):
        text += more
    return text


def _first_process(about: bytes) -> int | None:
    """A handle of the sandbox's first process, whose end is the end of all others; None where there is none."""
    if about:
        with suppress(ProcessLookupError):
            return os.pidfd_open(json.loads(about.splitlines()[0])["child-pid"])
    return None


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


_PRELUDE = Path(sandbox_prelude.__file__).read_text(encoding="utf-8")
