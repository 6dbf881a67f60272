"""Rough sizes of what training and sampling hold in memory, against that of this machine; activations are left out."""

import os

from gift.doctor.findings import Finding, amount
from gift.doctor.machine import Gpus
from gift.doctor.model import Model
from gift.doctor.settings import Project
from gift.training.deepspeed_config import engine_settings

THEME = "memory"


def memory_findings(project: Project, model: Model, gpus: Gpus) -> list[Finding]:
    """Weights, gradients and optimizer state of a rank of `update`, and the weights of a GPU that samples."""
    launch, generate = project.launch, project.params.generate
    world = launch.update.num_processes if launch.update.launcher != "in_process" else 1
    update = training_bytes(project, model, world)
    width = 2 if generate.dtype == "bfloat16" else 4
    sampler = model.num_parameters * width // launch.generate.tensor_parallel_size
    if not gpus.count:
        ranks, total = update * world, host_bytes()
        text = f"update: about {amount(ranks)} besides activations, of this machine's {amount(total)}"
        if ranks > total:
            text += "; use update.lora, a smaller model, or another machine"
            return [Finding("warning", THEME, text, "params.yaml: base.model")]
        return [Finding("ok", THEME, text)]
    if gpus.memory is None:
        return [
            Finding("note", THEME, f"update: about {amount(update)} a GPU besides activations; its memory is not known")
        ]
    findings = []
    text = f"update: about {amount(update)} a GPU besides activations, of {amount(gpus.memory)}"
    if update > gpus.memory:
        text += "; raise zero_stage, use more processes, offload_optimizer, or update.lora"
        findings.append(Finding("warning", THEME, text, "launch.yaml: update.zero_stage"))
    else:
        findings.append(Finding("ok", THEME, text))
    share = int(launch.generate.gpu_memory_utilization * gpus.memory)
    text = f"generate: {amount(sampler)} of weights a GPU, of {amount(share)} (gpu_memory_utilization)"
    if sampler > share:
        text += "; raise tensor_parallel_size, or use bfloat16"
        return [*findings, Finding("warning", THEME, text, "launch.yaml: generate.tensor_parallel_size")]
    return [*findings, Finding("ok", THEME, text)]


def training_bytes(project: Project, model: Model, world: int) -> int:
    """Weights (shared out at ZeRO 3), float32 gradients (from 2 on), Adam's state and masters (from 1 on)."""
    settings = engine_settings(project.params.update, project.launch.update)
    half, stage = settings.dtype == "bfloat16", settings.zero_stage
    trained = model.num_trained(project)
    weights = model.num_parameters * (2 if half else 4)
    state = trained * (12 if half else 8) * (not settings.offload_optimizer)
    parts = ((weights, 3), (trained * 4, 2), (state, 1))
    return sum(size // world if stage >= least else size for size, least in parts)


def host_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
