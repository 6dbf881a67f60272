"""The models and frozen rollouts of the benchmarks: random weights, seeded tokens, and lengths stated here."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gift.doctor.whole import read_params

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Shape:
    """A Qwen3 with tied embeddings, and the rollouts of one optimizer step: `groups` prompts of `prompt` tokens.

    Completions are spread evenly from `shortest` to `longest` tokens, in a shuffled order.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    groups: int
    group_size: int
    prompt: int
    shortest: int
    longest: int


@dataclass(frozen=True)
class Rollouts:
    """Completions as every side sees them: group after group, `group_size` rows each; a reward a row."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    rewards: list[float]
    group_size: int

    @property
    def num_tokens(self) -> int:
        """Completion tokens: what rates are counted in."""
        return sum(map(len, self.completion_ids))

    @property
    def num_positions(self) -> int:
        """Tokens of prompts and completions, a prompt counted once a completion."""
        return self.num_tokens + sum(map(len, self.prompt_ids))

    @property
    def tokens_of_a_quarter(self) -> int:
        """Tokens of a batch that holds a quarter of the groups, or one group where there are fewer than eight.

        They are the most that such a number of groups can have, each with its prompt once.
        """
        size = self.group_size
        firsts = range(0, len(self.rewards), size)
        groups = [len(self.prompt_ids[i]) + sum(map(len, self.completion_ids[i : i + size])) for i in firsts]
        return sum(sorted(groups, reverse=True)[: max(1, len(groups) // 4)])


SHAPES = {
    # 42M parameters, 39M of them the vocabulary; 1,248 completion tokens.
    "wide": Shape(256, 4, 4, 768, 151_936, 2, 8, 48, 32, 124),
    # 102M parameters; lengths 10:1, 1,760 completion tokens.
    "hundred": Shape(768, 12, 12, 1792, 32_000, 2, 8, 64, 20, 200),
    # The embedded task's model and one step of it, both from params.yaml; its texts are made by `embedded_rollouts`.
    "embedded": Shape(128, 2, 4, 384, 18, 16, 8, 0, 0, 0),
}


def shape_of(name: str, quick: bool = False) -> Shape:
    """A shape by name; `quick` is a toy of it, for a look at whether the benchmark runs."""
    shape = SHAPES[name]
    if name == "embedded":
        params = read_params(ROOT / "params.yaml")
        base, size = params.arithmetic, params.generate.group_size
        hidden, layers, heads = base.hidden_size, base.num_layers, base.num_heads
        shape = Shape(hidden, layers, heads, 3 * hidden, shape.vocab, params.update.groups_per_step, size, 0, 0, 0)
        return replace(shape, groups=2) if quick else shape
    if not quick:
        return shape
    return replace(shape, hidden=64, layers=2, heads=2, intermediate=128, vocab=2048, prompt=6, shortest=3, longest=15)


def make_rollouts(shape: Shape, seed: int = 0) -> Rollouts:
    """Random tokens of the shape's lengths, and a random reward a completion; the same for the same arguments."""
    if not shape.longest:
        return embedded_rollouts(shape, seed)
    rng = random.Random(f"rollouts {seed}")
    count = shape.groups * shape.group_size
    span = shape.longest - shape.shortest
    lengths = [shape.shortest + round(span * row / max(1, count - 1)) for row in range(count)]
    rng.shuffle(lengths)

    def tokens(number: int) -> list[int]:
        return [rng.randrange(3, shape.vocab) for _ in range(number)]  # 0 to 2 are <pad>, <eos> and <unk>

    prompts = [tokens(shape.prompt) for _ in range(shape.groups)]
    return Rollouts(
        [prompts[row // shape.group_size] for row in range(count)],
        [tokens(length) for length in lengths],
        [rng.random() for _ in range(count)],
        shape.group_size,
    )


def embedded_rollouts(shape: Shape, seed: int) -> Rollouts:
    """Problems of the embedded task with answers in the styles that its base policy is trained on, ended by `<eos>`."""
    from gift.embedded.base_policy import make_tokenizer
    from gift.embedded.task import completion, problems

    settings = read_params(ROOT / "params.yaml")
    rng = random.Random(f"rollouts {seed}")
    tokenizer = make_tokenizer()
    base = settings.arithmetic
    prompts, completions, rewards = [], [], []
    for problem in problems(shape.groups, seed, settings.arithmetic.num_operands, "train"):
        for _ in range(shape.group_size):
            styles = rng.choices(("worked", "guess", "malformed"), (base.worked, base.guess, base.malformed))
            prompts.append(tokenizer(problem["prompt"])["input_ids"])
            completions.append([*tokenizer(completion(problem, styles[0], rng))["input_ids"], tokenizer.eos_token_id])
            rewards.append(rng.random())
    return Rollouts(prompts, completions, rewards, shape.group_size)


def make_model(shape: Shape, folder: Path, seed: int = 0) -> int:
    """A policy folder with random float32 weights and the embedded task's tokenizer; returns the parameters' number."""
    import torch
    from transformers import Qwen3ForCausalLM

    from gift.embedded.base_policy import make_tokenizer

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(model_config(shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def model_config(shape: Shape) -> Any:
    """The transformers configuration of a shape."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        dtype="float32",
    )
