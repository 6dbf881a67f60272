"""What `dvc repro` would do again: the doctor says it before anything runs, and stops where it is too much."""

from collections.abc import Iterator
from pathlib import Path

from gift.doctor.findings import Finding, Theme
from gift.doctor.rewards import counting_rewards, deciding_rewards
from gift.project.graph import LOCK
from gift.project.rounds import read_rounds
from gift.upkeep.guard import VARIABLE, asked_of_dvc, inputs_of, work_again
from gift.upkeep.keep import kept_lines
from gift.upkeep.look import quick_texts, read_world
from gift.upkeep.plan import Same, World
from gift.upkeep.prune import ALLOW_MISSING, PULL, pruned
from gift.upkeep.settings import ReproLaunch

say = Theme("finished work")
AGAIN = ("note", say.name)
"""Level and theme of what runs again without a question: also where only warnings are shown."""


def world(*, missing: bool = False) -> World:
    """The project in the working folder, with what its quick stages will write; `missing` as in `read_world`."""
    checks = {"data/doctor.txt": "ok\n", "data/check_rewards.txt": "ok\n"}
    texts = {**quick_texts(), **checks, "data/sampling_rewards.txt": deciding_rewards() + "\n"}
    return read_world(texts, same_scores(), missing=missing)


def same_scores() -> dict[str, Same]:
    """What scoring a round again leaves as it is: its scores, where what changed is only watched, or a limit."""
    found = {}
    for name in read_rounds():
        address, folder = f"score@{name}", f"data/rounds/{name}"
        before = inputs_of(address).get("counting")
        if before is not None and before == counting_rewards(name):
            found[address] = Same((f"{folder}/scores",), ("rewards", "params.yaml", f"{folder}/overrides/score.json"))
    return found


def again_findings(launch: ReproLaunch) -> Iterator[Finding]:
    """One finding where finished stages would run again; an error where they took long and nobody asked for it."""
    if not Path(LOCK).exists():
        return
    asked = asked_of_dvc()
    missing = bool({ALLOW_MISSING, PULL} & {*(asked or ())})
    if pruned() and asked is not None and not missing:
        yield say.error(
            f"the optimizer states of {', '.join(pruned())} were pruned, and DVC would train these rounds again: "
            f"`make repro`, or `dvc repro {ALLOW_MISSING}`"
        )
        return
    found = world(missing=missing)
    again = work_again(found, asked or ())
    if again is None:
        yield say.ok("nothing that is finished would run again")
    elif again.asks(launch.ask_from_minutes):
        yield say.error(
            f"{again.line}. `{VARIABLE}=1 make repro` runs it again; `gift keep` leaves finished rounds as they are "
            "where code alone changed; `gift plan` lists all (docs/pipeline.md)"
        )
    else:
        yield say.note(again.line)
    if again is None:
        yield from (say.note(line) for line in kept_lines(found))
