"""Every reason why a model cannot be opened or trained, in words, from what is cheap to read: files, config, names.

Each function says what is wrong with "it", without the place: a stage raises the first of them, the doctor shows all.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
# Keys of a config that change the logits after the head, which the log-probs (gift/logprobs) would not see.
_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
_CAUSAL = ("CausalLM", "LMHead", "ConditionalGeneration")
_EMBEDDINGS = re.compile(r"(^|\.)(embed_\w+|wte|wpe|\w*embeddings?|lm_head|output_layer)\.")


def file_refusals(folder: Path) -> list[str]:
    """What a model folder lacks for transformers and vLLM to open it without pickles and remote code."""
    reasons = []
    if not (folder / "config.json").is_file():
        reasons.append("no model (config.json is missing); base.model must be a hub id or a transformers folder")
    if not any(folder.glob("*.safetensors")):
        pickled = any(any(folder.glob(pattern)) for pattern in PICKLES)
        why = ", but pickles only, which are never read (they can run code)" if pickled else ""
        reasons.append(f"no *.safetensors weights{why}; open it where you trust it, and save it with save_pretrained")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        reasons.append("no tokenizer beside the model; save one there with tokenizer.save_pretrained")
    return reasons


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of the language model: its text part, where it has one, before the whole."""
    return {**config, **{key: value for key, value in (config.get("text_config") or {}).items() if value is not None}}


def config_refusals(config: Mapping[str, Any]) -> list[str]:
    """Why a model with this `text_config` cannot be a policy."""
    reasons = []
    names = config.get("architectures") or []
    if names and not any(word in name for name in names for word in _CAUSAL):
        reasons.append(f"its architecture is {names[0]}, no causal language model; name one that generates text")
    reasons += [
        f"its config has {name}={config[name]}: models that change their logits are not supported"
        for name in _LOGITS
        if config.get(name) not in (None, 1, 1.0)
    ]
    if config.get("quantization_config"):
        reasons.append("its weights are quantized and cannot be trained here; name the model in 16 or 32 bits")
    return reasons


def dropout_refusal(config: Mapping[str, Any]) -> str | None:
    """Why it cannot train under gradient checkpointing, whose training mode would switch dropout on: a log-prob would
    be another one at every look."""
    for name, value in config.items():
        if re.search("dropout|pdrop", name) and isinstance(value, float) and value:
            return f"its config has {name}={value}; set it to 0 there, or do without gradient checkpointing"
    return None


def linear_modules(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The linear layers below the head, by the names and shapes of all weights (as far as names tell)."""
    return {
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and not _EMBEDDINGS.search(name)
    }


def module_names(weights: Collection[str]) -> set[str]:
    """The modules that hold these weights, containers included."""
    return {name[: dot.start()] for name in weights for dot in re.finditer(r"\.", name)}


def target_refusals(targets: Sequence[str], modules: Collection[str], linear: Collection[str]) -> list[str]:
    """Which of `update.lora.target_modules` are not linear layers below the head.

    `modules` are the names of all modules, containers included, `linear` those of the linear layers. PEFT is silent
    about a name that fits nothing, and would wrap the head, whose plain weight the log-probs need.
    """
    known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
    reasons = []
    for target in targets:
        found = {name for name in modules if is_target(name, [target])}
        if not found or found - set(linear):
            why = "is not (only) linear layers below the head" if found else "fits no module of the policy"
            reasons.append(f"'{target}' {why}; choose from {known}")
    return reasons


def is_target(module: str, targets: str | Sequence[str]) -> bool:
    """Whether an adapter on `targets` stands on this module: PEFT's rule. A string is all-linear."""
    return isinstance(targets, str) or any(module == target or module.endswith(f".{target}") for target in targets)


def adapter_dtype_refusal(engine: str, dtype: str, on_gpu: bool) -> str | None:
    """Why a sampler of this engine and dtype cannot sample with an adapter."""
    if engine == "vllm" and dtype == "float32" and on_gpu:
        return "float32: on a GPU vLLM samples with an adapter in bfloat16 only; set it, or engine: transformers"
    return None
