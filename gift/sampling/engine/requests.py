"""What is asked of an engine, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gift.sampling.encoding import Tokens


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
