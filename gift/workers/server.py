"""The server of one `gift repro`: stages are forks of it, which has their libraries, and workers rest with it.

A fork runs the project's code as it lies in its folder then: where that was edited since, it imports it anew. Where
there are GPUs the server imports nothing and forks no stage: what has touched a GPU cannot be forked. Its workers then
start anew.
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

from gift.workers.fork import OURS, READ_AT_IMPORT, State, become, forget_ours, state_of_code
from gift.workers.served import NUMBER, is_ours, read_request

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
        self.code: State | None = None  # of the project's code when it was imported

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
        if self.code is None and name.startswith(OURS):
            self.code = state_of_code()
        try:
            importlib.import_module(name)
        except Exception as error:  # the stage that needs it says what is wrong
            if os.environ.get("GIFT_VERBOSE") == "1":
                print(f"preload: {name}: {error}", file=sys.stderr)
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
            if as_fork and not self._has_code_of(request):
                forget_ours()
            if as_fork:  # libraries set some variables when they are imported
                request["environment"] |= {
                    key: value for key, value in os.environ.items() if self.before.get(key) != value
                }
            become(request, descriptors, is_worker, as_fork)
        self.children.append(child := Child(pid, os.pidfd_open(pid), client))
        return child

    def _fits(self, environment: dict[str, str], is_worker: bool) -> bool:
        """Whether libraries would be loaded as they were here; who asks may be a fork itself, with what they set."""
        since = {name for name, value in os.environ.items() if self.before.get(name) != value == environment.get(name)}
        names = {name for name in environment.keys() | self.before.keys() if name.startswith(FIXED)} - since
        names -= OF_WORKERS if is_worker else set()
        return all(environment.get(name) == self.before.get(name) for name in names)

    def _has_code_of(self, request: dict[str, Any]) -> bool:
        """Whether the project's code would be imported there as it was here."""
        same = all(request["environment"].get(name) == self.before.get(name) for name in READ_AT_IMPORT)
        return same and request["folder"] == str(Path.cwd()) and self.code == state_of_code()

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


def main(descriptor: str, *modules: str) -> NoReturn:
    from gift.project.console import quiet

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stages
    quiet()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    forget_ours()
    Server(socket.socket(fileno=int(descriptor)), list(modules)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
