"""A sampler of transformers: slower than vLLM, and for any model that it opens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gift.project.console import within
from gift.sampling.engine.requests import Completion, Request, Sampler
from gift.sampling.settings import Sampling


def transformers_sampler(model: Any, sampling: Sampling, ends: Sequence[int], max_num_seqs: int) -> Sampler:
    """A sampler of a loaded model: prompts of one length together, one forward a token, noise of the request's seed."""
    import torch

    device = model.device
    end_ids = torch.tensor(list(ends), dtype=torch.int64, device=device)

    def sample_equal(requests: Sequence[Request]) -> list[Completion]:
        """Completions for prompts of one length (no padding), one forward a token with a KV cache."""
        generators = [torch.Generator(device).manual_seed(request.seed) for request in requests]
        temperature = torch.tensor([request.temperature for request in requests], device=device).unsqueeze(-1)
        prompts = np.stack([request.prompt_ids for request in requests])
        input_ids = torch.tensor(prompts, dtype=torch.int64, device=device)
        tokens, logprobs = [], []
        live = torch.ones(len(requests), dtype=torch.bool, device=device)
        cache = None
        for _ in range(sampling.max_tokens):
            out = model(input_ids=input_ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[:, -1].float() / torch.where(temperature > 0, temperature, 1.0)
            logprob = nucleus(logits, sampling.top_p).log_softmax(-1)
            noise = torch.stack([torch.rand(logprob.shape[-1], generator=g, device=device) for g in generators])
            gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
            token = torch.where(temperature > 0, logprob + gumbel, logits).argmax(-1)
            tokens.append(torch.where(live, token, -1))
            logprobs.append(logprob.gather(-1, token.unsqueeze(-1)).squeeze(-1))
            live = live & ~torch.isin(token, end_ids)
            if not live.any():
                break
            input_ids = token.unsqueeze(-1)
        all_tokens, all_logprobs = torch.stack(tokens, 1).int().cpu().numpy(), torch.stack(logprobs, 1).cpu().numpy()
        lengths = (all_tokens != -1).sum(1)  # -1 stands behind the end of a completion, and nowhere else
        return [
            Completion(ids[:length].copy(), values[:length].copy(), "length" if unfinished else "stop")
            for ids, values, length, unfinished in zip(all_tokens, all_logprobs, lengths, live.tolist(), strict=True)
        ]

    def sample(requests: Sequence[Request]) -> list[Completion]:
        by_length: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_length.setdefault(len(request.prompt_ids), []).append(index)
        out: dict[int, Completion] = {}
        with torch.no_grad():
            for rows in by_length.values():
                for start in range(0, len(rows), max_num_seqs):
                    chosen = rows[start : start + max_num_seqs]
                    out.update(zip(chosen, sample_equal([requests[i] for i in chosen]), strict=True))
                    within(len(out) / len(requests), sum(len(each.completion_ids) for each in out.values()))
        return [out[index] for index in range(len(requests))]

    return sample


def nucleus(logits: Any, top_p: float) -> Any:
    """Keep the smallest set of tokens whose probability reaches `top_p` (nucleus sampling)."""
    if top_p == 1:
        return logits
    values, order = logits.sort(descending=True)
    probability = values.softmax(-1)
    outside = probability.cumsum(-1) - probability > top_p
    return logits.scatter(-1, order, values.masked_fill(outside, float("-inf")))
