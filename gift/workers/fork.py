"""What a process that the server forks becomes: a stage or a worker, as if it had started by itself."""

import atexit
import importlib.util
import multiprocessing.util
import os
import runpy
import signal
import sys
import threading
import traceback
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from gift.project.console import end_with_parent
from gift.workers.served import SIGNALS

State = dict[str, tuple[int, ...]]
OURS = ("gift", "stages")
READ_AT_IMPORT = ("GIFT_LAUNCH", "GIFT_VERBOSE")
"""Variables that our modules read when they are imported."""


def state_of_code() -> State:
    """Of each Python file of ours: when it was changed, also where its time was put back; its size, and its number."""
    found: State = {}
    for top in OURS:
        spec = importlib.util.find_spec(top)
        for place in (spec and spec.submodule_search_locations) or ():
            for folder, _, names in os.walk(place, followlinks=True):
                for path in (f"{folder}/{name}" for name in names if name.endswith(".py")):
                    with suppress(OSError):
                        state = Path(path).stat()
                        found[path] = (state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino)
    return found


def forget_ours() -> None:
    """Have our modules imported anew."""
    for name in [name for name in sys.modules if name.split(".")[0] in (*OURS, "rewards")]:
        del sys.modules[name]


def _forget_ends() -> None:
    """Of a fork: what libraries have registered for the end of a process stays, for the end of the server."""
    atexit._clear()
    ends: Any = weakref.finalize
    processes: Any = multiprocessing.util
    atexit.register(processes._exit_function)
    ends._of_server, ends._registry, ends._registered_with_atexit = ends._registry, {}, False


def become(request: dict[str, Any], descriptors: list[int], is_worker: bool, as_fork: bool) -> NoReturn:
    """Be the process that was asked for, to its end: a stage with the streams of who asked, a worker with ours."""
    code: Any = 1
    words = list(request["arguments"])
    end_with_parent(signal.SIGKILL if is_worker else signal.SIGTERM)
    try:
        os.setpgid(0, 0)
        if is_worker:
            os.dup2(2, 1)
            words += ["--fd", str(descriptors[0])]
            os.set_inheritable(descriptors[0], True)
        else:
            for number, each in enumerate(descriptors):
                os.dup2(each, number)
                os.close(each)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.chdir(request["folder"])
        if not as_fork:
            os.execve(sys.executable, [sys.executable, "-m", *words], request["environment"])
        _forget_ends()
        for name in words[:2]:  # what runs as `__main__`, and what that runs so
            sys.modules.pop(name, None)
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[0] = request["folder"]
        sys.argv = words
        sys.orig_argv[1:] = ["-m", *words]
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)
