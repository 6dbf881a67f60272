"""What `dvc repro` would do again: the stage `code` says it before anything runs, and stops where it is too much."""

from collections.abc import Iterator
from pathlib import Path

from gift.doctor.findings import Finding, Theme
from gift.project.errors import UserError
from gift.project.graph import LOCK
from gift.project.params import read_launch
from gift.upkeep.guard import VARIABLE, asked_of_dvc, inputs_of, wanted_of, work_again
from gift.upkeep.keep import kept_lines
from gift.upkeep.look import quick_texts, read_world
from gift.upkeep.plan import Same, World
from gift.upkeep.prune import ALLOW_MISSING, PULL, pruned
from gift.upkeep.settings import ReproLaunch

say = Theme("finished work")
OK = "ok\n"


def world(*, missing: bool = False) -> World:
    """The project in the working folder, with what its quick stages will write; `missing` as in `read_world`."""
    checks = {f"data/{name}.txt": OK for name in ("doctor", "check_rewards")}
    known = quick_texts() | checks

    def text(path: str) -> str | None:
        if path == "data/sampling_rewards.txt":
            from gift.doctor.rewards import deciding_rewards  # late: what a run with nothing to do need not import

            return deciding_rewards() + "\n"
        return known.get(path)

    return read_world(text, same_scores, missing=missing)


def same_scores(address: str) -> Same | None:
    """What scoring a round again leaves as it is: its scores, where what changed is only watched, or a limit."""
    stage, _, name = address.partition("@")
    before = inputs_of(address).get("counting") if stage == "score" else None
    if before is None:
        return None
    from gift.doctor.rewards import counting_rewards

    folder = f"data/rounds/{name}"
    same = Same((f"{folder}/scores",), ("rewards", "params.yaml", f"{folder}/overrides/score.json"))
    return same if before == counting_rewards(name) else None


def again_findings() -> Iterator[Finding]:
    """One finding where finished stages would run again; an error where they took long and nobody asked for it."""
    if not Path(LOCK).exists():
        return
    try:
        launch = read_launch("repro", ReproLaunch)
    except UserError as error:
        yield from say.refused(error)
        return
    asked = asked_of_dvc()
    missing = bool({ALLOW_MISSING, PULL} & {*(asked or ())})
    found = world(missing=missing)
    gone = [name for name in pruned() if f"update@{name}" in wanted_of(found.stages, asked or ())]
    if gone and asked is not None and not missing:
        yield say.error(
            f"the optimizer states of {', '.join(gone)} were pruned, and DVC would train these rounds again: "
            f"`make repro`, or `dvc repro {ALLOW_MISSING}`"
        )
        return
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
