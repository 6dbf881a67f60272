"""What the files of the base policy say, read without loading it: config, names and sizes of the weights."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gift.doctor.findings import Finding, Level, amount, refusal
from gift.doctor.settings import Project
from gift.embedded.settings import Arithmetic
from gift.embedded.task import CHARACTERS
from gift.policy.folder import check_files, max_model_len
from gift.project.errors import UserError

THEME = "model"
WHERE = "params.yaml: base.model"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# The head sizes of vLLM's attention on a CPU (tests/test_doctor.py holds them against the installed vLLM).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_LFS = b"version https://git-lfs"
_EMBEDDINGS = re.compile(r"(^|\.)(embed_\w+|wte|wpe|\w*embeddings?|lm_head|output_layer)\.")


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
    def linear(self) -> dict[str, tuple[int, ...]]:
        """The matrices of linear layers below the head, by the name of their module."""
        return {
            name.removesuffix(".weight"): shape
            for name, shape in self.shapes.items()
            if len(shape) == 2 and name.endswith(".weight") and not _EMBEDDINGS.search(name)
        }

    @property
    def head_size(self) -> int | None:
        heads = self.config.get("num_attention_heads")
        return self.config.get("head_dim") or (self.config["hidden_size"] // heads if heads else None)

    def num_trained(self, project: Project) -> int:
        """Parameters that train: all, or those of the adapter, r * (in + out) for each layer it stands on."""
        lora = project.params.update.lora
        if lora is None:
            return self.num_parameters
        return sum(lora.r * sum(shape) for name, shape in self.linear.items() if _is_target(name, lora.target_modules))


def find_model(project: Project) -> tuple[Model | None, list[Finding]]:
    """The base policy's files, or None where they are not here yet or cannot be used; and what is to be said."""
    base = project.params.base
    if base.model == "arithmetic":
        model = embedded(project.params.arithmetic)
        wrong = _shape_problem(project.params.arithmetic)
        return (None, [wrong]) if wrong else (model, [_described(model, "the embedded model")])
    findings: list[Finding] = []
    folder: Path | None = Path(base.model)
    if not Path(base.model).is_dir():
        folder, findings = _hub_folder(base.model, base.revision)
    if folder is None:
        return None, findings
    try:
        model = read_model(folder)
    except UserError as error:  # what the hub's cache lacks, `base` will fetch
        level: Level = "error" if folder == Path(base.model) else "note"
        return None, [*findings, refusal(THEME, UserError(f"{WHERE}: {error.message}"), level)]
    return model, [*findings, _described(model, base.model)]


def read_model(folder: Path) -> Model:
    """Config and weights' headers of a model folder, or a `UserError`: missing, cut off, pickled, a Git LFS pointer."""
    weights = list(folder.glob("*.safetensors"))
    if not weights and any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise UserError(
            f"{folder}: its weights are pickles only, which are never read (they can run code); open it with "
            "transformers where you trust it, and save_pretrained writes safetensors"
        )
    check_files(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: not valid JSON ({error}); fetch it again") from None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(names)} weight files are missing, {missing[0]} first; fetch it again"
            )
        weights = [folder / name for name in names]
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(weights):
        shapes |= read_shapes(path)
    return Model({**config, **config.get("text_config", {})}, shapes, folder)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name from the header of a safetensors file: 8 bytes of length, then JSON; the file must be whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS))
        if start == _LFS:
            raise UserError(f"{path}: a Git LFS pointer, not weights; run `git lfs pull` there")
        file.seek(8)
        length = int.from_bytes(start[:8], "little")
        text = file.read(length) if length <= size else b""
    try:
        header = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a safetensors file; fetch it again") from None
    if 8 + length + end != size:
        raise UserError(f"{path}: {size:,} bytes, its header says {8 + length + end:,}: cut off; fetch it again")
    return shapes


