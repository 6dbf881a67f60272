"""What the server of a `gift repro` does for a process: run a stage as a fork, start a worker, keep one that rests."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = "GIFT_PRELOADED"
"""Of the environment: the name of the server's socket, for stages that are to be forks of it."""
SERVER = "GIFT_SERVER"
"""The same, for the workers of a stage."""
KEEP = "GIFT_KEEP_ENGINE"
"""Which engines are kept between stages: `small` ones (`gift/sampling/parts.py`), or `any`."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST_BYTES = 2**24  # of a request
SIZE = struct.Struct("q")  # of what follows
NUMBER = struct.Struct("i")  # a process, or how it ended: its exit code, or the signal, negative
CREDENTIALS = struct.Struct("3i")  # of a Unix socket's other end: process, user, group


def run(arguments: Sequence[str]) -> int | None:
    """Run `python -m <arguments>` as a fork of the server, with this process's streams; returns its exit code.

    None: there is no server, or none for this process. Signals go to the fork, which ends when this process does.
    """
    if (server := _connect(os.environ.get(PRELOADED))) is None:
        return None
    with server:
        environment = {key: value for key, value in os.environ.items() if key != PRELOADED}
        pid = _ask(server, [0, 1, 2], ask="stage", **_process(arguments, environment))
        if not pid:
            return None
        for number in SIGNALS:
            signal.signal(number, lambda number, _: _send(pid, number))
        code = _number(server, -signal.SIGTERM)  # without a code the server ended, and its forks with it
        return code if code >= 0 else 128 - code


@dataclass(eq=False)
class Served:
    """A worker that the server started; it ends with this process, unless it rests by then."""

    pid: int
    server: socket.socket
    code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """How it ended, as `subprocess.Popen.wait` says it."""
        if self.code is None:
            self.server.settimeout(timeout)
            try:
                self.code = _number(self.server, -signal.SIGKILL)
            except TimeoutError:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self.server.close()
        return self.code

    def rest(self, slot: str, key: str, channel: int) -> None:
        """Leave it to the server, with this end of its channel, for who asks for `key` at `slot`."""
        with self.server, suppress(OSError):
            _write(self.server, [channel], {"slot": slot, "key": key})


def start(arguments: Sequence[str], environment: Mapping[str, str], channel: int) -> Served | None:
    """A worker, `python -m <arguments> --fd <its end of the channel>`; None where there is no server."""
    if (server := _connect(os.environ.get(SERVER))) is None:
        return None
    pid = _ask(server, [channel], ask="worker", **_process(arguments, environment))
    if not pid:
        server.close()
    return Served(pid, server) if pid else None


def take(slot: str, key: str) -> tuple[Served, socket.socket] | None:
    """A worker that rests at `slot` and has `key`, and its channel; one that has another key is ended."""
    if (server := _connect(os.environ.get(SERVER))) is None:
        return None
    try:
        _write(server, [], {"ask": "take", "slot": slot, "key": key})
        data, descriptors, _, _ = socket.recv_fds(server, NUMBER.size, 1)
        if descriptors:
            return Served(NUMBER.unpack(data)[0], server), socket.socket(fileno=descriptors[0])
    except (OSError, struct.error):
        pass
    server.close()
    return None


def is_ours(end: socket.socket) -> bool:
    """Whether the same user is at the other end."""
    found = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return bool(CREDENTIALS.unpack(found)[1] == os.getuid())


def read_request(end: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and descriptors; nothing where the other end is closed, or says something else."""
    descriptors: list[int] = []
    end.settimeout(10)
    try:
        head, descriptors, _, _ = socket.recv_fds(end, SIZE.size, 3)
        size, data = SIZE.unpack(head)[0], bytearray()
        while len(data) < min(size, MOST_BYTES):
            data += end.recv(2**20) or b"?" * MOST_BYTES
        return dict(json.loads(data)), descriptors
    except (OSError, ValueError, TypeError, struct.error):
        return {}, descriptors


def _connect(name: str | None) -> socket.socket | None:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(OSError):
        if name:
            server.connect(f"\0{name}")
            if is_ours(server):
                return server
    server.close()
    return None


def _process(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    return {"arguments": list(arguments), "environment": dict(environment), "folder": str(Path.cwd())}


def _write(server: socket.socket, descriptors: list[int], content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    socket.send_fds(server, [SIZE.pack(len(data))], descriptors)
    server.sendall(data)


def _ask(server: socket.socket, descriptors: list[int], **content: Any) -> int:
    """The process that was started, or 0."""
    sys.stdout.flush()
    with suppress(OSError):
        _write(server, descriptors, content)
        return _number(server, 0)
    return 0


def _number(server: socket.socket, otherwise: int) -> int:
    try:
        data = server.recv(NUMBER.size, socket.MSG_WAITALL)
    except TimeoutError:
        raise
    except OSError:
        return otherwise
    return int(NUMBER.unpack(data)[0]) if len(data) == NUMBER.size else otherwise


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
