"""A Python that has the heavy libraries imported: for the length of one `gift repro` the stages are forks of it.

To import them takes longer than most stages of a small model. The server keeps no code of the project, so that a fork
runs what lies in its folder then; and it is for CPUs: what has touched a GPU cannot be forked.
"""

import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from gift.project.console import end_with_parent

VARIABLE = "GIFT_PRELOADED"
"""Of the environment: the name of the server's socket."""
LIBRARIES = ("torch", "transformers", "transformers.models.auto.modeling_auto", "pyarrow.parquet")
TRAINING = ("deepspeed",)
VLLM = (
    *("vllm", "vllm.entrypoints.llm", "vllm.v1.engine.llm_engine", "vllm.v1.engine.core", "vllm.lora.request"),
    *("vllm.v1.worker.cpu_worker", "pandas", "compressed_tensors"),
)
ADAPTERS = ("peft",)
CONFIG = Path("data/rounds/base/policy/config.json")
FIXED = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "LD_", "PYTHON")
"""Variables that libraries read when they are loaded: a stage with others starts by itself."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST_BYTES = 2**24  # of a request
CREDENTIALS = struct.Struct("3i")  # of a Unix socket's other end: process, user, group


@contextmanager
def preloaded(modules: Sequence[str], environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A server while the block runs; yields the environment for what may use it."""
    name = f"gift-{os.urandom(16).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{name}")  # an abstract name: no file that could be left behind
        listener.listen()
        command = [sys.executable, "-m", "gift.workers.preload", str(listener.fileno()), *modules]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        own = {"env": environment, "pass_fds": [listener.fileno()], "preexec_fn": end_with_parent}
        server = subprocess.Popen(command, **own, **streams)  # type: ignore[call-overload]
    try:
        yield {**environment, VARIABLE: name}
    finally:
        server.kill()
        server.wait()


def run(arguments: Sequence[str]) -> int | None:
    """Run `python -m <arguments>` as a fork of the server, with this process's streams; returns its exit code.

    None: there is no server, or none for this process. Signals go to the fork, which ends when this process does.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.connect(f"\0{name}")
            if not _is_ours(server):
                return None
            environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
            content = {"arguments": list(arguments), "environment": environment, "folder": str(Path.cwd())}
            data = json.dumps(content).encode()
            socket.send_fds(server, [struct.pack("q", len(data))], [0, 1, 2])
            server.sendall(data)
            pid = int(_line(server))
        except (OSError, ValueError):
            return None
        if not pid:
            return None
        for number in SIGNALS:
            signal.signal(number, lambda number, _: _send(pid, number))
        try:
            return int(_line(server))
        except (OSError, ValueError):  # the server ended, and its forks with it
            return 128 + signal.SIGTERM


def modules_for(stages: Sequence[str], params: dict[str, Any], in_process: bool) -> list[str]:
    """What the stages of a run (addresses) import that takes long; nothing where only one of them does."""
    kinds = [re.sub(r"_base$", "", address.partition("@")[0]) for address in stages]
    heavy = [kind for kind in kinds if kind in ("base", "generate", "generate_eval", "reference", "update")]
    if len(heavy) < 2:
        return []

    def key(section: str, name: str) -> Any:  # what is wrong in the settings is said later, by the doctor
        found = params.get(section)
        return found.get(name) if isinstance(found, dict) else None

    sections = {"generate": "generate", "generate_eval": "evaluate"}
    engines = {key(sections[kind], "engine") or "vllm" for kind in heavy if kind in sections}
    found = [*LIBRARIES, *(TRAINING if "update" in heavy and in_process else ()), *(VLLM if "vllm" in engines else ())]
    return [*found, *(ADAPTERS if key("update", "lora") else ())]


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _line(end: socket.socket) -> bytes:
    """One line and no more: the next may be there already."""
    data = b""
    while not data.endswith(b"\n"):
        data += end.recv(1) or b"?\n"
    return data


def _is_ours(end: socket.socket) -> bool:
    """Whether the same user is at the other end."""
    found = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return bool(CREDENTIALS.unpack(found)[1] == os.getuid())


class Server:
    """Imports one module after another while nobody asks; forks who asks; tells each the end of its fork."""

    def __init__(self, listener: socket.socket, modules: list[str]) -> None:
        self.listener, self.modules = listener, modules
        self.forks: dict[int, tuple[socket.socket, int]] = {}  # by the descriptor of the process
        self.before = dict(os.environ)
        self.knows_model = False

    def serve(self) -> NoReturn:
        while True:
            ready = self._wait(0 if self.modules else None)
            if not ready:
                self._import()
            for each in ready:
                if each is self.listener:
                    self._answer(self.listener.accept()[0])
                elif isinstance(each, int):
                    self._end(each)
                else:
                    self._abandon(each)

    def _wait(self, seconds: float | None) -> list[Any]:
        clients = [client for client, _ in self.forks.values()]
        watched: list[Any] = [self.listener, *self.forks, *clients]
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
        """Fork for a stage, or say 0: it has to start by itself."""
        if not _is_ours(client):
            client.close()
            return
        request, descriptors = _request(client)
        fits = request and _fixed(request["environment"]) == _fixed(self.before)
        pid = 0
        if fits and threading.active_count() == 1:
            self._learn_model()
            pid = os.fork()
            if not pid:
                self._close_all(client)
                # Libraries set some variables when they are imported.
                set_since = {key: value for key, value in os.environ.items() if self.before.get(key) != value}
                request["environment"] |= set_since
                _become(request, descriptors)
            self.forks[os.pidfd_open(pid)] = client, pid
        for each in descriptors:
            os.close(each)
        with suppress(OSError):
            client.sendall(b"%d\n" % pid)
        if not pid:
            client.close()

    def _close_all(self, *others: socket.socket) -> None:
        for each in (self.listener, *others, *(client for client, _ in self.forks.values())):
            each.close()
        for descriptor in self.forks:
            os.close(descriptor)

    def _end(self, descriptor: int) -> None:
        client, pid = self.forks.pop(descriptor)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            client.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
        client.close()

    def _abandon(self, client: socket.socket) -> None:
        """Who asked has ended: so does its fork."""
        for each, pid in self.forks.values():
            if each is client:
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def _learn_model(self) -> None:
        """The model file of the base policy, once there is one."""
        if self.knows_model or not CONFIG.exists():
            return
        self.knows_model = True
        with suppress(OSError, ValueError, KeyError, ImportError):
            name = json.loads(CONFIG.read_text(encoding="utf-8"))["model_type"]
            if re.fullmatch(r"\w+", name):
                importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def _request(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and the streams; nothing where the client ended, or says something else."""
    descriptors: list[int] = []
    client.settimeout(10)
    try:
        head, descriptors, _, _ = socket.recv_fds(client, 8, 3)
        size, data = struct.unpack("q", head)[0], bytearray()
        while len(data) < min(size, MOST_BYTES):
            data += client.recv(2**20) or b"?" * MOST_BYTES
        return dict(json.loads(data)), descriptors
    except (OSError, ValueError, TypeError, struct.error):
        return {}, descriptors


def _fixed(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(FIXED)}


def _forget_ours() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("gift", "stages", "rewards")]:
        del sys.modules[name]


def _become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    import runpy
    import traceback

    code: Any = 1
    end_with_parent()
    try:
        for number, each in enumerate(descriptors):
            os.dup2(each, number)
            os.close(each)
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
        os.setpgid(0, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.path[0] = request["folder"]
        sys.argv = list(request["arguments"])
        sys.orig_argv[1:] = ["-m", *sys.argv]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
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
