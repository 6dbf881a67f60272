"""The process that calls reward functions, started by gift/scoring/pool.py with the number of a socket.

It reads what to load, answers null or what is wrong, then gets messages of calls and sends one line (JSON) a call. The
pool believes no other form: a function may write anything to any file that is open here, the socket included.
"""

import ctypes
import json
import math
import os
import pickle
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gift.scoring.loading import describe, load, one_line, printed, show

ORPHAN_SECONDS = 60
FILE_BYTES = 2**30
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
CONNECTION_LOST = 70  # the exit code where the socket no longer takes an outcome
MOST = 1e15  # a reward's absolute value: the update squares rewards and adds them up in float32, which ends at 3.4e38
NO_LISTS = (str, bytes, dict, set, frozenset)  # iterable, but no value a row in the order of the rows
Entry = tuple[float | None, str, str | None]  # value, status and message of one row


@dataclass(frozen=True)
class Outcome:
    """What one reward function made of one row; `seconds` (of its call) is for people and in no artifact."""

    value: float | None
    status: str
    message: str | None
    seconds: float = field(default=0.0, compare=False)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    messages = connection.makefile("rb")  # of the pool, which is trusted: they are pickled
    rewards, limits, memory_gib = pickle.load(messages)
    adopt_orphans()
    limit_resources(memory_gib)
    functions: dict[str, Callable[..., Any]] = {}
    for reward in rewards:
        problem = load(reward, functions)
        if problem:
            send_line(connection, f"params.yaml: score.rewards.{reward.name}.{problem}")
            return
    send_line(connection, None)
    try:
        _serve(connection, messages, functions, limits, memory_gib)
    finally:
        kill_children()


def send_line(connection: socket.socket, content: Any) -> None:
    connection.sendall(json.dumps(content).encode() + b"\n")


def _serve(
    connection: socket.socket,
    messages: BinaryIO,
    functions: dict[str, Callable[..., Any]],
    limits: dict[str, float],
    memory_gib: float | None,
) -> None:
    """Answer calls until the pool is gone, the memory is full or swollen, or a function broke what this process needs.

    The line of a call is [its number, seconds, entries]. A later call that finds no memory gets none: the pool tries
    what a worker ended at again, in a new one. Before its last line a worker stops listening, so that it is sent no
    more calls.
    """
    pid, folder, number = os.getpid(), Path.cwd(), 0
    ours = children()  # what files start when they are imported may stay
    swollen = math.inf if memory_gib is None else (private_bytes() + memory_gib * 2**30) / 2
    while True:
        try:
            calls = pickle.load(messages)
        except (EOFError, ConnectionError):
            return
        for left, (name, arguments) in zip(range(len(calls) - 1, -1, -1), calls, strict=True):
            # The pool kills at the limit; should the pool itself be killed, the kernel ends a row that hangs.
            signal.setitimer(signal.ITIMER_REAL, limits[name] + ORPHAN_SECONDS)
            os.chdir(folder)
            start = time.monotonic()
            entries, no_memory = _call(functions[name], arguments)
            seconds = time.monotonic() - start
            if os.getpid() != pid:  # a function forked, and its child came back from the call
                os._exit(0)
            if no_memory and number:
                return
            if memory_gib is not None and has_children():
                kill_children(ours)
            is_last = no_memory or (not left and private_bytes() > swollen)
            try:
                if is_last:
                    connection.shutdown(socket.SHUT_RD)
                send_line(connection, [number, seconds, entries])
            except OSError:
                kill_children()
                os._exit(CONNECTION_LOST)
            if is_last:
                return
            number += 1
        signal.setitimer(signal.ITIMER_REAL, 0)