def embedded(settings: Arithmetic) -> Model:
    """The model that `base` will train (embedded/base_policy.py): a Qwen3, tied embeddings, one token a character."""
    size, layers, wide = settings.hidden_size, settings.num_layers, 3 * settings.hidden_size
    head = size // settings.num_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (3 + len(CHARACTERS), size)}
    for number in range(layers):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (size, size) for name in "qkvo"}
        shapes |= {f"{layer}.self_attn.{name}_norm.weight": (head,) for name in "qk"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (wide, size) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (size, wide)
        shapes |= {f"{layer}.{name}_layernorm.weight": (size,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (size,)
    heads = {"num_attention_heads": settings.num_heads, "num_key_value_heads": settings.num_heads, "head_dim": head}
    return Model({"hidden_size": size, "architectures": ["Qwen3ForCausalLM"], **heads}, shapes)


def model_findings(project: Project, model: Model, num_gpus: int) -> list[Finding]:
    """What the stages would refuse of this model, or could not run."""
    config, update, launch = model.config, project.params.update, project.launch
    findings = []
    for section, sampling in (("generate", project.params.generate), ("evaluate", project.params.evaluate)):
        if model.folder:
            try:
                context = max_model_len(model.folder, sampling.max_model_len, section)
            except UserError as error:
                findings.append(refusal(THEME, error))
                continue
            if sampling.max_tokens >= context:
                text = (
                    f"{sampling.max_tokens}: leaves no room for a prompt in the model's context of {context}; lower it"
                )
                findings.append(Finding("error", THEME, text, f"params.yaml: {section}.max_tokens"))
    names = config.get("architectures") or []
    if names and not any("CausalLM" in name or "LMHead" in name or "ConditionalGeneration" in name for name in names):
        text = f"its architecture is {names[0]}, no causal language model; name one that generates text"
        findings.append(Finding("error", THEME, text, WHERE))
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if config.get(name) not in (None, 1, 1.0):
            text = f"its config has {name}={config[name]}: models that change their logits are not supported"
            findings.append(Finding("error", THEME, text, WHERE))
    if config.get("quantization_config"):
        text = "its weights are quantized and cannot be trained here; name the model in 16 or 32 bits"
        findings.append(Finding("error", THEME, text, WHERE))
    if config.get("auto_map"):
        text = (
            "its config asks for code of its own, which is never run; it works where transformers knows its model_type"
        )
        findings.append(Finding("warning", THEME, text, WHERE))
    drops = [
        key for key, value in config.items() if re.search("dropout|pdrop", key) and isinstance(value, float) and value
    ]
    if drops and launch.update.gradient_checkpointing:
        text = f"its config has {drops[0]}={config[drops[0]]}; set it to 0 there, or do without gradient checkpointing"
        findings.append(Finding("error", THEME, text, "launch.yaml: update.gradient_checkpointing"))
    findings += _parallel_findings(project, model, num_gpus)
    if update.lora and update.lora.target_modules != "all-linear":
        findings += _target_findings(update.lora.target_modules, model)
    return findings


def _parallel_findings(project: Project, model: Model, num_gpus: int) -> list[Finding]:
    """vLLM shares attention heads out over GPUs, and on a CPU knows few head sizes."""
    if "vllm" not in (project.params.generate.engine, project.params.evaluate.engine):
        return []
    number = project.launch.generate.tensor_parallel_size
    findings = []
    heads = int(model.config.get("num_attention_heads") or 0)
    shared = int(model.config.get("num_key_value_heads") or heads)
    if heads and (heads % number or (shared % number and number % shared)):
        text = f"{number}: does not divide the model's {heads} attention heads ({shared} for keys); choose a divisor"
        findings.append(Finding("error", THEME, text, "launch.yaml: generate.tensor_parallel_size"))
    if not num_gpus and model.head_size and model.head_size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        text = f"vllm: on a CPU it takes heads of {sizes}, the model's are {model.head_size}; use transformers"
        findings.append(Finding("error", THEME, text, "params.yaml: generate.engine"))
    return findings


def _target_findings(targets: list[str], model: Model) -> list[Finding]:
    """The rule of gift/policy/lora.py, on names alone: every target is linear layers below the head."""
    modules = {name.rpartition(".")[0] for name in model.shapes}
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in model.linear}))
    findings = []
    for target in targets:
        found = {name for name in modules if _is_target(name, [target])}
        if not found or found - model.linear.keys():
            why = "is not (only) linear layers below the head" if found else "fits no module of the policy"
            text = f"'{target}' {why}; choose from {known}"
            findings.append(Finding("error", THEME, text, "params.yaml: update.lora.target_modules"))
    return findings


def _is_target(name: str, targets: str | list[str]) -> bool:
    return isinstance(targets, str) or any(name == target or name.endswith(f".{target}") for target in targets)


def _shape_problem(settings: Arithmetic) -> Finding | None:
    head, rest = divmod(settings.hidden_size, settings.num_heads)
    if not rest and head % 2 == 0:
        return None
    text = f"{settings.num_heads}: does not cut hidden_size = {settings.hidden_size} into even parts; choose another"
    return Finding("error", THEME, text, "params.yaml: arithmetic.num_heads")


def _described(model: Model, name: str) -> Finding:
    number = model.num_parameters
    return Finding(
        "ok", THEME, f"{name}: {number:,} parameters, {amount(4 * number)} in float32, {amount(2 * number)} in bfloat16"
    )


def _hub_folder(name: str, revision: str | None) -> tuple[Path | None, list[Finding]]:
    """Where the hub's cache has the model, if it does; and whether the name and revision will always mean the same."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "-")):
        return None, [Finding("error", THEME, f"'{name}': no such folder, and no hub id (owner/name)", WHERE)]
    findings = []
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        text = (
            "without a commit the newest files are fetched whenever `base` runs, and another model makes every round "
            "anew; set it to a commit (40 hex digits) of the hub"
        )
        findings.append(Finding("warning", THEME, text, "params.yaml: base.revision"))
    folder = _in_cache(name, revision)
    if folder is None:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        text = f"'{name}': not in the hub's cache, and HF_HUB_OFFLINE is set; fetch it first, or name a local folder"
        fetched = f"'{name}': will be fetched from the hub by `base`; its files are looked at once they are here"
        findings.append(Finding("error" if offline else "note", THEME, text if offline else fetched, WHERE))
    return folder, findings


def _in_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
