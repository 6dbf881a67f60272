"""The arithmetic of rounds, groups, steps and tokens: numbers that load one by one, but do not fit each other."""

from collections.abc import Sequence

from gift.doctor.findings import Finding, refusal
from gift.doctor.settings import Project
from gift.project.errors import UserError
from gift.sampling.settings import Sampling
from gift.training.schedule import check_schedule
from gift.training.steps import steps_of_groups

THEME = "batches"
LARGE_LR = 5e-5
"""A whole model that was pre-trained is seldom trained with more by reinforcement; adapters are, ten times as much."""


def batch_findings(project: Project) -> list[Finding]:
    """Everything below; counts of steps are those of a round whose groups all train."""
    generate, update = project.params.generate, project.params.update
    groups = range(generate.prompts_per_round)
    sizes = [len(step) for step in steps_of_groups(groups, update.groups_per_step, update.epochs, seed=0)]
    rounds = len(project.longest_chain)
    text = (
        f"a round: {generate.prompts_per_round:,} prompts x {generate.group_size} completions, {len(sizes)} optimizer "
        f"steps of {_span(sizes)} groups; {rounds} rounds in a chain: {rounds * len(sizes):,} steps"
    )
    findings = [Finding("ok", THEME, text)]
    findings += _step_findings(project, sizes)
    findings += _group_findings(generate.group_size)
    findings += _schedule_findings(project, len(sizes))
    findings += _length_findings(project.params.generate, "generate")
    findings += _length_findings(project.params.evaluate, "evaluate")
    findings += _agreement_findings(project)
    return findings


def supply_findings(project: Project, num_train: int | None) -> list[Finding]:
    """The prompts that a chain takes against those that there are; `num_train` None: not known yet."""
    taken, where = project.params.generate.prompts_per_round, "params.yaml: generate.prompts_per_round"
    rounds = len(project.longest_chain)
    if num_train is None:
        return [Finding("note", THEME, "the number of training prompts is not known before prepare has run", where)]
    if taken > num_train:
        text = f"{taken}: there are only {num_train} training prompts; lower it, or raise prepare.num_train"
        return [Finding("error", THEME, text, where)]
    times = rounds * taken / num_train
    text = f"{rounds} rounds take {rounds * taken:,} prompts, {times:.3g} times the {num_train:,} that there are"
    if rounds * taken <= num_train:
        return [Finding("ok", THEME, text)]
    return [
        Finding("note", THEME, f"{text}; from round {num_train // taken + 1} of a chain on prompts come again", where)
    ]


def _step_findings(project: Project, sizes: Sequence[int]) -> list[Finding]:
    """Steps are as equal as they can be, so a number that does not divide the round is met only nearly."""
    wanted, prompts = project.params.update.groups_per_step, project.params.generate.prompts_per_round
    where = "params.yaml: update.groups_per_step"
    if wanted > prompts:
        text = (
            f"{wanted}: a round has only {prompts} groups, and steps never cross rounds; lower it, or raise "
            "generate.prompts_per_round"
        )
        return [Finding("warning", THEME, text, where)]
    if set(sizes) == {wanted}:
        return []
    off = max(abs(size - wanted) for size in sizes) / wanted
    text = (
        f"{wanted}: does not divide the {prompts} groups of a round: its steps have {_span(sizes)}; a divisor of "
        "generate.prompts_per_round is met exactly"
    )
    return [Finding("warning" if off > 0.2 else "note", THEME, text, where)]


def _group_findings(size: int) -> list[Finding]:
    if size > 3:
        return []
    what = "of two standardised rewards one is always as far up as the other down" if size == 2 else "three rewards"
    text = f"{size}: {what}, however much they differ: a very noisy estimate; 8 or 16 are usual"
    return [Finding("warning", THEME, text, "params.yaml: generate.group_size")]


