"""The embedded task: sums and differences of one-digit numbers, answered with visible steps and a final `#answer`."""

import random
import re
import zlib
from typing import Literal

Style = Literal["worked", "guess", "malformed"]
Split = Literal["train", "eval"]

CHARACTERS = "0123456789+-=# "
"""Every character that a prompt or a completion may hold; one character is one token."""

EVAL_SHARE = 8
"""One expression in `EVAL_SHARE` belongs to the eval split."""


def problems(num: int, seed: int, num_operands: int, split: Split) -> list[dict[str, str]]:
    """`num` different problems of a split, as rows of `prompt` ("7+5-3+8=") and `answer` ("17").

    The split of an expression is decided by its own text (a checksum), so that train and eval problems are disjoint
    whatever the seeds and the numbers asked for. Operands are 1 to 9; the first one has no sign.
    """
    expressions = 9**num_operands * 2 ** (num_operands - 1)
    most = expressions * (1 if split == "eval" else EVAL_SHARE - 1) // EVAL_SHARE * 3 // 4
    if num > most:
        raise ValueError(f"{num} {split} problems of {num_operands} operands asked for, at most {most}: more operands")
    rng = random.Random(f"arithmetic problems {seed} {num_operands} {split}")
    found: dict[str, dict[str, str]] = {}
    while len(found) < num:
        expression = "".join(rng.choice("+-") + str(rng.randint(1, 9)) for _ in range(num_operands))[1:]
        if split_of(expression) == split and expression not in found:
            found[expression] = {"prompt": expression + "=", "answer": str(sum(terms(expression)))}
    return list(found.values())


def split_of(expression: str) -> Split:
    """The split that an expression ("7+5-3+8") belongs to."""
    return "eval" if zlib.crc32(expression.encode()) % EVAL_SHARE == 0 else "train"


def terms(expression: str) -> list[int]:
    """The signed numbers that an expression adds up: "7+5-3" gives 7, 5, -3."""
    return [int(term) for term in re.findall(r"[+-]?\d+", expression)]


def completion(problem: dict[str, str], style: Style, rng: random.Random) -> str:
    """An example answer to a problem, of the kind that a base policy is trained on.

    worked: "7+5=12 12-3=9 9+8=17 #17", always right. guess: "#17", no steps; the number is off by 1 to 3 half of the
    time. malformed: the same guess without its "#", so that no answer can be read from it.
    """
    if style == "worked":
        return " ".join([*_steps(problem["prompt"].rstrip("=")), "#" + problem["answer"]])
    guess = int(problem["answer"]) + rng.choice([0, 0, 0, 0, 0, 0, -3, -2, -1, 1, 2, 3])
    return f"#{guess}" if style == "guess" else str(guess)


def _steps(expression: str) -> list[str]:
    total, *rest = terms(expression)
    steps = []
    for term in rest:
        steps.append(f"{total}{term:+d}={total + term}")
        total += term
    return steps
