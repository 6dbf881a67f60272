"""Which models vLLM does not take on a machine: asked before anything is loaded, by the sampler and the doctor."""

from collections.abc import Iterator, Mapping
from typing import Any

# The head sizes of vLLM's attention on a CPU (tests/test_doctor.py holds them against the installed vLLM).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def vllm_problems(config: Mapping[str, Any], number: int, on_gpu: bool) -> Iterator[str]:
    """Why vLLM does not take a model here: it would say so only once it has started. `config`: of the text.

    It shares attention heads out over `number` GPUs, and on a CPU knows few head sizes.
    """
    heads = int(config.get("num_attention_heads") or 0)
    shared = int(config.get("num_key_value_heads") or heads)
    if heads and (heads % number or (shared % number and number % shared)):
        text = f"{number}: does not divide the model's {heads} attention heads ({shared} for keys); choose a divisor"
        yield f"launch.yaml: generate.tensor_parallel_size: {text}"
    size = config.get("head_dim") or (config["hidden_size"] // heads if heads else None)
    if not on_gpu and size and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        text = f"vllm: on a CPU it takes heads of {sizes}, the model's are {size}; use transformers"
        yield f"params.yaml: generate.engine: {text}"
