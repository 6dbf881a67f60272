"""What the files of the base policy say, read without loading it: config, names and sizes of the weights."""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.doctor.findings import Finding, Theme
from gift.doctor.whole import Launch, Params
from gift.policy import refusals
from gift.policy.fetch import in_cache, name_problem, weight_shapes
from gift.policy.folder import max_model_len, read_config
from gift.policy.settings import Base
from gift.project.errors import UserError, amount
from gift.sampling.engine.vllm_limits import vllm_problems
from gift.sampling.settings import room_problem

say = Theme("model")
WHERE = "params.yaml: base.model"


@dataclass(frozen=True)
class Model:
    """config.json (of the text part) and the shape of every weight by name; `folder` None: it is not made yet."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    folder: Path | None = None

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def largest(self) -> int:
        """Parameters of the largest weight: most often the vocabulary's."""
        return max(map(math.prod, self.shapes.values()))

    def num_trained(self, params: Params) -> int:
        """Parameters that train: all, or those of the adapter, r * (in + out) for each layer it stands on."""
        lora = params.update.lora
        if lora is None:
            return self.num_parameters
        linear, targets = refusals.linear_modules(self.shapes), lora.target_modules
        layers = [name for name in linear if refusals.is_target(name, targets)]
        return sum(lora.r * sum(self.shapes[f"{name}.weight"]) for name in layers)


def find_model(params: Params) -> tuple[Model | None, list[Finding]]:
    """The base policy's files, or None where they are not here yet or cannot be used; and what is to be said."""
    name, findings = params.base.model, list[Finding]()
    if name == "arithmetic":
        task = params.arithmetic
        model = Model({**task.config, "architectures": ["Qwen3ForCausalLM"]}, task.shapes)
        return model, [_described(model, "the embedded model")]
    local = Path(name).is_dir()
    folder, findings = (Path(name), findings) if local else _hub_folder(params.base)
    if folder is None:
        return None, findings
    try:
        model = read_model(folder)
    except UserError as error:  # what the hub's cache lacks, `base` will fetch
        return None, [*findings, *say.refused(error, f"{WHERE}: ", "error" if local else "note")]
    return model, [*findings, _described(model, name)]


def read_model(folder: Path) -> Model:
    """Config and weights' shapes of a model folder, or a `UserError` with a line for each reason not to open it."""
    if reasons := refusals.file_refusals(folder):
        raise UserError("\n       ".join(f"{folder}: {reason}" for reason in reasons))
    return Model(read_config(folder), weight_shapes(folder), folder)


def context_findings(params: Params, model: Model | None) -> Iterator[Finding]:
    """Whether the context is one that the model has, and leaves room for a prompt."""
    for section, sampling in params.samplings.items():
        context = sampling.max_model_len
        if model:
            limit = model.config.get("max_position_embeddings")
            try:
                context = max_model_len(model.folder, context, section) if model.folder else context or limit
            except UserError as error:
                yield from say.refused(error)
                continue
        if context and (problem := room_problem(sampling, section, context)):
            yield say.error(problem)


def model_findings(params: Params, launch: Launch, model: Model, num_gpus: int) -> Iterator[Finding]:
    """What the stages would refuse of this model, or could not run."""
    for reason in refusals.config_refusals(model.config):
        yield say.error(f"{WHERE}: {reason}")
    if model.config.get("auto_map"):
        text = "its config asks for code of its own, never run here; it works where transformers knows its model_type"
        yield say.warning(f"{WHERE}: {text}")
    if launch.update.gradient_checkpointing is True and (dropout := refusals.dropout_refusal(model.config)):
        yield say.error(f"launch.yaml: update.gradient_checkpointing: {dropout}")
    if "vllm" in (params.generate.engine, params.evaluate.engine):
        found = vllm_problems(model.config, launch.generate.tensor_parallel_size, on_gpu=num_gpus > 0)
        yield from map(say.error, found)
    lora = params.update.lora
    if lora and lora.target_modules != "all-linear":
        modules = {name.rpartition(".")[0] for name in model.shapes}
        for reason in refusals.target_refusals(lora.target_modules, modules, refusals.linear_modules(model.shapes)):
            yield say.error(f"params.yaml: update.lora.target_modules: {reason}")


def _described(model: Model, name: str) -> Finding:
    number, single, half = model.num_parameters, amount(4 * model.num_parameters), amount(2 * model.num_parameters)
    return say.ok(f"{name}: {number:,} parameters, {single} in float32, {half} in bfloat16")


def _hub_folder(base: Base) -> tuple[Path | None, list[Finding]]:
    """Where the hub's cache has the model, if it does; and whether the name and revision will always mean the same."""
    name, findings = base.model, list[Finding]()
    if problem := name_problem(name):
        return None, [say.error(problem)]
    if base.revision is None or not re.fullmatch(r"[0-9a-f]{40}", base.revision):
        text = "without a commit the newest files are fetched whenever `base` runs, and another model makes every round"
        remedy = "set it to a commit (40 hex digits) of the hub"
        findings.append(say.warning(f"params.yaml: base.revision: {text} anew; {remedy}"))
    folder = in_cache(base)
    if folder is None and os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        text = "not in the hub's cache, and HF_HUB_OFFLINE is set; fetch it first, or name a local folder"
        findings.append(say.error(f"{WHERE}: '{name}': {text}"))
    elif folder is None:
        text = "will be fetched from the hub by `base`; its files are looked at once they are here"
        findings.append(say.note(f"{WHERE}: '{name}': {text}"))
    return folder, findings
