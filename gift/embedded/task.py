"""The embedded task, sums and differences answered with visible steps and a final `#answer`; its settings."""

import random
import re
import zlib
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gift.project.sections import Count, Positive, Section, Share

Style = Literal["worked", "guess", "malformed"]
Split = Literal["train", "eval"]

CHARACTERS = "0123456789+-=# "
"""Every character that a prompt or a completion may hold; one character is one token."""
SPECIALS = ("<pad>", "<eos>", "<unk>")
CONTEXT = 1024

OFF = (-3, -2, -1, 1, 2, 3)
"""How far from the right number a wrong one of an example is."""
EVAL_SHARE = 8
"""One expression in `EVAL_SHARE` belongs to the eval split."""


class Arithmetic(Section):
    """Of params.yaml: the task, and a small Qwen3 trained from scratch on answers to it in a mixture of styles."""

    num_operands: Annotated[int, Field(ge=2, le=8)] = 4
    solution: bool = Field(False, description="whether prompts get a column `solution`, their worked answer")
    hidden_size: Count = 128
    num_layers: Count = 2
    num_heads: Count = 4
    num_problems: Count = 20_000
    steps: Count = 1600
    batch_size: Count = 32
    lr: Positive = 3.0e-3
    worked: Share = 0.40
    guess: Share = 0.52
    malformed: Share = 0.08
    slips: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @field_validator("num_heads")
    @classmethod
    def heads_are_even(cls, value: int, info: ValidationInfo) -> int:
        size = info.data.get("hidden_size", 2 * value)
        if size % (2 * value):
            raise ValueError(f"does not cut hidden_size = {size} into even parts; choose another")
        return value

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> "Arithmetic":
        total = self.worked + self.guess + self.malformed
        if abs(total - 1) > 1e-9:
            raise ValueError(f"worked + guess + malformed must be 1, not {total:g}")
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The model in the words of transformers' Qwen3Config: tied embeddings, one token a character."""
        return {
            "vocab_size": len(SPECIALS) + len(CHARACTERS),
            "hidden_size": self.hidden_size,
            "intermediate_size": 3 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "head_dim": self.hidden_size // self.num_heads,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight of that model by its name, for who counts them without torch."""
        size, wide, head = self.hidden_size, 3 * self.hidden_size, self.hidden_size // self.num_heads
        layer = {f"self_attn.{name}_proj": (size, size) for name in "qkvo"}
        layer |= {f"mlp.{name}_proj": (wide, size) for name in ("gate", "up")} | {"mlp.down_proj": (size, wide)}
        norms = {f"self_attn.{name}_norm": (head,) for name in "qk"}
        norms |= {f"{name}_layernorm": (size,) for name in ("input", "post_attention")}
        shapes = {"embed_tokens": (self.config["vocab_size"], size), "norm": (size,)}
        for number in range(self.num_layers):
            shapes |= {f"layers.{number}.{name}": shape for name, shape in {**layer, **norms}.items()}
        return {f"model.{name}.weight": shape for name, shape in shapes.items()}


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


def with_solution(problem: dict[str, str]) -> dict[str, str]:
    """A problem with the column `solution`: its worked answer, without a slip."""
    return {**problem, "solution": completion(problem, "worked", random.Random(0))}


def completion(problem: dict[str, str], style: Style, rng: random.Random, slips: float = 0.0) -> str:
    """An example answer to a problem, of the kind that a base policy is trained on.

    worked: "7+5=12 12-3=9 9+8=17 #17", right but for a share `slips` of the steps, after which it goes on from the
    wrong number. guess: "#17", no steps; the number is off by 1 to 3 half of the time. malformed: the same guess
    without its "#", so that no answer can be read from it.
    """
    if style == "worked":
        total, *rest = terms(problem["prompt"].rstrip("="))
        steps = []
        for term in rest:
            before, total = total, total + term
            if slips:  # without it nothing is drawn, and what a seed gave before there were slips stays
                total += slip(before, term, slips, rng.random())
            steps.append(f"{before}{term:+d}={total}")
        return " ".join([*steps, f"#{total}"])
    guess = int(problem["answer"]) + rng.choice([0, 0, 0, 0, 0, 0, *OFF])
    return f"#{guess}" if style == "guess" else str(guess)


def slip(before: int, term: int, slips: float, draw: float) -> int:
    """How far off the result of a step is in an example, 0 or -3 to 3, for a `draw` from 0 to 1.

    A step is known by its term and the last digit of the number before. Each such sum has one wrong result, and a
    probability of it from 0 to twice `slips`: the wrong result of some is the likelier one, so that greedy decoding is
    wrong about them too. Were all sums alike it would be right about every one, with nothing left to learn.
    """
    habit = zlib.crc32(f"slip {abs(before) % 10}{term:+d}".encode())
    often = 2 * slips * (habit // len(OFF) % 1000 + 0.5) / 1000
    return OFF[habit % len(OFF)] if draw < often else 0
