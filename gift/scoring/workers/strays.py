"""What a worker of rewards may use, and the end of all that a process has started, in its group and session or not."""

import ctypes
import os
import resource
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

FILE_BYTES = 2**30
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37


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
    if libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0) or libc.prctl(
        PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0
    ):
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
