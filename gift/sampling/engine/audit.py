"""The first completions of an engine that got another policy, against the log-probs that this policy gives them itself.

Its weights have been compared by then (weights.py). This is about all that lies between weights and tokens: what was
cached of prompts, an adapter's scale, kernels.
"""

from collections.abc import Sequence

import torch

from gift.logprobs.logits import with_float32_logits
from gift.policy.folder import PolicyFiles
from gift.policy.open import open_policy
from gift.sampling.engine.by_transformers import nucleus
from gift.sampling.engine.requests import Completion, Request, Sampler
from gift.sampling.engine.weights import Stale
from gift.sampling.settings import Sampling

COMPLETIONS, TOKENS = 4, 128
"""So many, spread over the first call, and of each so many tokens."""
LIMIT = {"float32": 1e-3, "bfloat16": 0.05}
"""Nats a token, on average: what rounding explains."""


def audited(sampler: Sampler, policy: PolicyFiles, sampling: Sampling) -> Sampler:
    """The sampler, whose first call raises `Stale` where its completions are not of this policy."""
    is_first = True

    def sample(requests: Sequence[Request]) -> list[Completion]:
        nonlocal is_first
        completions = sampler(requests)
        if is_first:
            is_first = False
            check_completions(requests, completions, policy, sampling)
        return completions

    return sample


@torch.no_grad()
def check_completions(
    requests: Sequence[Request], completions: Sequence[Completion], policy: PolicyFiles, sampling: Sampling
) -> None:
    """On this machine's CPU, whose memory the engine of a GPU leaves free; one row after the other."""
    model = with_float32_logits(open_policy(policy, sampling.dtype))
    total, count = 0.0, 0
    for index in range(0, len(requests), max(1, len(requests) // COMPLETIONS)):
        request, tokens = requests[index], torch.from_numpy(completions[index].completion_ids[:TOKENS]).long()
        if not len(tokens):
            continue
        rows = torch.cat([torch.from_numpy(request.prompt_ids).long(), tokens[:-1]]).unsqueeze(0)
        logits = model(input_ids=rows, use_cache=False, logits_to_keep=len(tokens)).logits[0].float()
        logits = nucleus(logits / request.temperature, sampling.top_p) if request.temperature > 0 else logits
        logprobs = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        total += float((logprobs - torch.from_numpy(completions[index].logprobs[:TOKENS])).abs().sum())
        count += len(tokens)
    if count and not total / count <= LIMIT[sampling.dtype]:
        raise Stale(f"log-probs of its first completions are {total / count:.2g} nats a token from the policy's own")
