"""A policy in the engine that samples from it: vLLM, or transformers."""

from collections.abc import Sequence
from pathlib import Path

from gift.logprobs.logits import with_float32_logits
from gift.policy.folder import PolicyFiles, check_files
from gift.policy.open import open_policy
from gift.sampling.engine.by_transformers import transformers_sampler
from gift.sampling.engine.by_vllm import Vllm
from gift.sampling.engine.requests import MAX_NUM_SEQS, Sampler
from gift.sampling.settings import GenerateLaunch, Sampling


def start_sampler(
    policy: PolicyFiles,
    sampling: Sampling,
    ends: Sequence[int],
    max_model_len: int,
    launch: GenerateLaunch,
    link: Path | None = None,
) -> tuple[Sampler, str]:
    """Load a policy into the engine that `sampling` names; returns the sampler and the engine's name and version.

    ends: ids of the tokens that end a completion (`end_token_ids`), the same for both engines. link: see `Vllm`.
    Log-probs are those of the tempered distribution softmax(logits / temperature) over the whole vocabulary.
    """
    check_files(policy.model)
    if sampling.engine == "vllm":
        engine = Vllm(policy, sampling.dtype, max_model_len, launch, link)
        return engine.sampler(sampling, ends), engine.name
    import torch
    import transformers

    model = with_float32_logits(open_policy(policy, sampling.dtype, "cuda" if torch.cuda.is_available() else "cpu"))
    most = launch.max_num_seqs or MAX_NUM_SEQS
    return transformers_sampler(model, sampling, ends, most), f"transformers {transformers.__version__}"
