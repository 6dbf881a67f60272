"""The arithmetic of rounds: steps, prompts, lengths and memory; what loads, but does not fit together."""

import os
from collections.abc import Iterator, Sequence
from itertools import accumulate

from gift.doctor.findings import Finding, Level, Theme
from gift.doctor.model import Model
from gift.doctor.whole import Params, Project
from gift.methods.sample.epochs import supply_problem
from gift.project.errors import amount, counted
from gift.project.machine import Gpus
from gift.training.deepspeed_config import engine_settings
from gift.training.memory import Checkpointing, Decoder
from gift.training.steps import check_schedule, schedule_problem, steps_of_groups, warmup_problem

say, memory = Theme("batches"), Theme("memory")
LARGE_LR = 5e-5
"""A whole model that was pre-trained is seldom trained with more by reinforcement; adapters are, ten times as much."""


def batch_findings(project: Project) -> Iterator[Finding]:
    """The rounds as a whole; counts of steps are those of rounds whose groups all train."""
    chain, generate = project.longest_chain, project.params.generate
    sizes, steps = step_sizes(project.params), {name: len(step_sizes(project.of(name))) for name in project.rounds}
    total = sum(steps[name] for name in chain)
    text = f"a round: {generate.prompts_per_round:,} prompts x {generate.group_size} completions, {len(sizes)}"
    yield say.ok(
        f"{text} optimizer steps of {_span(sizes)} groups; {counted(len(chain), 'round')} in a chain: {total:,} steps"
    )
    if problem := warmup_problem(project.params.update, total):
        level: Level = "warning" if project.params.update.warmup_steps >= total else "note"
        yield say.found(level, f"{problem}, or add rounds")
    yield from _decay_findings(project, steps, total)


def supply_findings(project: Project, num_train: int | None) -> Iterator[Finding]:
    """The prompts that a chain takes against those that there are; `num_train` None: not known yet."""
    where = "params.yaml: generate.prompts_per_round"
    if num_train is None:
        yield say.note("the number of training prompts is not known before prepare has run", where)
        return
    generates = [project.of(name).generate for name in project.rounds]
    takes = {name: min(project.of(name).generate.most[0], num_train) for name in project.rounds}
    if problem := supply_problem(max(each.prompts_per_round for each in generates), num_train):
        yield say.error(problem)
        return
    for way, needed in ((each.sample, each.most[0]) for each in generates if each.sample):
        if way.record.takes_most and (problem := supply_problem(needed, num_train, way.name)):
            yield say.error(problem)
            return
    chain, upto = project.longest_chain, list(accumulate(takes[name] for name in project.longest_chain))
    at_most = "up to " if any(each.sample for each in generates) else ""
    text = f"a chain of {counted(len(chain), 'round')} takes {at_most}{upto[-1]:,} prompts, "
    text += f"{upto[-1] / num_train:.3g} times the {num_train:,} here"
    again = next((name for name, total in zip(chain, upto, strict=True) if total > num_train), None)
    yield say.note(f"{text}; from {again} on prompts come again", where) if again else say.ok(text)


