"""All checks of a project: the quick ones import nothing heavy; the full ones end within a minute, on a CPU."""

from collections.abc import Iterator
from dataclasses import replace
from math import inf

from gift.doctor.again import again_findings
from gift.doctor.findings import Finding, has_error
from gift.doctor.machine import (
    disk_findings,
    find_room,
    flavour_findings,
    host_findings,
    keeping_findings,
    machine_findings,
    package_findings,
)
from gift.doctor.model import Model, context_findings, find_model, model_findings
from gift.doctor.prompts import (
    QUICK_BYTES,
    Prompts,
    domain_findings,
    find_prompts,
    given_findings,
    prompt_findings,
    token_findings,
)
from gift.doctor.rewards import reward_findings, trial_findings
from gift.doctor.sizes import batch_findings, group_findings, memory_findings, round_findings, supply_findings
from gift.doctor.whole import Project, read_project
from gift.project.machine import Gpus, find_gpus


def check_project(quick: bool, *, again: bool = True) -> list[Finding]:
    """The findings of the project in the working folder; `quick`: what takes a second or two, as `dvc repro` does.

    `again`: also what would run again; in a run the stage `code` has said it already.
    """
    project, findings = read_project()
    if project is None:
        return [*findings, *package_findings(set()), *keeping_findings()]
    params, gpus = project.params, find_gpus()
    model, of_model = find_model(params)
    prompts, of_prompts = find_prompts(params, QUICK_BYTES if quick else inf)
    findings += [*batch_findings(project), *of_prompts]
    findings += supply_findings(project, prompts.train.num_rows if prompts else params.prepare.num_train)
    findings += [*of_model, *_findings(project, model, prompts, gpus, quick)]
    for name, own in project.own.items():
        changed = _findings(replace(project, params=own), model, prompts, gpus, quick)
        findings += [replace(each, text=f"{each.text} ({name})") for each in changed if each not in findings]
    findings += [*package_findings({params.generate.engine, params.evaluate.engine}), *flavour_findings(gpus)]
    findings += keeping_findings()
    findings += [] if quick else host_findings(project.launch.update)
    findings += again_findings() if again else []
    findings += disk_findings(project, model, find_room()) if model else []
    findings += prompt_findings(prompts, params.score) if prompts and not quick else []
    said: dict[tuple[str, str], Finding] = {}
    for each in findings:  # of two checks that meet the same rule of an owner the first says it
        said.setdefault((each.where, each.text), each)
    return list(said.values())


def _findings(
    project: Project, model: Model | None, prompts: Prompts | None, gpus: Gpus, quick: bool
) -> Iterator[Finding]:
    """What depends on the settings that a round may change for itself."""
    params = project.params
    yield from round_findings(params)
    yield from group_findings(project)
    yield from context_findings(params, model)
    if model:
        yield from model_findings(params, project.launch, model, gpus.count)
        yield from memory_findings(project, model, gpus)
    yield from machine_findings(project, gpus)
    if prompts:
        yield from domain_findings(params, prompts)
    yield from given_findings(params, prompts)
    rewards = list(reward_findings(project, prompts))
    yield from rewards
    if quick or not prompts:
        return
    if model:
        yield from token_findings(params, model.folder, prompts)
    if not has_error(rewards):
        yield from trial_findings(project, prompts.train)
