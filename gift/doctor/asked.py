"""Whether every reward is asked for some prompt (`where`), and every prompt has a reward."""

import numpy as np

from gift.doctor.findings import Finding, refusal
from gift.doctor.prompts import Prompts
from gift.doctor.settings import Project
from gift.project.errors import UserError
from gift.rewards.total import counting
from gift.scoring import rows
from gift.scoring.asked import Asked, Mask, column_values
from gift.tables.where import is_one_of

THEME = "rewards"


def asked_findings(project: Project, prompts: Prompts) -> list[Finding]:
    """What `score` and `evaluate` would refuse; values that no prompt has; prompts on which nothing can train."""
    score, judges = project.params.score, project.params.evaluate.judges
    if not any(reward.where for reward in score.rewards.values()) and len(judges) < 2:
        return []
    try:
        train = Asked(score, rows.Prompts(prompts.train))
        train.refuse_useless()
    except UserError as error:
        return [refusal(THEME, error)]
    try:
        held_out = Asked(score, rows.Prompts(prompts.eval))
        judged = held_out.correct(judges) if judges else None
    except UserError as error:
        found = refusal(THEME, error)
        return [Finding("error", THEME, f"{found.text} (eval prompts)", found.where)]
    findings = _value_findings(train, held_out)
    trains = np.zeros(prompts.train.num_rows, dtype=bool)
    for name, counts in counting(train.masks, train.masks, score.rewards).items():
        if score.rewards[name].weight:
            trains |= counts
    if not trains.all():
        text = (
            f"{_count(~trains, prompts.train['prompt_id'].to_pylist(), 'training')} are asked for by no reward with a "
            "weight: they are sampled, and nothing trains on them; filter them out, or give them a reward"
        )
        findings.append(Finding("warning", THEME, text, "params.yaml: score.rewards"))
    if judged is not None and not judged.all():
        text = f"{_count(~judged, prompts.eval['prompt_id'].to_pylist(), 'eval')} count in no accuracy"
        findings.append(Finding("note", THEME, text, "params.yaml: evaluate.correct"))
    return findings


def _value_findings(train: Asked, held_out: Asked) -> list[Finding]:
    """Values, each by itself, that neither table has: of a list, a misspelt one is missed by nobody else."""
    findings = []
    for name, reward in train.score.rewards.items():
        for column, wanted in reward.where.items():
            known = [*column_values(train.prompts.table[column]), *column_values(held_out.prompts.table[column])]
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if not any(is_one_of(each, value) for each in known):
                    text = f"{value!r}: no prompt has it, in train or eval; {train.hint(column, value)}"
                    findings.append(
                        Finding("warning", THEME, text, f"params.yaml: score.rewards.{name}.where.{column}")
                    )
    return findings


def _count(mask: Mask, prompt_ids: list[str], kind: str) -> str:
    """How many prompts, and the first of them."""
    return f"{int(mask.sum()):,} of {len(mask):,} {kind} prompts (prompt_id={prompt_ids[int(mask.argmax())]} first)"
