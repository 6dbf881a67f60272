"""The embedded base policy: a small Qwen3 with a character tokenizer, trained from scratch on a mixture of styles."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gift.embedded.task import CHARACTERS, CONTEXT, SPECIALS, Arithmetic, Style, completion, problems
from gift.project.work import whole_file

WARMUP = 30
CHECKPOINT_EVERY = 100
MOMENTS = ("exp_avg", "exp_avg_sq")


def train_base(
    settings: Arithmetic,
    seed: int,
    checkpoint_dir: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The base policy for a seed; call it again with the same checkpoint folder after a crash and it goes on.

    The batch of step k depends on (seed, k) only and a checkpoint holds weights and Adam moments, so that an
    interrupted training ends with the same bytes as an undisturbed one. `progress` gets the number of steps done and
    the last loss (nats a token).
    """
    tokenizer = make_tokenizer()
    model = make_model(settings, tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    pool = problems(settings.num_problems, seed, settings.num_operands, split="train")
    model.train()
    for step in range(_load_checkpoint(checkpoint_dir, model, optimizer), settings.steps):
        share = min(1.0, (step + 1) / WARMUP) * (1 - 0.9 * step / settings.steps)  # a linear rise; a fall to a tenth
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * share
        loss = _backward(model, _batches(draw_examples(settings, pool, seed, step), tokenizer))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress(step + 1, loss)
        if checkpoint_dir and (step + 1) % checkpoint_every == 0:
            _save_checkpoint(checkpoint_dir, model, optimizer, step + 1)
    return model.eval(), tokenizer


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of the task, besides `<pad>`, `<eos>` and `<unk>`, which stands for any other character."""
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(settings: Arithmetic, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """An untrained float32 Qwen3 whose weights depend on the seed only; torch's global random state stays as it was."""
    config = Qwen3Config(
        **settings.config,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def draw_examples(settings: Arithmetic, pool: list[dict[str, str]], seed: int, step: int) -> list[tuple[str, str, str]]:
    """The (prompt, completion, style) triples of one step; they depend on `(seed, step)` alone."""
    rng = random.Random(f"sft {seed} {step}")
    shares: dict[Style, float] = {"worked": settings.worked, "guess": settings.guess, "malformed": settings.malformed}
    examples: list[tuple[str, str, str]] = []
    for problem in rng.choices(pool, k=settings.batch_size):
        (style,) = rng.choices(list(shares), weights=list(shares.values()))
        examples.append((problem["prompt"], completion(problem, style, rng, settings.slips), style))
    return examples


def _batches(examples: list[tuple[str, str, str]], tokenizer: PreTrainedTokenizerFast) -> list[tuple[Tensor, Tensor]]:
    """Token ids [N, T], padded on the right, and the mask [N, T] of the tokens to learn: completion and `<eos>`.

    The long worked examples and the short others make a pair each, which saves a third of the time.
    """
    number = tokenizer.get_vocab()
    batches = []
    for worked in (True, False):
        rows = [(prompt, prompt + text) for prompt, text, style in examples if (style == "worked") == worked]
        if not rows:
            continue
        length = max(len(text) for _, text in rows) + 1
        ids = torch.full((len(rows), length), tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), length), dtype=torch.bool)
        for index, (prompt, text) in enumerate(rows):
            ids[index, : len(text) + 1] = torch.tensor([*(number[c] for c in text), tokenizer.eos_token_id])
            mask[index, len(prompt) : len(text) + 1] = True
        batches.append((ids, mask))
    return batches


def _backward(model: Qwen3ForCausalLM, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Adds the gradient of the mean cross-entropy of all masked tokens and returns its value, in nats a token."""
    num_tokens = sum(int(mask.sum()) for _, mask in batches)
    total = 0.0
    for ids, mask in batches:  # padding stands on the right, where causal attention does not look
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits, targets = model.lm_head(hidden[mask[:, 1:]]), ids[:, 1:][mask[:, 1:]]
        loss = functional.cross_entropy(logits, targets, reduction="sum") / num_tokens
        loss.backward()
        total += loss.item()
    return total


def _save_checkpoint(folder: Path, model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW, step: int) -> None:
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        tensors |= {f"{moment}/{name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    with whole_file(folder / "checkpoint.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def _load_checkpoint(folder: Path | None, model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW) -> int:
    """Puts the checkpoint's weights and moments in place and returns its number of steps; 0 where there is none."""
    if folder is None or not (folder / "checkpoint.safetensors").exists():
        return 0
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file, torch.no_grad():
        step = int(file.metadata()["step"])
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"model/{name}"))
            moments = {moment: file.get_tensor(f"{moment}/{name}") for moment in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step
