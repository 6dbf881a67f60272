"""The checks that take a second or two and import nothing heavy: what `dvc repro` runs before any stage works."""

from gift.doctor.batches import batch_findings, supply_findings
from gift.doctor.findings import Finding
from gift.doctor.machine import find_gpus, machine_findings, package_findings
from gift.doctor.memory import memory_findings
from gift.doctor.model import Model, find_model, model_findings
from gift.doctor.prompts import QUICK_BYTES, Prompts, find_prompts
from gift.doctor.rewards import reward_findings
from gift.doctor.settings import Project, read_project
from gift.doctor.storage import disk_findings, free_bytes, keeping_findings


def quick_findings() -> list[Finding]:
    """Of the project in the working folder."""
    project, findings = read_project()
    if project is None:
        return [*findings, *package_findings(set()), *keeping_findings()]
    return [*findings, *check(project, QUICK_BYTES)[0]]


def check(project: Project, limit: int | None) -> tuple[list[Finding], Model | None, Prompts | None]:
    """The findings; and the base policy's files and the prompts where they are here (`limit`: see find_prompts)."""
    params = project.params
    gpus = find_gpus()
    prompts, findings = find_prompts(params, limit)
    findings = [*batch_findings(project), *findings]
    findings += supply_findings(project, prompts.train.num_rows if prompts else params.prepare.num_train)
    model, found = find_model(project)
    findings += found
    if model:
        findings += model_findings(project, model, gpus.count)
        findings += memory_findings(project, model, gpus)
    findings += reward_findings(project, prompts)
    findings += machine_findings(project, gpus)
    findings += package_findings({params.generate.engine, params.evaluate.engine})
    findings += keeping_findings()
    if model:
        findings += disk_findings(project, model, free_bytes())
    return findings, model, prompts
