"""From requests to completions with log-probs: vLLM, or transformers; the only place that knows vLLM."""

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gift.logprobs.logits import with_float32_logits
from gift.policy.adapter import read_adapter_config
from gift.policy.folder import PolicyFiles, check_files, read_config
from gift.policy.open import open_policy
from gift.policy.refusals import adapter_dtype_refusal
from gift.project.console import within
from gift.project.errors import UserError
from gift.project.work import hold
from gift.sampling.encoding import Tokens
from gift.sampling.settings import GenerateLaunch, Sampling
from gift.sampling.vllm_limits import vllm_problems


@dataclass(frozen=True, eq=False)
class Request:
    """One completion to sample: prompt tokens [P], the request's own seed, and its temperature (0 is greedy)."""

    prompt_ids: Tokens
    seed: int
    temperature: float


@dataclass(frozen=True, eq=False)
class Completion:
    """Sampled token ids [T] (the end token included, where it came), their log-probs in nats [T], and why it ended.

    A given answer has no log-probs.
    """

    completion_ids: Tokens
    logprobs: NDArray[np.float32]
    finish_reason: str


Sampler = Callable[[Sequence[Request]], list[Completion]]

MAX_NUM_SEQS = 256  # on a CPU, and of transformers; on a GPU vLLM knows better
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the sizes of room for an adapter that vLLM knows


def start_sampler(
    policy: PolicyFiles,
    sampling: Sampling,
    ends: Sequence[int],
    max_model_len: int,
    launch: GenerateLaunch,
    link: Path | None = None,
) -> tuple[Sampler, str]:
    """Load a policy into the engine that `sampling` names; returns the sampler and the engine's name and version.

    ends: ids of the tokens that end a completion (`end_token_ids`), the same for both engines. link: the policy's
    `constant_path` where the process holds it for which this one works.
    Log-probs are those of the tempered distribution softmax(logits / temperature) over the whole vocabulary.
    """
    check_files(policy.model)
    if sampling.engine == "vllm":
        return _start_vllm(policy, sampling, ends, max_model_len, launch, link)
    import torch
    import transformers

    model = with_float32_logits(open_policy(policy, sampling.dtype, "cuda" if torch.cuda.is_available() else "cpu"))
    most = launch.max_num_seqs or MAX_NUM_SEQS
    return transformers_sampler(model, sampling, ends, most), f"transformers {transformers.__version__}"


def _start_vllm(
    policy: PolicyFiles,
    sampling: Sampling,
    ends: Sequence[int],
    max_model_len: int,
    launch: GenerateLaunch,
    link: Path | None,
) -> tuple[Sampler, str]:
    import torch

    # As vLLM sets it itself when it is imported: else to ask for a GPU keeps the processes that it forks for several
    # GPUs from using theirs.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    on_gpu = torch.cuda.is_available()
    if policy.adapter and (reason := adapter_dtype_refusal("vllm", sampling.dtype, on_gpu)):
        raise UserError(f"params.yaml: generate.dtype, evaluate.dtype: {reason}")
    for problem in vllm_problems(read_config(policy.model), launch.tensor_parallel_size, on_gpu):
        raise UserError(problem)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(launch.kv_cache_gib))
    if launch.tensor_parallel_size == 1:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported here ({error}); run `make env`, or set generate.engine and evaluate.engine to "
            "transformers in params.yaml"
        ) from None
    model = link or (constant_path(policy.model) if on_gpu else policy.model)
    llm, adapter = _load_vllm(policy, model, sampling, max_model_len, launch, on_gpu)
    told = _count_tokens(llm, sampling.max_tokens)
    gc.freeze()  # vLLM looks for garbage many times, its last words included: not in what stays

    def sample(requests: Sequence[Request]) -> list[Completion]:
        prompts: Any = [{"prompt_token_ids": request.prompt_ids.tolist()} for request in requests]
        settings = [
            vllm.SamplingParams(
                temperature=request.temperature,
                top_p=sampling.top_p if request.temperature > 0 else 1.0,
                max_tokens=sampling.max_tokens,
                seed=request.seed % 2**31,
                stop_token_ids=list(ends),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                watermarking=False,
            )
            for request in requests
        ]
        told.begin(len(requests))
        outputs = llm.generate(prompts, settings, use_tqdm=False, lora_request=adapter)
        return [_from_vllm(result.outputs[0]) for result in outputs]

    return sample, f"vllm {vllm.__version__}"


