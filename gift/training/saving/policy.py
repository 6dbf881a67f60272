"""The policy that a round leaves, written by its ranks, and the proof that it opens as the one that was trained."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gift.logprobs.tokens import ROUNDING, TokenLogprobs, completion_logprobs
from gift.policy.adapter import save_adapter
from gift.policy.folder import MODEL_CONFIGS, PolicyFiles, copy_companions
from gift.policy.open import open_policy
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.training.engine import Engine
from gift.training.learned import PREFIX
from gift.training.ranks import from_rank_0
from gift.training.saving.shards import Key, check_written, cut, file_names, in_waves, of_all_ranks

_LOST = "nothing was published. The model's save_pretrained does not keep its weights or configuration"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Probe:
    """One completion (columns of one row), and its log-probs [T] under the trained policy, nats at `temperature`."""

    temperature: float
    prompt_ids: Ragged
    completion_ids: Ragged
    logprobs: Tensor


@dataclass(frozen=True)
class Written:
    """A policy as the ranks left it, on rank 0: what opens it, and a digest of every parameter that trained."""

    files: PolicyFiles
    digests: dict[str, str]


def write_policy(
    engine: Engine, folder: Path, parent: PolicyFiles, dtype: str, adapter: dict[str, Any] | None
) -> Written | None:
    """The trained weights in `dtype`, as a Hugging Face folder or, of a LoRA round, as PEFT's; the result is rank 0's.

    All ranks call it, and each writes the shards that it owns. `adapter` is the config of the adapter
    (`adapter_config`), whose file is always one, or None where the whole model was trained. Tokenizer and templates are
    the parent's own files.
    """
    width = getattr(torch, dtype).itemsize
    sizes = {
        ("weight", name): width * shape.numel() for name, shape in engine.shapes.items() if not name.startswith(PREFIX)
    }
    shards = [list(sizes)] if adapter is not None else cut(sizes)
    names = file_names(Path(_WEIGHTS).stem, len(shards))
    from_rank_0(lambda: _make_empty(folder))
    # Without weights: it knows what they are called in files, and has the configuration.
    model = open_policy(PolicyFiles(parent.model), dtype, "meta") if adapter is None else None

    def write(number: int, tensors: dict[Key, Tensor]) -> tuple[dict[str, int], dict[str, str]]:
        own = {name.removeprefix("model."): tensor for (_, name), tensor in tensors.items()}
        digests = {name: digest_of(tensor) for name, tensor in own.items()}
        if adapter is not None:
            save_adapter(folder, adapter, own, dtype)
            return {}, digests
        return _write_shard(folder, names[number], own, model, with_config=number == 0), digests

    written = of_all_ranks(in_waves(engine, shards, getattr(torch, dtype), write))
    if engine.rank:
        return None
    if len(shards) > 1:
        _write_index(folder, model, dict(zip(names, (found for found, _ in written), strict=True)))
    copy_companions(*((parent.folder, folder, MODEL_CONFIGS) if adapter is not None else (parent.model, folder)))
    files = PolicyFiles(folder) if adapter is None else PolicyFiles(parent.model, folder)
    return Written(files, {name: digest for _, digests in written for name, digest in digests.items()})


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_shard(folder: Path, name: str, weights: dict[str, Tensor], model: Any, with_config: bool) -> dict[str, int]:
    """What save_pretrained makes of some weights, as the file `name`; returns the tensors in it and their bytes."""
    place = folder / f"{name}.tmp"
    shutil.rmtree(place, ignore_errors=True)
    model.should_save_on_this_rank = lambda is_main_process: True  # else no rank but 0 writes a file
    whole = 1 + sum(each.nbytes for each in weights.values())
    model.save_pretrained(place, state_dict=dict(weights), max_shard_size=whole)
    found = check_written(place / _WEIGHTS, weights)
    for path in sorted(place.iterdir()):
        if path.name == _WEIGHTS:
            os.replace(path, folder / name)
        elif with_config:
            os.replace(path, folder / path.name)
    shutil.rmtree(place)
    return found


def _write_index(folder: Path, model: Any, files: Mapping[str, Mapping[str, int]]) -> None:
    """Hugging Face's, as save_pretrained writes it; files: the tensors in each, and their bytes."""
    placed: dict[str, str] = {}
    for file, names in files.items():
        if not (folder / file).exists():
            raise UserError(
                f"{folder / file}: another rank wrote it, and rank 0 does not see it: hosts must share data/"
            )
        if twice := sorted(placed.keys() & names.keys()):
            raise UserError(
                f"{folder}: {twice[0]} would stand in {placed[twice[0]]} and in {file}: the files of this model put "
                "together what it trains apart, so one as large as this cannot be saved; train an adapter (update.lora)"
            )
        placed |= dict.fromkeys(names, file)
    metadata = {
        "total_parameters": model.num_parameters(),
        "total_size": sum(size for names in files.values() for size in names.values()),
    }
    content = json.dumps({"metadata": metadata, "weight_map": placed}, indent=2, sort_keys=True)
    (folder / f"{_WEIGHTS}.index.json").write_text(content + "\n", encoding="utf-8")


def digest_of(tensor: Tensor) -> str:
    """sha256 over the bytes of a tensor."""
    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def check_saved(written: Written, dtype: str, probe: Probe) -> None:
    """Open the new policy as the next stage will: it has the trained weights to the bit, and the trainer's log-probs.

    The log-probs must be the same on average only: the trainer's may come from another device, which rounds a single
    bfloat16 logit elsewhere.
    """
    files, rounded = written.files, getattr(torch, dtype)
    model = open_policy(files, dtype)
    opened = dict(model.named_parameters())
    for name, digest in written.digests.items():
        if digest_of(opened[name].to(rounded)) != digest:
            raise UserError(f"{files.folder}: the saved policy differs from the trained one in {name}; {_LOST}")
    logprobs = TokenLogprobs(model, probe.temperature)
    found = torch.from_numpy(completion_logprobs(logprobs, probe.prompt_ids, probe.completion_ids, [[0]]).values)
    gap = float((found - probe.logprobs.cpu()).abs().mean())
    limit = ROUNDING[rounded]
    if not gap <= limit:
        raise UserError(
            f"{files.folder}: the saved policy differs from the trained one by {gap:.3g} nats a token on a probe "
            f"(limit {limit:g}); {_LOST}"
        )
