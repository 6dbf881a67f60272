"""Finds and kills what a process has started, also what left its group and session."""

import ctypes
import os
import signal
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil  # read late: most workers never need it

PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37


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


def children() -> set[int]:
    """The process ids of this process's children."""
    import psutil

    return {child.pid for child in psutil.Process().children()} if has_children() else set()


def kill_children(keep: Collection[int] = ()) -> None:
    """Kill every child of this process but `keep`, with all that they started; call `adopt_orphans` long before.

    They are stopped before they are killed: what is stopped cannot start another. An orphan of what was killed becomes
    a child of this process, and is found in the next turn.
    """
    import psutil

    while has_children():
        strays = [child for child in psutil.Process().children() if child.pid not in keep]
        if not strays:
            return
        found: set[int] = set()
        while more := {child.pid for stray in strays for child in _family(stray)} - found:
            for pid in more:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            found |= more
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stray in strays:
            with suppress(ChildProcessError):
                os.waitpid(stray.pid, 0)


def _family(process: "psutil.Process") -> "list[psutil.Process]":
    import psutil

    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return [process]
