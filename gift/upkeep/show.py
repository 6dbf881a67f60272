"""`gift plan`: the stages of a run as lines for a person."""

from collections.abc import Collection, Iterator

from gift.project.errors import UserError
from gift.project.sections import did_you_mean
from gift.upkeep.guard import duration, in_words, seconds_of, work_again
from gift.upkeep.plan import Step, World, plan


def plan_lines(world: World, targets: Collection[str] = ()) -> Iterator[str]:
    """A line a stage, in the order of their work: what is done with it, what it took last time, and why."""
    known = {*world.stages, *(stage.name for stage in world.stages.values())}
    for target in targets:
        if target not in known:
            raise UserError(f"{target}: no such stage; {did_you_mean(target, sorted(known))}")
    planned = plan(world, targets)
    steps = [step for step in planned if step.reasons or not step.stage.always]
    width = max((len(step.stage.address) for step in steps), default=0)
    for step in steps:
        took = seconds_of(step.stage) if step.again else None
        shown = "" if took is None else duration(took)
        reasons = "; ".join(in_words(reason, step, world.lock) for reason in step.reasons) or "follows those above"
        yield f"{step.stage.address:<{width}}  {_deed(step):<8}  {shown:>8}  {reasons}"
    again, number = work_again(planned, world.lock), len(world.wanted(targets))
    yield f"{len(steps)} stages of {number} would be made" + (f"; {again.line}" if again else "")


def _deed(step: Step) -> str:
    return "restored" if step.restored else "again" if step.again else "new"