def round_findings(params: Params) -> Iterator[Finding]:
    """Settings of one round that do not fit each other."""
    generate, evaluate, update = params.generate, params.evaluate, params.update
    if generate.sample:
        kept = generate.prompts_per_round * generate.group_size
        text = f"a round samples up to {generate.most[1]:,} completions, calls the rewards for them, and keeps {kept:,}"
        yield say.note(text, f"params.yaml: generate.sample: {generate.sample.name}")
    wanted, prompts, sizes = update.groups_per_step, generate.prompts_per_round, step_sizes(params)
    line = f"params.yaml: update.groups_per_step: {wanted}: "
    if wanted > prompts:
        line += f"a round has only {prompts} groups, and steps never cross rounds; lower it, or raise "
        yield say.warning(f"{line}generate.prompts_per_round")
    elif set(sizes) != {wanted}:  # steps are as equal as they can be
        line += f"does not divide the {prompts} groups of a round: its steps have {_span(sizes)}; a divisor of "
        off = max(abs(size - wanted) for size in sizes) / wanted
        yield say.found("warning" if off > 0.2 else "note", f"{line}generate.prompts_per_round is met exactly")
    if generate.group_size <= 3:
        size = generate.group_size
        what = "of two standardised rewards one is always as far up as the other down" if size == 2 else "three rewards"
        text = f"{size}: {what}, however much they differ: a very noisy estimate; 8 or 16 are usual"
        yield say.warning(f"params.yaml: generate.group_size: {text}")
    if update.lora is None and params.base.model != "arithmetic" and update.lr > LARGE_LR:
        text = f"{update.lr:g}: very large for a whole pre-trained model; 1e-6 to 1e-5 are usual, with a LoRA ten times"
        yield say.warning(f"params.yaml: update.lr: {text}")
    if evaluate.max_tokens < generate.max_tokens:
        text = f"{evaluate.max_tokens}: less than generate.max_tokens = {generate.max_tokens}: answers as long as those"
        yield say.warning(f"params.yaml: evaluate.max_tokens: {text} of the training are cut off and count as wrong")
    if generate.dtype != update.dtype:
        text = f"{generate.dtype}: the update computes in {update.dtype}: log-probs of sampler and trainer differ more"
        stop = f"`reference` stops at reference.max_mean_gap = {params.reference.max_mean_gap:g} nats a token"
        yield say.warning(f"params.yaml: generate.dtype: {text}, and {stop}; use the same")
    for key in ("engine", "dtype"):
        ours, theirs = getattr(generate, key), getattr(evaluate, key)
        if ours != theirs:
            text = f"{theirs}: generate.{key} is {ours}: the policy is evaluated in another way than it samples"
            yield say.note(f"params.yaml: evaluate.{key}: {text}")
    if not 0.3 <= generate.temperature <= 1.5:
        extreme = "nearly equal, and rewards without spread" if generate.temperature < 1 else "mostly noise"
        text = f"{generate.temperature:g}: completions of a group will be {extreme}; 1.0 is usual"
        yield say.warning(f"params.yaml: generate.temperature: {text}")


def group_findings(project: Project) -> Iterator[Finding]:
    """Groups that do not fit a batch: a loss that couples a group computes the log-probs of a cut one twice."""
    params, budget = project.params, project.launch.update.tokens_per_batch
    size, match = params.generate.group_size, params.update.match
    longest = size * params.generate.max_tokens
    if longest > budget and match.record.is_coupled(match.settings):
        text = f"{budget:,}: a group of {size} completions has up to {longest:,} tokens; where one does not fit, it is "
        text += f"cut, and `{match.name}` computes it twice: about a third more work"
        yield say.note(f"launch.yaml: update.tokens_per_batch: {text}")


def step_sizes(params: Params) -> list[int]:
    """The groups of each optimizer step of a round."""
    groups, update = range(params.generate.prompts_per_round), params.update
    return [len(step) for step in steps_of_groups(groups, update.groups_per_step, update.epochs, seed=0)]


def _decay_findings(project: Project, steps: dict[str, int], total: int) -> Iterator[Finding]:
    """The first round that `update` would refuse or run at the end rate, if all its groups train; or an unused decay.

    A warning, for groups without spread may leave enough steps.
    """
    where = "params.yaml: update.schedule_steps"
    for name in project.rounds:
        own, first = project.of(name), sum(steps[each] for each in project.chain(name)[:-1])
        if problem := schedule_problem(first, steps[name], own.update):
            yield say.warning(f"{problem} (so {name} would be refused, if the groups of all rounds train)")
            return
        if note := check_schedule(first, steps[name], own.update):
            yield say.note(f"{own.update.schedule_steps}: update@{name}: {note}", where)
            return
    end = project.params.update.schedule_steps
    if end is not None and total <= end / 2:
        chain = counted(len(project.longest_chain), "round")
        text = f"the chain of {chain} ends after {total} steps, before half of the decay"
        yield say.note(f"{end}: {text}", where)


