"""Which engines stay in memory between the stages of a `gift repro`, and what they must have in common."""

import hashlib
import json
import os

import psutil

from gift.policy.adapter import read_adapter_config
from gift.policy.folder import PolicyFiles, read_config
from gift.project.machine import PROJECT, versions
from gift.project.work import tree_digest
from gift.sampling.settings import GenerateLaunch, Sampling
from gift.workers.served import KEEP

SMALL_SHARE = 0.05
"""Of this machine's memory, that the weights of an engine may take which stays in it unasked."""


def kept_engine(policy: PolicyFiles, sampling: Sampling, context: int, launch: GenerateLaunch) -> str | None:
    """What an engine that stays in memory for the next stage must have in common with it; None: it does not stay.

    That is all that it is started with but the weights. It stays where `gift repro` says so (`repro.keep_engine`), in
    one process.
    """
    keep = os.environ.get(KEEP)
    if not keep or sampling.engine != "vllm" or launch.tensor_parallel_size > 1:
        return None
    size = sum(path.stat().st_size for path in policy.model.glob("*.safetensors"))
    if keep == "small" and size > SMALL_SHARE * psutil.virtual_memory().total:
        return None
    model = {**read_config(policy.model), "transformers_version": None}
    ends = policy.model / "generation_config.json"  # vLLM takes its end tokens from there, too
    adapter = read_adapter_config(policy.adapter) if policy.adapter else {}
    own = {
        "model": model,
        "ends": json.loads(ends.read_text(encoding="utf-8")).get("eos_token_id") if ends.exists() else None,
        "adapter": {name: adapter.get(name) for name in ("r", "target_modules")},
        "engine": [sampling.dtype, context, launch.model_dump(mode="json")],
        "code": [tree_digest(PROJECT / "gift"), versions()],
    }
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
