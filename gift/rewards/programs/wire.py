"""How two processes share plain values and nothing else: requests and replies, a JSON document a line, over two pipes.

It runs inside the sandbox, between the process of the tests ("runner") and that of the tested program ("program").
"""

import builtins
import json
import os
from collections.abc import Callable
from typing import Any

MAX_MESSAGE = 64 << 20
MAX_REASON = 200
MUTABLE = ("list", "dict", "set", "bytearray", "collections.deque")
# Python's own classes and functions cross by their names. A program may answer with these classes alone: what a test
# makes of one of them has a plain form again.
OWN = {**vars(builtins), "NoneType": type(None)}
CLASSES = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, str, tuple)
# What `int | str`, `list[0]` and `int.real` are: of a test's own words only where the program answers with a class.
OF_CLASSES = ("GenericAlias", "UnionType", "Union", "getset_descriptor", "member_descriptor", "mappingproxy")

# Values of the standard library that cross by the arguments that make them again.
ARGUMENTS: dict[str, Callable[[Any], list[Any]]] = {
    "int": lambda value: [hex(value), 16],  # one of more than 64 bits
    "tuple": lambda value: [list(value)],
    "dict": lambda value: [[list(item) for item in value.items()]],
    "set": lambda value: [list(value)],
    "frozenset": lambda value: [list(value)],
    "bytearray": lambda value: [bytes(value)],
    "complex": lambda value: [value.real, value.imag],
    "range": lambda value: [value.start, value.stop, value.step],
    "slice": lambda value: [value.start, value.stop, value.step],
    "collections.deque": lambda value: [list(value), value.maxlen],
    "fractions.Fraction": lambda value: [value.numerator, value.denominator],
    "decimal.Decimal": lambda value: [str(value)],
    "datetime.date": lambda value: [value.year, value.month, value.day],
    "datetime.time": lambda value: [value.hour, value.minute, value.second, value.microsecond, value.tzinfo],
    "datetime.datetime": lambda value: [
        *(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond, value.tzinfo)
    ],
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "datetime.timezone": lambda value: [value.utcoffset(None)],
}
# An object of a subclass crosses as the plain value under it, whatever its own methods say.
BASES: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    list: list.copy,
    dict: dict.copy,
    tuple: lambda value: tuple(tuple.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda value, key: value[key],
    "equal": lambda one, other: bool(one == other),
    "isinstance": isinstance,
    "bool": bool,
    "iter": iter,
    "len": len,
    "next": next,
    "repr": repr,
    "str": str,
}


class CannotPass(BaseException):
    """A test hands over what has no plain form: its own fault, which its `except Exception` must not swallow."""


class ProgramError(Exception):
    """An exception of the program that has no name among Python's own, or the end of its process."""


def _asking(what: str) -> Callable[..., Any]:
    """A method that asks the object's own process for its result."""
    return lambda remote, *args: remote._ask(what, *args)


