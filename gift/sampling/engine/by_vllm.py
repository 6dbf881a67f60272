"""vLLM with a policy in it, which another may replace; the only place that knows vLLM, with `weights.py`."""

import ctypes
import gc
import mmap
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gift.policy.adapter import read_adapter_config
from gift.policy.folder import PolicyFiles, read_config
from gift.policy.refusals import adapter_dtype_refusal
from gift.project.console import Guard, end_with_parent, within
from gift.project.errors import UserError
from gift.project.work import hold
from gift.sampling.engine.requests import MAX_NUM_SEQS, Completion, Request, Sampler
from gift.sampling.engine.vllm_limits import vllm_problems
from gift.sampling.engine.weights import Stale, check_adapter, check_weights, fixed
from gift.sampling.settings import GenerateLaunch, Sampling

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the sizes of room for an adapter that vLLM knows


class Vllm:
    """An engine that has loaded a policy."""

    def __init__(
        self,
        policy: PolicyFiles,
        dtype: str,
        max_model_len: int,
        launch: GenerateLaunch,
        link: Path | None,
        stays: bool = False,
    ) -> None:
        """link: the policy's `constant_path` where the process holds it for which this one works.

        stays: for other policies, later.
        """
        import torch

        # As vLLM sets it itself when it is imported: else to ask for a GPU keeps the processes that it forks for
        # several GPUs from using theirs.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        self.on_gpu = torch.cuda.is_available()
        if policy.adapter and (reason := adapter_dtype_refusal("vllm", dtype, self.on_gpu)):
            raise UserError(f"params.yaml: generate.dtype, evaluate.dtype: {reason}")
        for problem in vllm_problems(read_config(policy.model), launch.tensor_parallel_size, self.on_gpu):
            raise UserError(problem)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(launch.kv_cache_gib))
        if launch.tensor_parallel_size == 1:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"vLLM cannot be imported here ({error}); run `make env`, or set generate.engine and evaluate.engine "
                "to transformers in params.yaml"
            ) from None
        self.name = f"vllm {vllm.__version__}"
        model = link or (constant_path(policy.model) if self.on_gpu else policy.model)
        # vLLM's own processes would go on when this one has ended, and hold their GPUs: while it loads the kernel ends
        # them, which does not reach all that start others, and then the guard.
        self.guard, before = None, Guard.started()
        if apart := os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
            os.register_at_fork(after_in_child=partial(end_with_parent, signal.SIGKILL))
        self.llm = _load(policy, model, dtype, max_model_len, launch, self.on_gpu, sleeps=stays and self.on_gpu)
        if apart:
            self.guard = Guard(before)
        self.adapter: Any = None
        self._add_adapter(policy)
        self.tokens = _count_tokens(self.llm)
        self.fixed = self._of_model(self._fixed) if stays else {}
        self.never_stays = self._problem(policy) if stays else None
        gc.freeze()  # vLLM looks for garbage many times, its last words included: not in what stays

    def sampler(self, sampling: Sampling, ends: Sequence[int]) -> Sampler:
        """ends: ids of the tokens that end a completion."""
        import vllm

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
            self.tokens.begin(len(requests), sampling.max_tokens)
            outputs = self.llm.generate(prompts, settings, use_tqdm=False, lora_request=self.adapter)
            return [_completion(result.outputs[0]) for result in outputs]

        return sample

    def rest(self) -> None:
        """Let go of what another policy will not need: the KV cache, on a GPU also the weights."""
        self.llm.reset_prefix_cache()
        if self.on_gpu:
            self.llm.sleep(level=2)
        else:
            _forget_pages(self.llm.llm_engine.model_executor.driver_worker.worker.model_runner.kv_caches)

    def take(self, policy: PolicyFiles, link: Path | None) -> None:
        """Sample from another policy of the same shape from now on; raises `Stale` where not all of it arrived.

        link: see `Vllm`. Then the bytes of a rollout are those of an engine that started with this policy.
        """
        if self.on_gpu:
            self.llm.wake_up(["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(link or policy.model)})
        self._of_model(_pack_again)
        if self._of_model(self._fixed) != self.fixed:
            raise Stale("a buffer of the engine, or where a weight lies, is not as it was")
        self._of_model(lambda model: check_weights(model, policy.model))
        self._add_adapter(policy)
        if self.on_gpu:
            self.llm.wake_up(["kv_cache"])
        self.llm.reset_prefix_cache()

    def _problem(self, policy: PolicyFiles) -> str | None:
        """Why weights of this model cannot be compared, though they have just been loaded."""
        try:
            self._of_model(lambda model: check_weights(model, policy.model))
        except Stale as error:
            return str(error)
        return None

    def _of_model(self, look: Callable[[Any], Any]) -> Any:
        return self.llm.apply_model(look)[0]

    def _fixed(self, model: Any) -> dict[str, str]:
        return fixed(model, addresses=not self.llm.llm_engine.vllm_config.model_config.enforce_eager)

    def _add_adapter(self, policy: PolicyFiles) -> None:
        """In place of the one before, under another number: what vLLM cached by number is of no use."""
        from vllm.lora.request import LoRARequest

        if not policy.adapter:
            return
        number = self.adapter.lora_int_id + 1 if self.adapter else 1
        if self.adapter:
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
        self.adapter = LoRARequest(f"policy {number}", number, str(policy.adapter))
        self.llm.llm_engine.add_lora(self.adapter)
        if number > 1:
            folder = policy.adapter
            self._of_model(lambda model: check_adapter(model, folder))


class _Tokens:
    """How far a call of vLLM's is: told once it has sampled something, from the tokens that leave its engine.

    Its own bar counts requests that have ended, and of a part whose requests run at once none ends for minutes.
    """

    def __init__(self) -> None:
        self.begin(1, 1)

    def begin(self, requests: int, max_tokens: int) -> None:
        self.most, self.requests, self.ended, self.tokens = max_tokens, requests, 0, 0

    def add(self, outputs: Sequence[Any]) -> None:
        self.tokens += sum(len(each.new_token_ids) for each in outputs)
        self.ended += sum(each.finish_reason is not None for each in outputs)
        # Of the rest as many tokens may come as are allowed: the time that is left is the most that it can be.
        within(max(self.ended / self.requests, self.tokens / (self.requests * self.most)), self.tokens)


def _count_tokens(llm: Any) -> _Tokens:
    """Look at what vLLM's engine hands to its processor of outputs."""
    told, processor = _Tokens(), llm.llm_engine.output_processor
    process = processor.process_outputs

    def counted(outputs: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        told.add(outputs)
        return process(outputs, *arguments, **options)

    processor.process_outputs = counted
    return told


def _pack_again(model: Any) -> None:
    """Weights of which a kernel of a CPU has a packed copy beside them: a tied head's copy is not made anew by vLLM."""
    for layer in model.modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            layer.quant_method.process_weights_after_loading(layer)


def _forget_pages(tensors: Sequence[Any]) -> None:
    """Give the memory of large tensors back to the system; they are zeros then, as when they were made."""
    libc = ctypes.CDLL(None, use_errno=True)
    for storage in [tensor.untyped_storage() for tensor in tensors]:
        start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (storage.data_ptr() + storage.nbytes() - start) // mmap.PAGESIZE * mmap.PAGESIZE
        if size > 0:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _load(
    policy: PolicyFiles,
    model: Path,
    dtype: str,
    max_model_len: int,
    launch: GenerateLaunch,
    on_gpu: bool,
    sleeps: bool,
) -> Any:
    """vLLM with the policy's model (which `model` leads to), and room for its adapter, if any."""
    import torch
    import vllm

    rank = read_adapter_config(policy.adapter)["r"] if policy.adapter else 0
    lora = {"enable_lora": True, "max_lora_rank": vllm_lora_rank(rank)} if policy.adapter else {}
    # vLLM rewinds the generator of a seeded request when a step takes only a part of its prompt, and a CPU's generator
    # cannot do that: there, whole prompts. 4096 is vLLM's own default; the other two are the least it accepts.
    eager = launch.enforce_eager if launch.enforce_eager is not None else not on_gpu
    if eager and not on_gpu:  # else a function that counts ranks, which nobody reads, is compiled for two seconds
        torch._dynamo.config.disable = True
    tokens = max(4096, max_model_len, launch.max_num_seqs or MAX_NUM_SEQS)
    whole_prompts: dict[str, Any] = {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
    try:
        return vllm.LLM(
            model=str(model),
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=launch.tensor_parallel_size,
            gpu_memory_utilization=launch.gpu_memory_utilization,
            max_num_seqs=launch.max_num_seqs or (None if on_gpu else MAX_NUM_SEQS),
            hf_overrides={"head_dtype": "float32"} if dtype == "bfloat16" else {},
            enforce_eager=eager,
            logprobs_mode="processed_logprobs",
            trust_remote_code=False,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            seed=0,
            **({"enable_sleep_mode": True} if sleeps else {}),
            **lora,
            **({} if on_gpu else whole_prompts),
        )
    except Exception as error:  # of any type: a model it does not know, too little memory, a wrong head size
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{policy.folder}: vLLM does not start with it ({type(error).__name__}: {first}); GIFT_VERBOSE=1 shows all "
            "it says, and generate.engine and evaluate.engine: transformers do without it"
        ) from None


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


def _completion(output: Any) -> Completion:
    ids, flat = list(output.token_ids), output.logprobs
    if flat.token_ids != ids:
        raise RuntimeError("vLLM gave log-probs of other tokens than those it sampled")
    return Completion(np.array(ids, np.int32), np.array(flat.logprobs, np.float32), output.finish_reason)
