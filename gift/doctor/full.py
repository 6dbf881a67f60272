"""All checks: the quick ones, then prompts in tokens and rewards on gold answers; under a minute, on a CPU."""

from gift.doctor.findings import Finding
from gift.doctor.prompts import prompt_findings
from gift.doctor.quick import check, quick_findings
from gift.doctor.settings import read_project
from gift.doctor.tokens import token_findings
from gift.doctor.trials import trial_findings


def full_findings() -> list[Finding]:
    """Of the project in the working folder; without settings that load, the quick ones only."""
    project, findings = read_project()
    if project is None:
        return quick_findings()
    found, model, prompts = check(project, None)
    findings += found
    if prompts:
        findings += prompt_findings(prompts, project.params.score)
        if model and (model.folder or project.params.base.model == "arithmetic"):
            findings += token_findings(project, model.folder, prompts)
        if not any(finding.level == "error" and finding.theme == "rewards" for finding in findings):
            findings += trial_findings(project, prompts.train)
    return findings