class Remote:
    """An object of the other process: what is asked of it is done there. It never equals a plain value."""

    _gift: tuple["Line", int]

    def __init__(self, line: "Line", number: int) -> None:
        object.__setattr__(self, "_gift", (line, number))

    def _ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        return self._gift[0].ask(what, self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return self._ask("equal", other) if isinstance(other, Remote) else NotImplemented

    def __hash__(self) -> int:
        return self._gift[1]

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and value._ask("isinstance", self)

    __getattr__, __setattr__, __getitem__ = _asking("getattr"), _asking("setattr"), _asking("getitem")
    __bool__, __iter__, __next__, __len__ = _asking("bool"), _asking("iter"), _asking("next"), _asking("len")
    __repr__, __str__ = _asking("repr"), _asking("str")


class Line:
    """One end of the two pipes between the processes: requests and replies, a JSON document a line."""

    def __init__(self, reads: int, writes: int, side: str, functions: dict[str, Callable[..., Any]]) -> None:
        self.reads, self.writes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb")
        self.side, self.other = side, "runner" if side == "program" else "program"
        self.functions = functions
        self.kept: list[Any] = []
        self.numbers: dict[int, int] = {}

    def send(self, message: dict[str, Any]) -> None:
        self.writes.write(json.dumps(message).encode() + b"\n")
        self.writes.flush()

    def receive(self) -> dict[str, Any]:
        text = self.reads.readline(MAX_MESSAGE)
        if not text.endswith(b"\n"):
            raise EOFError("the program's process ended" if not text else "the program's answer is too long")
        return dict(json.loads(text))

    def ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Have the other process do something; meanwhile it may call functions that it was handed."""
        sent = {key: self.encode(value) for key, value in kwargs.items()}
        self.send({"do": what, "args": [self.encode(value) for value in args], "kwargs": sent})
        while "do" in (message := self.receive()):
            self.send(self.answer(message))
        for index, value in message.get("changed", []):
            _replace(args[index], self.decode(value))
        if "error" not in message:
            return self.decode(message["value"])
        error = _error(*message["error"])
        if isinstance(error, StopIteration) and what != "next":
            # `zip(map(f, ...), expected)` would end there, with nothing compared.
            raise ProgramError(f"StopIteration: {error}")
        raise error

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do what the other process asks; arguments that changed in place go back beside the value."""
        reply: dict[str, Any] = {}
        try:
            args = [self.decode(value) for value in message["args"]]
            kwargs = {key: self.decode(value) for key, value in message["kwargs"].items()}
            try:
                reply["value"] = self.encode(self.functions[message["do"]](*args, **kwargs))
            finally:
                after = [self.encode(value) if _kind(value) in MUTABLE else None for value in args]
                pairs = enumerate(zip(message["args"], after, strict=True))
                reply["changed"] = [[at, new] for at, (old, new) in pairs if new is not None and new != old]
        except BaseException as error:
            reply["error"] = [[each.__name__ for each in type(error).__mro__], error_text(error)]
        return reply

    def encode(self, value: Any) -> Any:
        """A value as JSON; an object without plain form stays here and crosses as a number."""
        kind = type(value)
        if value is None or kind in (bool, float, str) or (kind is int and -(2**63) <= value < 2**63):
            return value
        if kind is list:
            return [self.encode(each) for each in value]
        if kind is bytes:
            return {"bytes": value.hex()}
        own = _own_name(value) if isinstance(value, type | type(len)) else None
        if own and (self.side == "runner" or value in CLASSES):
            return {"own": own}
        if kind is Remote:
            return {self.other: value._gift[1]}
        if _kind(value) in ARGUMENTS:
            return {"make": [_kind(value), [self.encode(each) for each in ARGUMENTS[_kind(value)](value)]]}
        for base, plain in BASES.items():
            if issubclass(kind, base):
                return self.encode(plain(value))
        return {self.side: self._keep(value)}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(each) for each in value]
        if not isinstance(value, dict):
            return value
        ((tag, content),) = value.items()
        if tag == "bytes":
            return bytes.fromhex(content)
        if tag == "own" and (self.side == "program" or OWN.get(content) in CLASSES):
            return OWN.get(content) or _class(content)
        if tag == "make" and content[0] in ARGUMENTS:
            return _class(content[0])(*(self.decode(each) for each in content[1]))
        if tag == self.other:
            return Remote(self, int(content))
        if tag == self.side:
            return self.kept[content]
        raise ProgramError(f"an answer of unknown form: {tag}")

    def _keep(self, value: Any) -> int:
        kind = type(value).__name__
        if self.side == "runner" and (kind in OF_CLASSES or value is Remote):
            raise TypeError(f"the program answers with a class where a value is due: {kind}")
        if self.side == "runner" and kind not in ("function", "builtin_function_or_method", "method"):
            raise CannotPass(f"hands over a {kind}; only plain values and functions can cross")
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.kept)
            self.kept.append(value)
        return self.numbers[id(value)]


def _kind(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _own_name(value: Any) -> str | None:
    """The name under which a class or function of Python crosses, or None."""
    name = f"{value.__module__}.{value.__name__}".removeprefix("builtins.")
    return name if OWN.get(name) is value or (name in ARGUMENTS and _class(name) is value) else None


def _class(name: str) -> Any:
    module, _, name = name.rpartition(".")
    return getattr(__import__(module or "builtins"), name)


def _replace(target: Any, value: Any) -> None:
    """Change a mutable argument as the other process has changed its copy."""
    if type(value) is not type(target) or _kind(target) not in MUTABLE:
        raise ProgramError("an answer changes what cannot change")
    target.clear()
    (target.update if isinstance(target, dict | set) else target.extend)(value)


def _error(names: list[str], text: str) -> Exception:
    """The exception of the other process: the nearest of Python's own, such as ValueError."""
    for name in names:
        kind = vars(builtins).get(name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text) if kind is not Exception else ProgramError(f"{names[0]}: {text}")
            except TypeError:  # some need more than a text
                continue
    return ProgramError(f"{names[0]}: {text}")


def error_text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_REASON]
    except BaseException:
        return ""