class _Tokens:
    """How far a call of vLLM's is: told once it has sampled something, from the tokens that leave its engine.

    Its own bar counts requests that have ended, and of a part whose requests run at once none ends for minutes.
    """

    def __init__(self, max_tokens: int) -> None:
        self.most, self.requests, self.ended, self.tokens = max_tokens, 1, 0, 0

    def begin(self, requests: int) -> None:
        self.requests, self.ended, self.tokens = requests, 0, 0

    def add(self, outputs: Sequence[Any]) -> None:
        self.tokens += sum(len(each.new_token_ids) for each in outputs)
        self.ended += sum(each.finish_reason is not None for each in outputs)
        # Of the rest as many tokens may come as are allowed: the time that is left is the most that it can be.
        within(max(self.ended / self.requests, self.tokens / (self.requests * self.most)), self.tokens)


def _count_tokens(llm: Any, max_tokens: int) -> _Tokens:
    """Look at what vLLM's engine hands to its processor of outputs."""
    told, processor = _Tokens(max_tokens), llm.llm_engine.output_processor
    process = processor.process_outputs

    def counted(outputs: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        told.add(outputs)
        return process(outputs, *arguments, **options)

    processor.process_outputs = counted
    return told


def _load_vllm(
    policy: PolicyFiles, model: Path, sampling: Sampling, max_model_len: int, launch: GenerateLaunch, on_gpu: bool
) -> tuple[Any, Any]:
    """vLLM with the policy's model (which `model` leads to), and its adapter (or None), which is loaded too."""
    import torch
    import vllm
    from vllm.lora.request import LoRARequest

    rank = read_adapter_config(policy.adapter)["r"] if policy.adapter else 0
    lora = {"enable_lora": True, "max_lora_rank": vllm_lora_rank(rank)} if policy.adapter else {}
    adapter = LoRARequest("policy", 1, str(policy.adapter)) if policy.adapter else None
    # vLLM rewinds the generator of a seeded request when a step takes only a part of its prompt, and a CPU's generator
    # cannot do that: there, whole prompts. 4096 is vLLM's own default; the other two are the least it accepts.
    eager = launch.enforce_eager if launch.enforce_eager is not None else not on_gpu
    if eager and not on_gpu:  # else a function that counts ranks, which nobody reads, is compiled for two seconds
        torch._dynamo.config.disable = True
    tokens = max(4096, max_model_len, launch.max_num_seqs or MAX_NUM_SEQS)
    whole_prompts: dict[str, Any] = {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
    try:
        llm = vllm.LLM(
            model=str(model),
            dtype=sampling.dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=launch.tensor_parallel_size,
            gpu_memory_utilization=launch.gpu_memory_utilization,
            max_num_seqs=launch.max_num_seqs or (None if on_gpu else MAX_NUM_SEQS),
            hf_overrides={"head_dtype": "float32"} if sampling.dtype == "bfloat16" else {},
            enforce_eager=eager,
            logprobs_mode="processed_logprobs",
            trust_remote_code=False,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            seed=0,
            **lora,
            **({} if on_gpu else whole_prompts),
        )
        if adapter:
            llm.llm_engine.add_lora(adapter)
    except Exception as error:  # of any type: a model it does not know, too little memory, a wrong head size
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{policy.folder}: vLLM does not start with it ({type(error).__name__}: {first}); GIFT_VERBOSE=1 shows all "
            "it says, and generate.engine and evaluate.engine: transformers do without it"
        ) from None
    return llm, adapter


def constant_path(model: Path) -> Path:
    """A link to the policy, the same path in every round: vLLM keeps what it compiled by the path of the model."""
    link = Path("data/.cache/vllm/policy")
    link.parent.mkdir(parents=True, exist_ok=True)
    hold(str(link))  # no other process of this project leads it elsewhere while this one reads
    temporary = link.with_name(f"policy.{os.getpid()}")
    temporary.symlink_to(model.resolve(), target_is_directory=True)
    temporary.replace(link)
    return link.absolute()


def vllm_lora_rank(rank: int) -> int:
    """The least of vLLM's sizes that an adapter of this rank fits into."""
    return min(size for size in VLLM_LORA_RANKS if size >= rank)


def _from_vllm(output: Any) -> Completion:
    ids, flat = list(output.token_ids), output.logprobs
    if flat.token_ids != ids:
        raise RuntimeError("vLLM gave log-probs of other tokens than those it sampled")
    return Completion(np.array(ids, np.int32), np.array(flat.logprobs, np.float32), output.finish_reason)


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
            logprob = _top_p(logits, sampling.top_p).log_softmax(-1)
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


def _top_p(logits: Any, top_p: float) -> Any:
    """Keep the smallest set of tokens whose probability reaches `top_p` (nucleus sampling)."""
    if top_p == 1:
        return logits
    values, order = logits.sort(descending=True)
    probability = values.softmax(-1)
    outside = probability.cumsum(-1) - probability > top_p
    return logits.scatter(-1, order, values.masked_fill(outside, float("-inf")))
