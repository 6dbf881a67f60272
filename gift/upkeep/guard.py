"""Finished work that a run would do again: how much, why, and whether it may without being asked for."""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gift.project.code import code_of
from gift.project.errors import counted
from gift.project.graph import Record, Stage
from gift.project.work import MADE, label_of
from gift.upkeep.plan import Step, md5_of_text

VARIABLE = "GIFT_AGAIN"
"""Of the environment: 1 lets finished work run again."""
LOOKED = "GIFT_LOOKED"
"""Of the environment: the process of the `gift repro` that looked already, before it started DVC."""
QUICK = ("code", "doctor", "overrides", "check_rewards", "report")
"""Stages that take a second or two; the others leave a note of what they took in `MADE`."""
NUM_SHOWN = 4
_CODE = re.compile(r"data/code/(\w+)\.txt changed")
_OVERRIDES = re.compile(r"data/rounds/([\w-]+)/overrides/(\w+)\.json changed")


@dataclass(frozen=True)
class Again:
    """`what` is the work in words; `seconds` what it took, None where nobody noted it; `reasons` are words."""

    what: str
    seconds: float | None
    reasons: tuple[str, ...]

    @property
    def line(self) -> str:
        shown = "; ".join(self.reasons[:NUM_SHOWN])
        more = f"; and {len(self.reasons) - NUM_SHOWN} more" if self.reasons[NUM_SHOWN:] else ""
        took = "" if self.seconds is None else f", {duration(self.seconds)} of work,"
        return f"{self.what} would run again{took} because {shown}{more}"

    def asks(self, minutes: float) -> bool:
        """Whether it is too much to begin unasked."""
        return os.environ.get(VARIABLE) != "1" and (self.seconds is None or self.seconds >= 60 * minutes)


def work_again(planned: Collection[Step], lock: Mapping[str, Record]) -> Again | None:
    """The finished work among the stages that a run would make."""
    steps = [step for step in planned if step.again and not step.restored and step.stage.name not in QUICK]
    if not steps:
        return None
    reasons = dict.fromkeys(in_words(reason, step, lock) for step in steps for reason in step.reasons)
    took = [seconds_of(step.stage) for step in steps]
    seconds = None if None in took else sum(each for each in took if each is not None)
    return Again(_what(steps), seconds, tuple(reasons))


def asked_of_dvc() -> list[str] | None:
    """The arguments of the `dvc repro` that runs this process; None where none does."""
    for parent in psutil.Process().parents():
        words = parent.cmdline()
        if "repro" in words and any(Path(word).name in ("dvc", "gift", "gift.upkeep.dvc") for word in words):
            return words[words.index("repro") + 1 :]
    return None


def looked() -> bool:
    """Whether the `gift repro` that runs this process has said what would run again."""
    by = os.environ.get(LOOKED)
    return by is not None and by in {str(parent.pid) for parent in psutil.Process().parents()}


def made_file(address: str) -> Path:
    """Where a stage notes what made its outputs."""
    return MADE / f"{label_of(address)}.json"


def made_by(address: str) -> dict[str, Any]:
    """What was noted when a stage published its outputs; nothing where that was before there were notes."""
    try:
        return dict(json.loads(made_file(address).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def inputs_of(address: str) -> dict[str, Any]:
    """Of these notes, what the outputs depend on."""
    found = made_by(address).get("inputs", {})
    return found if isinstance(found, dict) else {}


def seconds_of(stage: Stage) -> float | None:
    """What a stage took, from its first start to its end."""
    seconds = made_by(stage.address).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def duration(seconds: float) -> str:
    """For people: 40 s, 12 min, 3 h, 2 days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _what(steps: list[Step]) -> str:
    """`the base policy and 4 finished rounds (r1, r2, r3, r4)`."""
    rounds = list(dict.fromkeys(step.stage.round for step in steps if step.stage.round))
    names = {"prepare": "the prompts", "base": "the base policy", "generate_eval_base": "the base policy's answers"}
    parts = [names[step.stage.address] for step in steps if step.stage.address in names]
    if not rounds and not parts:
        parts = ["the base policy's evaluation"]
    shown = ", ".join(rounds[:8]) + (", ..." if rounds[8:] else "")
    parts += [f"{counted(len(rounds), 'finished round')} ({shown})"] if rounds else []
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def in_words(reason: str, step: Step, lock: Mapping[str, Record]) -> str:
    """A reason as a person knows it."""
    if match := _CODE.fullmatch(reason):
        path = f"data/code/{match[1]}.txt"
        before = lock[step.stage.address].deps.get(path)
        number = next((str(n) for n in range(1000) if md5_of_text(f"{n}\n") == before), "edited")
        return f"the code of {match[1]} changed (results {number}, now {code_of(match[1])})"
    if match := _OVERRIDES.fullmatch(reason):
        return f"what {match[1]} changes in {match[2]} changed (rounds.yaml)"
    if reason == "data/sampling_rewards.txt changed":
        return "the rewards changed, which generate.sample reads"
    return reason.replace("rewards changed", "a file of rewards/ changed")