def _call(function: Callable[..., Any], pickled: bytes) -> tuple[list[Entry], bool]:
    """The entries of a call's rows, or the one of a call that failed; and whether memory ran out.

    Nothing that a function does passes for a number.
    """
    arguments: dict[str, list[Any]] = pickle.loads(pickled)
    num_rows = len(arguments["completions"])
    try:
        returned = function(**arguments)
    except BaseException as error:
        return [_failure(error, describe(error))], isinstance(error, MemoryError)
    rule = "must be a list of one number or None" + ("" if num_rows == 1 else " a completion")
    try:
        shape = getattr(returned, "shape", None)
        if isinstance(shape, tuple) and len(shape) != 1:
            return [(None, "invalid", f"returned an array of shape {tuple(shape)}; {rule}")], False
        shown = None if isinstance(returned, NO_LISTS) else list(returned)
    except BaseException as error:
        invalid = one_line(f"returned {show(returned)}; {rule} ({describe(error)})")
        return [(None, "invalid", invalid)], isinstance(error, MemoryError)
    if shown is None or len(shown) != num_rows:
        count = "one completion" if num_rows == 1 else f"{num_rows} completions"
        return [(None, "invalid", one_line(f"returned {show(returned)} for {count}; {rule}"))], False
    return [_entry(item) for item in shown], any(isinstance(item, MemoryError) for item in shown)


def _entry(item: Any) -> Entry:
    """Value, status and message of what a function returned for one row."""
    if item is None:
        return None, "abstain", None
    if isinstance(item, Exception):
        return _failure(item, one_line(printed(item)) or type(item).__name__)
    if isinstance(item, (str, bytes)):
        return None, "invalid", one_line(f"returned the text {show(item)}; must be a number or None")
    try:
        shape = getattr(item, "shape", None)
        if isinstance(shape, tuple) and shape:
            return None, "invalid", f"returned an array of shape {tuple(shape)}; must be a number or None"
        number = float(item)
    except BaseException as error:
        return None, "invalid", one_line(f"returned {show(item)}; must be a number or None ({describe(error)})")
    if not math.isfinite(number):
        return None, "invalid", f"returned {number}; must be finite, or None to abstain"
    if abs(number) > MOST:
        return (
            None,
            "invalid",
            f"returned {number:g}; must lie between -{MOST:g} and {MOST:g}, so give it another scale",
        )
    return number, "ok", None


def _failure(error: BaseException, message: str) -> Entry:
    return None, "timeout" if isinstance(error, TimeoutError) else "error", message


def limit_resources(memory_gib: float | None) -> None:
    """No core dumps; below a memory limit also no file above 1 GiB. What the functions start inherits the limits."""
    limits = {resource.RLIMIT_CORE: 0}
    if memory_gib is not None:
        limits |= {resource.RLIMIT_DATA: int(memory_gib * 2**30), resource.RLIMIT_FSIZE: FILE_BYTES}
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


def private_bytes() -> int:
    """What RLIMIT_DATA counts, nearly: private writable memory (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def adopt_orphans(adopt: bool = True) -> bool:
    """Make this process the parent of what its descendants leave behind (prctl(2)); returns whether it was before."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int()
    failed = libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    if failed or libc.prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    return bool(before.value)


def has_children() -> bool:
    """Whether this process has a child, alive or not yet asked for its exit code: one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children(of: int | None = None, recursive: bool = False) -> set[int]:
    """The process ids of the children of a process (this one: None); of one that is gone there are none."""
    if of is None and not has_children():
        return set()
    import psutil  # read late: most workers never need it

    with suppress(psutil.NoSuchProcess):
        return {child.pid for child in psutil.Process(of).children(recursive)}
    return set()


def kill_children(keep: Collection[int] = ()) -> None:
    """Kill every child of this process but `keep`, with all that they started; call `adopt_orphans` long before.

    They are stopped before they are killed: what is stopped cannot start another. An orphan of what was killed becomes
    a child of this process, and is found in the next turn.
    """
    while strays := children() - set(keep):
        found: set[int] = set()
        while more := strays.union(*(children(stray, recursive=True) for stray in strays)) - found:
            for pid in more:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            found |= more
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stray in strays:
            with suppress(ChildProcessError):
                os.waitpid(stray, 0)
