"""vLLM that gets another policy: the bytes of an engine that started with it; a weight that stayed behind is found.

Run as a script it is such an engine: see `main`.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pytest
import torch
import transformers
from forks import VLLM, forks
from safetensors.torch import load_file, save_file

from gift.embedded.base_policy import make_tokenizer
from gift.policy.folder import PolicyFiles
from gift.sampling.engine.audit import audited
from gift.sampling.engine.by_vllm import Vllm, _pack_again
from gift.sampling.engine.requests import Request, Sampler
from gift.sampling.engine.weights import Stale, check_weights
from gift.sampling.settings import GenerateLaunch, Sampling

SIZES = {
    "vocab_size": 70,  # vLLM rounds it up
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "untied": ("Llama", {"tie_word_embeddings": False}),
    "biased": ("Qwen2", {"tie_word_embeddings": True}),
    "one_matrix": ("Phi3", {"tie_word_embeddings": False}),  # whose files have q, k and v in one
    "four_norms": ("Gemma2", {"head_dim": 32}),
}
MIXTURE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixture": ("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1, "tie_word_embeddings": False}),
}
REQUESTS = [
    Request(np.array([number % 61 + offset for offset in range(1 + number)], np.int32), number, temperature)
    for number in range(12)
    for temperature in (0.0, 1.0)
]

LONG = Request(np.arange(300, dtype=np.int32) % 61, 0, 1.0)  # more than a block of vLLM's cache


def main(out: str, what: str, dtype: str, *folders: str) -> None:
    """kept: start with the first policy, then take each; or a report of what `weights.py` finds; as JSON to a file.

    A folder is model or model:adapter. fresh: start with the first. every: one weight at a time is another in the files
    of the second than in the engine. stale: vLLM's own reload, and no more. never: why it does not stay. audit: what is
    said of completions of the first, held against each. cached: of the second, where prompts stay cached, or do not.
    """
    policies = [PolicyFiles(*map(Path, each.split(":"))) for each in folders]
    engine = Vllm(policies[0], dtype, 400 if what == "cached" else 128, GenerateLaunch(), None, stays=True)
    sample = engine.sampler(Sampling(dtype=dtype, max_tokens=12), [])

    def runs() -> list[Any]:
        return [[each.completion_ids.tolist(), each.logprobs.tolist()] for each in sample(REQUESTS)]

    found: list[Any] = []
    if what in ("fresh", "kept"):
        assert engine.never_stays is None
        found.append(runs())
        for policy in policies[1:]:
            engine.rest()
            engine.take(policy, None)
            found.append(runs())
    elif what == "audit":
        found = [audit(sample, policy, dtype) for policy in policies]
    elif what == "cached":
        sample([LONG])
        for forget in (lambda: None, engine.llm.reset_prefix_cache):
            engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(policies[1].model)})
            engine.llm.apply_model(_pack_again)
            engine.llm.apply_model(lambda model: check_weights(model, policies[1].model))
            forget()
            found.append(audit(sample, policies[1], dtype, [LONG]))
    elif what == "never":
        found.append(engine.never_stays)
    elif what == "every":
        found = missed(engine, policies[1].model)
    elif what == "stale":
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(policies[1].model)})
        try:
            engine.llm.apply_model(lambda model: check_weights(model, policies[1].model))
        except Stale as error:
            found = [str(error)]
    Path(out).write_text(json.dumps(found))


def audit(sample: Sampler, policy: PolicyFiles, dtype: str, requests: Sequence[Request] = REQUESTS) -> str | None:
    """What is said of the first call; the second is not looked at."""
    looked_at = audited(sample, policy, Sampling(dtype=dtype, max_tokens=12))
    try:
        looked_at(requests)
    except Stale as error:
        assert looked_at(requests)
        return str(error)
    return None


def missed(engine: Vllm, folder: Path) -> list[str]:
    """The weights that may be another without being found."""
    true = load_file(folder / "model.safetensors")

    def stale(tensors: dict[str, torch.Tensor]) -> bool:
        save_file(tensors, folder / "model.safetensors")
        try:
            engine.llm.apply_model(lambda model: check_weights(model, folder, num_columns=10**6))
        except Stale:
            return True
        return False

    found = ["nothing is another, and it is found"] if stale(true) else []
    for name, tensor in true.items():
        other = tensor.clone()
        place = other.view(-1)[other.numel() * 2 // 3 :][:1]
        place.copy_(torch.nextafter(place, place + 1))
        found += [] if stale({**true, name: other}) else [name]
    found += [] if stale({**true, "model.layers.7.more.weight": true[name].clone()}) else ["more in the files"]
    found += [] if stale({key: value for key, value in true.items() if key != name}) else ["less in the files"]
    return found


def engine(folder: Path, what: str, dtype: str, *folders: Path | str) -> Any:
    """In a process of its own: vLLM leaves process groups and settings of torch behind."""
    out, said = folder / "out.json", folder / "said.txt"
    env = {**mini.environment(), "PYTHONPATH": str(mini.ROOT)}
    pid = forks(*VLLM).start([__file__, str(out), what, dtype, *map(str, folders)], env, said)
    assert forks(*VLLM).wait(pid) == 0, said.read_text()
    return json.loads(out.read_text())


def make(folder: Path, family: str, seed: int, **own: Any) -> Path:
    name, more = (FAMILIES | MIXTURE)[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more, **own})
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, model: Path, seed: int) -> str:
    """model:adapter, of low-rank matrices on two kinds of layers."""
    folder.mkdir()
    noise = torch.Generator().manual_seed(seed)
    own = {"r": 3, "lora_alpha": 7, "peft_type": "LORA", "target_modules": ["q_proj", "down_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(own))
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if any(f"{target}.weight" in name for target in own["target_modules"]):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(3, weight.shape[1], generator=noise)
            tensors[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], 3, generator=noise)
    save_file(tensors, folder / "adapter_model.safetensors")
    return f"{model}:{folder}"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), [("tied", "bfloat16"), *((family, "float32") for family in FAMILIES)])
def test_a_kept_engine_has_the_bytes_of_fresh_ones(tmp_path: Path, family: str, dtype: str) -> None:
    folders = [make(tmp_path / str(seed), family, seed) for seed in range(3)]
    fresh = [engine(tmp_path, "fresh", dtype, folder)[0] for folder in folders]
    assert fresh[0] != fresh[1] != fresh[2]
    order = [0, 1, 2, 0, 1]
    assert engine(tmp_path, "kept", dtype, *(folders[index] for index in order)) == [fresh[index] for index in order]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_kept_engine_takes_other_adapters(tmp_path: Path, dtype: str) -> None:
    base = make(tmp_path / "base", "tied", 0)
    policies = [adapter(tmp_path / f"adapter{seed}", base, seed) for seed in range(3)]
    fresh = [engine(tmp_path, "fresh", dtype, each)[0] for each in policies]
    assert fresh[0] != fresh[1] != fresh[2]
    order = [0, 1, 2, 0]
    assert engine(tmp_path, "kept", dtype, *(policies[index] for index in order)) == [fresh[index] for index in order]


@pytest.mark.parametrize(
    "family", ["tied", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family != "tied")]
)
def test_no_weight_can_be_another_without_being_found(tmp_path: Path, family: str) -> None:
    """By one step of the last bit, in the parameter or in what a kernel has made of it, all of its columns."""
    first = make(tmp_path / "first", family, 0)
    other = shutil.copytree(first, tmp_path / "other")
    assert engine(tmp_path, "every", "float32", first, other) == []


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_completions_of_another_policy_are_found(tmp_path: Path, dtype: str) -> None:
    """Of other weights, and of an adapter that is not there."""
    first, second = (make(tmp_path / str(number), "tied", number) for number in range(2))
    right, *wrong = engine(tmp_path, "audit", dtype, first, second, adapter(tmp_path / "adapter", first, 0))
    assert right is None
    assert all("nats a token from the policy's own" in each for each in wrong)


@pytest.mark.slow
def test_a_prompt_that_was_cached_under_the_policy_before_is_found(tmp_path: Path) -> None:
    """All weights are right, and yet the completions are of two policies."""
    folders = [make(tmp_path / str(number), "tied", number, max_position_embeddings=512) for number in range(2)]
    kept, forgotten = engine(tmp_path, "cached", "float32", *folders)
    assert "nats a token from the policy's own" in kept
    assert forgotten is None


def test_what_vllm_leaves_behind_is_found(tmp_path: Path) -> None:
    """Of a tied head vLLM's own reload keeps the packed copy: rollouts would be of two policies, a small step apart."""
    first, second = (make(tmp_path / str(number), "tied", 0) for number in range(2))
    noise = torch.Generator().manual_seed(0)
    stepped = {
        name: weight + 1e-6 * torch.randn(weight.shape, generator=noise)
        for name, weight in load_file(second / "model.safetensors").items()
    }
    save_file(stepped, second / "model.safetensors")
    (found,) = engine(tmp_path, "stale", "float32", first, second)
    assert found.startswith(("lm_head.weight, as its kernel has it,", "model.embed_tokens.weight, as its kernel"))


@pytest.mark.slow
def test_a_model_that_cannot_be_compared_does_not_stay(tmp_path: Path) -> None:
    """Of a mixture vLLM stacks the experts' matrices."""
    model = make(tmp_path / "model", "mixture", 0)
    assert "has no place in the engine" in engine(tmp_path, "never", "float32", model)[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