def _schedule_findings(project: Project, steps: int) -> list[Finding]:
    """Warm-up and decay against the steps of the longest chain."""
    update, chain = project.params.update, project.longest_chain
    total = steps * len(chain)
    findings = []
    if update.warmup_steps >= total:
        text = (
            f"{update.warmup_steps}: all {len(chain)} rounds of the chain have {total} optimizer steps, so the "
            f"learning rate never reaches {update.lr:g}; lower it, or add rounds"
        )
        findings.append(Finding("warning", THEME, text, "params.yaml: update.warmup_steps"))
    elif update.warmup_steps > total / 2:
        text = f"{update.warmup_steps}: more than half of all {total} optimizer steps of the chain are warm-up"
        findings.append(Finding("note", THEME, text, "params.yaml: update.warmup_steps"))
    findings += _decay_findings(project, steps)
    whole = update.lora is None and project.params.base.model != "arithmetic"
    if whole and update.lr > LARGE_LR:
        text = f"{update.lr:g}: very large for a whole pre-trained model; 1e-6 to 1e-5 are usual, with a LoRA ten times"
        findings.append(Finding("warning", THEME, text, "params.yaml: update.lr"))
    return findings


def _decay_findings(project: Project, steps: int) -> list[Finding]:
    """The rounds that `update` would refuse or that would run at the end rate, if all their groups train."""
    update, chain = project.params.update, project.longest_chain
    where = "params.yaml: update.schedule_steps"
    for number, name in enumerate(chain):
        try:
            note = check_schedule(number * steps, steps, update)
        except UserError as error:
            refused = refusal(THEME, error, "warning")  # a warning: groups without spread may leave enough steps
            text = refused.text.replace("this round has", f"{name} would be refused: if all groups train, it has")
            return [Finding("warning", THEME, text, where)]
        if note:
            return [Finding("note", THEME, f"{update.schedule_steps}: update@{name}: {note}", where)]
    if update.schedule_steps is not None and steps * len(chain) <= update.schedule_steps / 2:
        text = (
            f"{update.schedule_steps}: the chain of {len(chain)} rounds ends after {steps * len(chain)} steps, before "
            "half of the decay"
        )
        return [Finding("note", THEME, text, where)]
    return []


def _length_findings(sampling: Sampling, section: str) -> list[Finding]:
    """No prompt, however short, leaves room for max_tokens."""
    context = sampling.max_model_len
    if context is None or sampling.max_tokens < context:
        return []
    text = (
        f"{sampling.max_tokens}: leaves no room for a prompt in {section}.max_model_len = {context}; lower it, or "
        "raise max_model_len"
    )
    return [Finding("error", THEME, text, f"params.yaml: {section}.max_tokens")]


def _agreement_findings(project: Project) -> list[Finding]:
    """Choices in two sections that would make sampler, trainer and evaluation differ."""
    generate, evaluate, update = project.params.generate, project.params.evaluate, project.params.update
    findings = []
    if evaluate.max_tokens < generate.max_tokens:
        text = (
            f"{evaluate.max_tokens}: less than generate.max_tokens = {generate.max_tokens}: answers as long as those "
            "of the training are cut off and count as wrong; use the same"
        )
        findings.append(Finding("warning", THEME, text, "params.yaml: evaluate.max_tokens"))
    if generate.dtype != update.dtype:
        text = (
            f"{generate.dtype}: the update computes in {update.dtype}: log-probs of sampler and trainer differ more, "
            f"and `reference` stops at reference.max_mean_gap = {project.params.reference.max_mean_gap:g} nats a "
            "token; use the same"
        )
        findings.append(Finding("warning", THEME, text, "params.yaml: generate.dtype"))
    for key in ("engine", "dtype"):
        ours, theirs = generate.model_dump()[key], evaluate.model_dump()[key]
        if ours != theirs:
            text = f"{theirs}: generate.{key} is {ours}: the policy is evaluated in another way than it samples"
            findings.append(Finding("note", THEME, text, f"params.yaml: evaluate.{key}"))
    if not 0.3 <= generate.temperature <= 1.5:
        text = (
            f"{generate.temperature:g}: completions of a group will be {_extreme(generate.temperature)}; 1.0 is usual"
        )
        findings.append(Finding("warning", THEME, text, "params.yaml: generate.temperature"))
    return findings


def _extreme(temperature: float) -> str:
    return "nearly equal, and rewards without spread" if temperature < 1 else "mostly noise"


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"{low} to {high}"
