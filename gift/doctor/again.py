"""What `dvc repro` would do again: the stage `code` says it before anything runs, and stops where it is too much."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from gift.doctor.findings import Finding, Theme
from gift.project.errors import UserError
from gift.project.graph import LOCK
from gift.project.params import read_launch
from gift.upkeep.guard import VARIABLE, asked_of_dvc, inputs_of, work_again
from gift.upkeep.keep import kept_lines
from gift.upkeep.look import quick_texts, read_world
from gift.upkeep.plan import Same, Step, World, plan
from gift.upkeep.prune import ALLOW_MISSING, PULL, pruned
from gift.upkeep.repro import make_base
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
    """One finding where finished stages would run again; an error where they took long and nobody asked for it.

    In a run of DVC's for what that makes.
    """
    if not Path(LOCK).exists():
        return
    asked = asked_of_dvc()
    missing = bool({ALLOW_MISSING, PULL} & {*(asked or ())})
    found = world(missing=missing)
    gone = [name for name in pruned() if f"update@{name}" in found.wanted(asked or ())]
    if gone and asked is not None and not missing:
        yield say.error(
            f"the optimizer states of {', '.join(gone)} were pruned, and DVC would train these rounds again: "
            f"`make repro`, or `dvc repro {ALLOW_MISSING}`"
        )
    else:
        yield from _findings(found, plan(found, asked or ()))


def tell(findings: Iterable[Finding]) -> None:
    """Print them before a run; an error is a `UserError`."""
    for finding in findings:
        if finding.level == "error":
            raise UserError(finding.line)
        click.echo(finding.line)


def stages_of_run(arguments: Sequence[str]) -> list[str] | None:
    """The addresses of what `gift repro` with these arguments would run; a `UserError` where it may not.

    None where DVC itself must find out: it is asked for more than stages by their names.
    """
    words = [word for word in arguments if word not in (ALLOW_MISSING, "--quiet", "-q", "--verbose", "-v")]
    missing = ALLOW_MISSING in arguments or bool(pruned())
    found = world(missing=missing)
    if {*words} - {*found.stages, *(stage.name for stage in found.stages.values())}:
        return None
    planned = plan(found, words)
    if base_is_lost(planned):
        click.echo(
            "the base policy is missing, and DVC keeps no copy: it is made first; then it is known what runs again"
        )
        if code := make_base():
            raise SystemExit(code)
        found = world(missing=missing)
        planned = plan(found, words)
    tell(_findings(found, planned))
    work = any(step.reasons or not step.stage.always for step in planned)
    return [step.stage.address for step in planned] if work else []


def base_is_lost(planned: Sequence[Step]) -> bool:
    """Whether the base policy has to be made again for no other reason than that it is missing, as in a new clone.

    Most often it is then the one that the rounds began with, and none of them runs again.
    """
    reasons = next((step.reasons for step in planned if step.stage.address == "base" and step.again), ())
    return bool(reasons) and all(map(_is_lost, reasons))


def _is_lost(reason: str) -> bool:
    return reason.endswith(" is missing")


def _findings(found: World, planned: Sequence[Step]) -> Iterator[Finding]:
    try:
        launch = read_launch("repro", ReproLaunch)
    except UserError as error:
        yield from say.refused(error)
        return
    again = work_again(planned, found.lock)
    if again is None:
        yield say.ok("nothing that is finished would run again")
        yield from (say.note(line) for line in kept_lines(found))
    elif again.asks(launch.ask_from_minutes):
        other = "`gift keep` leaves finished rounds as they are where code alone changed"
        if base_is_lost(planned):
            other = "`make repro` makes the base policy first, and looks again"
        elif all(map(_is_lost, again.reasons)):
            other = f"`make repro ARGS={ALLOW_MISSING}` goes on without it where no stage to be made reads it"
        yield say.error(
            f"{again.line}. `{VARIABLE}=1 make repro` runs it again; {other}; `gift plan` lists all (docs/pipeline.md)"
        )
    else:
        yield say.note(again.line)