def memory_findings(project: Project, model: Model, gpus: Gpus) -> Iterator[Finding]:
    """Estimates against this machine's sizes: what a rank of `update` holds and its batch takes; a GPU that samples."""
    launch, params = project.launch, project.params
    world = launch.update.num_processes if launch.update.launcher != "in_process" else 1
    if not gpus.count:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield from _update_findings(project, model, world, total // world, f"this machine's {amount(total)}", "cpu")
        return
    there = f"the GPU's {amount(gpus.memory)}" if gpus.memory else "a GPU whose memory is not known"
    yield from _update_findings(project, model, world, gpus.memory, there, "cuda")
    if gpus.memory is None:
        return
    width = 2 if params.generate.dtype == "bfloat16" else 4
    sampler = model.num_parameters * width // launch.generate.tensor_parallel_size
    share = int(launch.generate.gpu_memory_utilization * gpus.memory)
    text = f"generate: {amount(sampler)} of weights a GPU, of {amount(share)} (gpu_memory_utilization)"
    remedy = "raise tensor_parallel_size, or use bfloat16"
    yield _fits(sampler, share, text, remedy, "launch.yaml: generate.tensor_parallel_size")


def _update_findings(
    project: Project, model: Model, world: int, room: int | None, there: str, device: str
) -> Iterator[Finding]:
    """A rank's memory against `room` (None: not known), and the tokens_per_batch that fits in what is left of it."""
    launch, params = project.launch.update, project.params
    settings, trained = engine_settings(params.update, launch), model.num_trained(params)
    held = settings.bytes_a_rank(model.num_parameters, trained, world)
    largest = 0 if params.update.lora else model.largest
    decoder = Decoder.of(model.config, model.shapes)
    each = "a GPU" if device == "cuda" else "a process" if world > 1 else "in all"
    text = f"update: about {amount(held)} {each} besides activations"
    if decoder is None or room is None or held + settings.bytes_of_a_step(trained, largest, 0) > room:
        remedy = "use update.lora, a smaller model, or another machine"
        if device == "cuda":
            remedy = "raise zero_stage, use more processes, offload_optimizer, or update.lora"
        where = "launch.yaml: update.zero_stage" if device == "cuda" else "params.yaml: base.model"
        yield _fits(held, held if room is None else room, f"{text}, of {there}", remedy, where)
        return
    how = params.update.dtype, launch.gradient_checkpointing, device
    batch = decoder.batch_bytes(launch.tokens_per_batch, *how)
    need = held + settings.bytes_of_a_step(trained, largest, batch)
    spare = room - held - settings.bytes_of_a_step(trained, 0, 0)
    ways: tuple[Checkpointing, ...] = (False, "selective", True)
    fits = [decoder.num_tokens(spare, params.update.dtype, saving, device) // 100 * 100 for saving in ways]
    text = (
        f"update: about {amount(need)} {each} ({amount(held)} of weights, gradients and optimizer, {amount(batch)} for "
        f"a batch of {launch.tokens_per_batch:,} tokens), of {there}; up to tokens_per_batch {fits[0]:,} fit, "
        f"with gradient_checkpointing: selective {fits[1]:,}, with true {fits[2]:,}"
    )
    remedy = "lower it, or gradient_checkpointing: selective or true"
    yield _fits(need, room, text, remedy, "launch.yaml: update.tokens_per_batch")


def _fits(need: int, there: int, text: str, remedy: str, where: str) -> Finding:
    return memory.warning(f"{text}; {remedy}", where) if need > there else memory.ok(text)


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"{low} to {high}"
