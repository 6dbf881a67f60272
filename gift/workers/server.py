"""The server of one `gift repro`: stages are forks of it, which has their libraries, and workers rest with it.

It keeps no code of the project, so that a fork runs what lies in its folder then. Where there are GPUs it imports
nothing and forks no stage: what has touched a GPU cannot be forked. Its workers then start anew.
"""

import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gift.project.console import end_with_parent
from gift.workers.served import NUMBER, SIGNALS, is_ours, read_request

CONFIG = Path("data/rounds/base/policy/config.json")
FIXED = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "LD_", "PYTHON")
"""Variables that libraries read when they are loaded: a process with others is no fork."""
OF_WORKERS = {"OMP_NUM_THREADS", "PYTHONPATH"}
"""But a worker tells torch its number itself (gift/worker.py), and finds the project's code as our stages do."""


PROCESS = {"arguments", "environment", "folder"}
"""Of a request for one."""


@dataclass(frozen=True)
class Rest:
    """A worker that waits for its next stage: our end of its channel, where it runs, what it has loaded."""

    channel: int
    slot: str
    key: str


@dataclass(eq=False)
class Child:
    """A process of ours; `client`: who asked for it, whose end is its end, and nobody while it rests."""

    pid: int
    descriptor: int
    client: socket.socket | None
    rest: Rest | None = None


class Server:
    """Imports one module after another while nobody asks; starts what is asked for; tells each how it ended."""

    def __init__(self, listener: socket.socket, modules: list[str]) -> None:
        self.listener, self.modules, self.forks_stages = listener, modules, bool(modules)
        self.children: list[Child] = []
        self.before = dict(os.environ)
        self.knows_model = False

    def serve(self) -> NoReturn:
        while True:
            ready = self._wait(0 if self.modules else None)
            if not ready:
                self._import()
            for child in list(self.children):  # first: what a stage left is there for the next, which may wait already
                if child.descriptor in ready:
                    self._end(child)
                elif child.client and child.client in ready:
                    self._hear(child, child.client)
            if self.listener in ready:
                self._answer(self.listener.accept()[0])

    def _wait(self, seconds: float | None) -> list[Any]:
        watched: list[Any] = [self.listener, *(child.descriptor for child in self.children)]
        watched += [child.client for child in self.children if child.client]
        return select.select(watched, [], [], seconds)[0]

    def _import(self) -> None:
        name = self.modules.pop(0)
        try:
            importlib.import_module(name)
        except Exception as error:  # the stage that needs it says what is wrong
            if os.environ.get("GIFT_VERBOSE") == "1":
                print(f"preload: {name}: {error}", file=sys.stderr)
        _forget_ours()
        if not self.modules:  # what is imported stays: no fork looks through it for garbage, and copies its pages so
            gc.collect()
            gc.freeze()

    def _answer(self, client: socket.socket) -> None:
        """Start a process, hand over a worker that rests, or say 0: who asks has to do without."""
        request, descriptors = read_request(client) if is_ours(client) else ({}, [])
        found: Child | None = None
        if request.get("ask") == "take":
            found = self._resting(request.get("slot"), request.get("key"))
        elif request.get("ask") in ("stage", "worker") and request.keys() >= PROCESS:
            found = self._start(client, request, descriptors)
        for each in descriptors:
            os.close(each)
        with suppress(OSError):
            pid = NUMBER.pack(found.pid if found else 0)
            if found and found.rest:
                socket.send_fds(client, [pid], [found.rest.channel])
            else:
                client.sendall(pid)
        if not found:
            client.close()
            return
        if found.rest:
            os.close(found.rest.channel)
        found.client, found.rest = client, None

    def _resting(self, slot: str | None, key: str | None) -> Child | None:
        """The worker at this slot that has what is asked for; another makes room."""
        for child in [each for each in self.children if each.rest and each.rest.slot == slot]:
            if child.rest and child.rest.key == key:
                return child
            self._kill(child)
        return None

    def _start(self, client: socket.socket, request: dict[str, Any], descriptors: list[int]) -> Child | None:
        is_worker = request["ask"] == "worker"
        as_fork = self.forks_stages and self._fits(request["environment"], is_worker) and threading.active_count() == 1
        if not as_fork and not is_worker:
            return None
        if as_fork:
            self._learn_model()
        pid = os.fork()
        if not pid:
            self._close_all(client)
            if as_fork:  # libraries set some variables when they are imported
                request["environment"] |= {
                    key: value for key, value in os.environ.items() if self.before.get(key) != value
                }
            _become(request, descriptors, is_worker, as_fork)
        self.children.append(child := Child(pid, os.pidfd_open(pid), client))
        return child

    def _fits(self, environment: dict[str, str], is_worker: bool) -> bool:
        """Whether libraries would be loaded as they were here; who asks may be a fork itself, with what they set."""
        since = {name for name, value in os.environ.items() if self.before.get(name) != value == environment.get(name)}
        names = {name for name in environment.keys() | self.before.keys() if name.startswith(FIXED)} - since
        names -= OF_WORKERS if is_worker else set()
        return all(environment.get(name) == self.before.get(name) for name in names)

    def _close_all(self, *others: socket.socket) -> None:
        for each in (self.listener, *others, *(child.client for child in self.children if child.client)):
            each.close()
        for child in self.children:
            os.close(child.descriptor)
            if child.rest:
                os.close(child.rest.channel)

    def _end(self, child: Child) -> None:
        self.children.remove(child)
        os.close(child.descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        if child.rest:
            os.close(child.rest.channel)
        if child.client:
            with suppress(OSError):
                child.client.sendall(NUMBER.pack(code))
            child.client.close()

    def _hear(self, child: Child, client: socket.socket) -> None:
        """Let a worker rest; or who asked for a process has ended, and so does it."""
        request, descriptors = read_request(client)
        if descriptors and {"slot", "key"} <= request.keys():
            child.rest, child.client = Rest(descriptors[0], request["slot"], request["key"]), None
            client.close()
        else:
            self._kill(child)

    def _kill(self, child: Child) -> None:
        """With all that it started; what it had of a GPU is free then."""
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
            os.killpg(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    def _learn_model(self) -> None:
        """The model file of the base policy, once there is one."""
        if self.knows_model or not CONFIG.exists():
            return
        self.knows_model = True
        with suppress(OSError, ValueError, KeyError, ImportError):
            name = json.loads(CONFIG.read_text(encoding="utf-8"))["model_type"]
            if re.fullmatch(r"\w+", name):
                importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def _forget_ours() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("gift", "stages", "rewards")]:
        del sys.modules[name]


def _become(request: dict[str, Any], descriptors: list[int], is_worker: bool, as_fork: bool) -> NoReturn:
    """Be the process that was asked for, to its end: a stage with the streams of who asked, a worker with ours."""
    import runpy
    import traceback

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
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def main(descriptor: str, *modules: str) -> NoReturn:
    from gift.project.console import quiet

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stages
    quiet()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    _forget_ours()
    Server(socket.socket(fileno=int(descriptor)), list(modules)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
