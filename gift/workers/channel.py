"""Messages between a stage and its workers: JSON in frames; over TCP both sides show that they have the token."""

import json
import os
import secrets
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge, wait
from pathlib import Path
from typing import Any

from gift.project.errors import UserError

PROTOCOL = 1
"""Of the messages; a worker that speaks another is refused."""
ANSWER_SECONDS = 60.0
"""How long the rest of a message may take, or the proof that the other side has the token."""
MESSAGE_BYTES = 2**24
HANDSHAKE_SECONDS = 10.0
ACCEPT_SECONDS = 0.5


class Gone(Exception):
    """Nobody is at the other end any more; no error of a file, which is an OSError too, is taken for it."""


class Channel:
    """One end of a connection; `send` may be called from any thread, and by a signal handler between messages."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Raises `Gone` where nobody hears."""
        data = json.dumps(message).encode()
        try:
            with self.lock:
                self.connection.send_bytes(data)
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self) -> dict[str, Any]:
        """The next message, waited for; raises `Gone`, also where what comes is no message."""
        try:
            return dict(json.loads(self.connection.recv_bytes(MESSAGE_BYTES)))
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise Gone(str(error)) from None

    def wait_for_ever(self) -> None:
        """Lift the limit of `channel_of` for reading."""
        with socket.socket(fileno=os.dup(self.connection.fileno())) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))

    def close(self) -> None:
        """Of both ends, also where another thread waits here: to close a descriptor that is read from wakes nobody."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.connection.close()


def heard(channels: Iterable[Channel], seconds: float) -> list[Channel]:
    """Those on which something came within so many seconds, or that ended."""
    by_connection = {channel.connection: channel for channel in channels}
    return [by_connection[each] for each in wait(list(by_connection), seconds)]  # type: ignore[index]


def channel_of(end: socket.socket, most: float | None = None) -> Channel:
    """A channel over a connected socket, which it takes over; with `most` no read or write takes longer, in seconds."""
    end.setblocking(True)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO) if most else ():
        end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(most or 0), 0))
    return Channel(Connection(end.detach()))


def pair() -> tuple[Channel, socket.socket]:
    """Our end, and the one for a process that inherits it."""
    ours, theirs = socket.socketpair()
    return channel_of(ours, ANSWER_SECONDS), theirs


def make_token(path: Path) -> bytes:
    """The secret of a stage's workers, in a file that its owner alone can read; one that is there is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # its owner's alone
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another stage was faster
            os.link(temporary, path)
        Path(temporary).unlink()
    return read_token(path)


def read_token(path: Path) -> bytes:
    """A `UserError` where others could read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise UserError(f"{path}: others can read it, and who has it can be a worker; remove it, and run again")
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"{path}: no token of workers ({error.strerror}); the stage that listens writes it") from None
    if len(token) < 32:
        raise UserError(f"{path}: no token of workers; remove it, and run again")
    return token.encode()


def _in_words(error: OSError) -> str:
    """Why a connection fails; a host whose name nobody knows has a number of its own."""
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0) if known else error.strerror or str(error)


def _keep_alive(end: socket.socket) -> None:
    """Find within two minutes that the other host is gone, though nothing is said, or nobody takes what is said."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000)  # milliseconds
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6)):
        end.setsockopt(socket.IPPROTO_TCP, option, value)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Door:
    """Where workers of other hosts connect: who shows the token is handed to `welcome`, others are let go.

    Each proves itself in a thread of its own, so that one that connects and says nothing keeps no other out.
    """

    def __init__(self, address: str, token: bytes, welcome: Callable[[Channel], None]) -> None:
        host, _, port = address.rpartition(":")
        try:
            self.socket = socket.create_server((host, int(port)), backlog=128)
        except OSError as error:
            raise UserError(
                f"launch.yaml: workers.listen: {address}: cannot listen there ({_in_words(error)}); name "
                "an address of this host and a free port, or port 0"
            ) from None
        self.token, self.welcome = token, welcome
        self.refused, self.is_closed = 0, False
        known = socket.gethostname() if host == "0.0.0.0" else host
        self.address = f"{known}:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        while True:
            try:
                end, _ = self.socket.accept()
                threading.Thread(target=self._look, args=(end,), daemon=True).start()
            except (OSError, RuntimeError):
                if self.is_closed:
                    return
                time.sleep(ACCEPT_SECONDS)  # too many files or threads: strangers who say nothing are let go meanwhile

    def _look(self, end: socket.socket) -> None:
        _keep_alive(end)
        channel = channel_of(end, ANSWER_SECONDS)
        try:
            deliver_challenge(channel.connection, self.token)
            answer_challenge(channel.connection, self.token)
        except (AuthenticationError, AssertionError, ValueError, EOFError, OSError):
            self.refused += 1
            channel.close()
            return
        self.welcome(channel)

    def close(self) -> None:
        self.is_closed = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def connect(address: str, token: bytes) -> Channel:
    """To a stage that listens; raises `Gone` where there is none, a `UserError` where the token is another."""
    host, _, port = address.rpartition(":")
    try:
        end = socket.create_connection((host, int(port)), HANDSHAKE_SECONDS)
    except OSError as error:
        raise Gone(_in_words(error)) from None
    _keep_alive(end)
    channel = channel_of(end, HANDSHAKE_SECONDS)
    try:
        answer_challenge(channel.connection, token)
        deliver_challenge(channel.connection, token)
    except (AuthenticationError, AssertionError, ValueError):
        channel.close()
        raise UserError(f"{address}: the stage there has another token; name its file: --token FILE") from None
    except (EOFError, OSError):
        channel.close()
        raise Gone("who listens there says nothing that a stage would") from None
    channel.wait_for_ever()
    return channel
