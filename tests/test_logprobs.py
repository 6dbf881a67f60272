"""Log-probs of completions: closed-form head, layouts and packed attention against whole logits row by row."""

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from gift.logprobs import attention, tokens
from gift.logprobs.attention import PACKED_ATTENTION, gather_rows, packed_attention
from gift.logprobs.head import LogprobHead
from gift.logprobs.layouts import token_batch
from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
from gift.project.errors import UserError
from gift.project.ragged import Ragged

TEMPERATURE = 0.8
SIZE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "attn_implementation": "sdpa",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "Llama": {"tie_word_embeddings": False},
    "Mistral": {"sliding_window": 7},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "GPTNeoX": {"num_key_value_heads": 4},
    "GPT2": GPT2,  # learned positions
}


def make_model(name: str, **fields: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config_class = getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))
    return model_class(config_class(**{**SIZE, **MODELS.get(name, {}), **fields})).eval()


def columns(*lists: list[list[int]]) -> list[Ragged]:
    return [Ragged.of(rows, np.int32) for rows in lists]


def rows(seed: int = 0) -> list[Ragged]:
    """Six groups of four: prompts of 1 to 12 tokens, completions of 1 to 30."""
    rng = random.Random(seed)
    prompts, completions = [], []
    for _ in range(6):
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 12))]
        for _ in range(4):
            prompts.append(prompt)
            completions.append([rng.randrange(50) for _ in range(rng.choice([1, 1, 2, 5, 9, 30]))])
    return columns(prompts, completions)


def one_by_one(model: Any) -> Tensor:
    """The same from whole logits, one row at a time."""
    parts = []
    for prompt, completion in zip(*rows(), strict=True):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        parts.append(logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion).long()])
    return torch.cat(parts)


def gradients(model: nn.Module, logprobs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, len(logprobs))
    return list(torch.autograd.grad((weights * logprobs).sum(), list(model.parameters())))


@pytest.mark.parametrize("slots", [1024, 0], ids=["groups whole", "groups cut"])
@pytest.mark.parametrize("name", MODELS)
def test_every_layout_has_the_log_probs_and_gradients_of_whole_logits(
    name: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gift.logprobs.layouts.BLOCK_PADDING_SLOTS", slots)
    model = make_model(name)
    truth = one_by_one(model)
    expected = gradients(model, truth)
    for packing in ("padded", "packed", "shared", "auto"):
        logprobs = TokenLogprobs(model, TEMPERATURE, packing)
        assert logprobs.layout == {"auto": "shared"}.get(packing, packing)
        found = logprobs(token_batch(*rows(), logprobs.layout))
        torch.testing.assert_close(found, truth, atol=2e-5, rtol=1e-5)
        for ours, plain in zip(gradients(model, found), expected, strict=True):
            torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-4)
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("name", ["Mistral", "Llama"])
def test_all_tensors_are_made_on_the_device_of_the_model(
    name: str, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU a tensor of the CPU's would end the pass, forward or backward; shapes without numbers stand in."""
    monkeypatch.setattr("gift.logprobs.layouts.BLOCK_PADDING_SLOTS", 0)
    model = make_model(name, tie_word_embeddings=False)
    logprobs = TokenLogprobs(model, TEMPERATURE, layout).to("meta")
    found = logprobs(token_batch(*rows(), layout).to(torch.device("meta")))
    assert (found.device.type, found.dtype) == ("meta", torch.float32)
    found.sum().backward()
    trained = [logprobs.head.weight, *model.get_decoder().parameters()]
    assert {parameter.grad.device.type for parameter in trained} == {"meta"}


def test_a_shared_prompt_is_computed_once() -> None:
    prompts, completions = [[5, 6, 7]] * 3 + [[8, 9]], [[1, 2], [3, 4, 5], [6], [7, 1]]
    tokens = {
        layout: token_batch(*columns(prompts, completions), layout).input_ids
        for layout in ("padded", "packed", "shared")
    }
    assert tokens["shared"].tolist() == [[5, 6, 7, 1, 3, 4, 8, 9, 7]]
    assert tokens["packed"].numel() == 4 + 5 + 3 + 3
    assert tokens["padded"].shape == (4, 5)


@pytest.mark.parametrize("slots", [1024, 0])
def test_blocks_cover_the_tokens_of_a_batch_once(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gift.logprobs.layouts.BLOCK_PADDING_SLOTS", slots)
    for seed in range(20):
        for layout in ("packed", "shared"):
            batch = token_batch(*rows(seed), layout)
            assert sum(len(block.slot_of_token) for block in batch.blocks) == batch.input_ids.numel()
            for block in batch.blocks:
                assert block.slot_of_token.unique().numel() == len(block.slot_of_token)
                own = torch.arange(len(block.slot_of_token))
                assert torch.equal(block.token_of_slot[block.slot_of_token], own)


def test_short_completions_are_not_padded_to_a_long_one_of_their_group() -> None:
    prompts, completions = [[5] * 100] * 8 + [[6] * 10] * 2, [[1] * n for n in (3, 900, 700, 1, 20, 3000, 40, 2, 9, 8)]
    batch = token_batch(*columns(prompts, completions), "shared")
    assert batch.input_ids.numel() == 110 + sum(map(len, completions)) - len(completions)
    for block in batch.blocks:
        assert len(block.token_of_slot) <= 1.25 * len(block.slot_of_token) + 1024


def test_what_attention_adds_to_scores_is_kept_once_for_all_layers() -> None:
    def kept(num_layers: int) -> int:
        """Bytes of the tensors of a mask's size that the backward pass of so many layers keeps."""
        model = TokenLogprobs(make_model("Qwen3", num_hidden_layers=num_layers), TEMPERATURE, "shared")
        batch = token_batch(*columns([[5] * 100] * 2, [[1] * 200, [2] * 200]), "shared")
        found: dict[int, int] = {}

        def look(tensor: Tensor) -> Tensor:
            if tensor.shape[-2:] == (199, 299):
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
            model(batch)
        return sum(found.values())

    assert 0 < kept(1) == kept(4)


def test_long_and_short_rows_go_into_blocks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However a batch is cut into blocks, its log-probs are the same."""
    model = make_model("Qwen3")
    truth = one_by_one(model)
    logprobs = TokenLogprobs(model, TEMPERATURE, "shared")  # from here on the model takes packed batches only
    counts = set()
    for padding, slots, mask in ((0.0, 0, 2**22), (0.25, 0, 2**22), (9.0, 0, 2**22), (9.0, 1024, 5000)):
        monkeypatch.setattr("gift.logprobs.layouts.BLOCK_PADDING", padding)
        monkeypatch.setattr("gift.logprobs.layouts.BLOCK_PADDING_SLOTS", slots)
        monkeypatch.setattr("gift.logprobs.layouts.BLOCK_MASK_ENTRIES", mask)
        batch = token_batch(*rows(), "shared")
        counts.add(len(batch.blocks))
        torch.testing.assert_close(logprobs(batch), truth, atol=2e-5, rtol=1e-5)
    assert min(counts) == 1
    assert len(counts) > 2


@pytest.mark.parametrize("num_tiles", [1, 3, 50])
@pytest.mark.parametrize("bias", [False, True])
def test_the_head_is_autograd_through_whole_logits(num_tiles: int, bias: bool) -> None:
    torch.manual_seed(1)
    linear, hidden = nn.Linear(8, 50, bias=bias), torch.randn(21, 8, requires_grad=True)
    targets, weights = torch.randint(0, 50, (21,)), torch.randn(21)
    inputs = [hidden, *linear.parameters()]
    plain = (linear(hidden) / TEMPERATURE).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    head = LogprobHead(linear, TEMPERATURE, tile_bytes=4 * 21 * -(-50 // num_tiles))
    found = head(hidden, targets)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-6)
    expected = torch.autograd.grad((weights * plain).sum(), inputs)
    for ours, theirs in zip(torch.autograd.grad((weights * found).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_head_keeps_extreme_logits_finite() -> None:
    """Logits of +-2000 in any order of tiles: log-probs and gradients as in float64."""
    linear = nn.Linear(1, 6, bias=False)
    linear.weight.data = torch.tensor([[-2000.0], [0.0], [2000.0], [1999.0], [-1.0], [2000.0]])
    hidden, targets = torch.ones(6, 1, requires_grad=True), torch.arange(6)
    found = LogprobHead(linear, 1.0, tile_bytes=4 * 6 * 2)(hidden, targets)
    exact = (hidden.double() @ linear.weight.double().T).log_softmax(-1).diagonal()
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=1e-6)
    inputs = [hidden, linear.weight]
    for ours, plain in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (found, exact)), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-5)


def test_a_bfloat16_head_rounds_about_as_whole_logits_do() -> None:
    """Mean squared errors against float32. The hidden states' gradient is a sum over tiles, each rounded once more."""
    torch.manual_seed(2)
    linear, hidden = nn.Linear(64, 500, bias=False), torch.randn(33, 64)
    targets = torch.randint(0, 500, (33,))

    def of(dtype: torch.dtype, tiles: bool) -> tuple[Tensor, Tensor, Tensor]:
        weight = linear.weight.detach().to(dtype).requires_grad_()
        x = hidden.to(dtype).requires_grad_()
        if tiles:
            copy = nn.Linear(64, 500, bias=False, dtype=dtype)
            copy.weight = nn.Parameter(weight)
            found = LogprobHead(copy, 1.0, tile_bytes=4 * 33 * 64)(x, targets)
            weight = copy.weight
        else:
            found = (x @ weight.T).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        return (found.detach(), *(g.float() for g in torch.autograd.grad(found.sum(), [x, weight])))

    truth = of(torch.float32, tiles=False)
    ours, plain = of(torch.bfloat16, tiles=True), of(torch.bfloat16, tiles=False)
    for exact, a, b in zip(truth, ours, plain, strict=True):
        assert float((a - exact).square().mean()) <= 1.5 * float((b - exact).square().mean())


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward: nothing is larger than the budget, the weight, or the hidden states."""
    monkeypatch.setattr("gift.logprobs.head.TILE_BYTES", {"cpu": 4 * 3000})
    model = make_model("Qwen3", vocab_size=2000)
    logprobs = TokenLogprobs(model, TEMPERATURE)
    batch = token_batch(*rows())
    most = max(model.get_output_embeddings().weight.numel(), batch.input_ids.numel() * 48, 3000)
    assert len(batch.targets) * 2000 > 3 * most
    with Largest() as seen:
        logprobs(batch).sum().backward()
    assert seen.elements <= most


class WeightSized(TorchDispatchMode):
    """How many dense tensors as large as a tied weight operations make anew."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.seen = weight.shape, {weight.data_ptr()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.layout == torch.strided and out.shape == self.shape:
            self.seen.add(out.data_ptr())
        return out


def test_a_tied_weight_has_one_gradient_at_a_time() -> None:
    """Two micro-batches: one tensor of the weight's size is made, and it is torch's gradient of both."""
    model = make_model("Qwen3", vocab_size=2000)
    weight = model.get_output_embeddings().weight
    prompts, completions = rows()
    prompts = Ragged.of(
        [[0, 0, *prompts[0]], *list(prompts)[1:]], np.int32
    )  # the padding token, whose embedding has no gradient
    batch = token_batch(prompts, completions)
    plain = make_model("Qwen3", vocab_size=2000)
    logprobs = TokenLogprobs(model, 1.0)
    assert logprobs.tied is not None
    for accumulates in (False, True):
        logprobs.tied.accumulates = accumulates
        found = logprobs(batch).sum()
        with WeightSized(weight) as made:
            found.backward()
        assert len(made.seen) == 2
    ids = batch.input_ids
    hidden = plain.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[batch.positions]
    whole = (hidden @ plain.lm_head.weight.t()).log_softmax(-1).gather(1, batch.targets.unsqueeze(1)).sum()
    (2 * whole).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-4)


def test_grad_leaves_the_gradient_of_a_tied_weight_alone() -> None:
    model = make_model("Qwen3")
    weight = model.get_output_embeddings().weight
    logprobs = TokenLogprobs(model, 1.0)
    logprobs(token_batch(*rows())).sum().backward()
    before = weight.grad.clone()
    (again,) = torch.autograd.grad(logprobs(token_batch(*rows())).sum(), [weight])
    assert weight.grad.equal(before)
    assert again.equal(before)


def test_a_frozen_head_has_no_gradient_and_passes_one_on() -> None:
    model = make_model("Llama")
    truth = one_by_one(model)
    inner = model.model.layers[0].mlp.up_proj.weight
    (expected,) = torch.autograd.grad(truth.sum(), [inner])
    model.lm_head.weight.requires_grad_(False)
    TokenLogprobs(model, TEMPERATURE)(token_batch(*rows())).sum().backward()
    assert model.lm_head.weight.grad is None
    torch.testing.assert_close(inner.grad, expected, atol=1e-4, rtol=1e-4)


def test_log_probs_do_not_depend_on_the_batches() -> None:
    logprobs = TokenLogprobs(make_model("Qwen3"), TEMPERATURE, "shared")
    prompts, completions = rows()
    together = completion_logprobs(logprobs, prompts, completions, [list(range(24))])
    apart = completion_logprobs(logprobs, prompts, completions, [[index] for index in reversed(range(24))])
    np.testing.assert_array_equal(together.offsets, completions.offsets)
    np.testing.assert_allclose(together.values, apart.values, atol=1e-5, rtol=1e-5)


def test_what_rows_send_back_to_their_prompt_is_summed_in_float32() -> None:
    """Large numbers that nearly cancel, as a group's coefficients do; a row that nobody asked for gets 0."""
    x = torch.randn(3, 40).bfloat16().requires_grad_()
    index = torch.tensor([0] * 64 + [2] * 64)
    sent = torch.randn(128, 40).bfloat16()
    sent[:63] += 8
    sent[63] -= 8 * 63
    gather_rows(x, index).backward(sent)
    exact = torch.stack([sent[:64].double().sum(0), torch.zeros(40).double(), sent[64:].double().sum(0)])
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), exact, atol=1e-3, rtol=2**-8)
    assert gather_rows(x, index).equal(x[index])


def test_a_model_that_cannot_be_packed_is_padded_or_refused() -> None:
    """Gemma 2 squashes its attention scores; layers of other kinds carry more than attention shows."""
    squashing = make_model("Gemma2", head_dim=8, final_logit_softcapping=None)
    mixing = make_model("Qwen3")
    mixing.config.layer_types = ["full_attention", "linear_attention"]
    for model, word in ((squashing, "softcap"), (mixing, "linear_attention")):
        padded = TokenLogprobs(model, TEMPERATURE, "auto")
        assert padded.layout == "padded"
        assert word in str(padded.note)
        assert model.config._attn_implementation == "sdpa"
        with pytest.raises(UserError, match=rf"packing: shared: .*{word}.*; set it to padded"):
            TokenLogprobs(model, TEMPERATURE, "shared")


def cancelling(special: bool) -> Any:
    """A Llama in which rounding grows: huge values, those of every token or of tokens 1 to 8 only, cancel each other.

    As attention sinks do in trained models, they meet no other weight, so that in exact arithmetic they change nothing.
    """
    model = make_model("Llama", vocab_size=200)
    attention = model.model.layers[0].self_attn
    value, out = attention.v_proj.weight.data, attention.o_proj.weight.data
    embedding, size = model.get_input_embeddings().weight.data, attention.head_dim
    embedding[:, 0] = 0.0 if special else 1.0
    embedding[1:9, 0] = 1.0
    value[0::size] = value[1::size] = 0.0
    value[0::size, 0], value[1::size, 0] = 2.0**14, 3 * 2.0**14
    out[:, 0::size] = 3 * out[:, 1::size]
    out[:, 1::size] *= -1
    return model


def rounds_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed attention as on a machine where its sums end in another last place."""

    def moved(*args: Any, **others: Any) -> tuple[Tensor, None]:
        out, _ = packed_attention(*args, **others)
        signs = torch.randint(0, 2, out.shape, generator=torch.Generator().manual_seed(1)).to(out) * 2 - 1
        return out * (1 + torch.finfo(out.dtype).eps * signs), None

    monkeypatch.setattr("gift.logprobs.tokens.packed_attention", moved)


def packed_gap(model: Any, prompts: Ragged, completions: Ragged) -> float:
    """How far shared rows are from single ones."""
    AttentionInterface.register(PACKED_ATTENTION, tokens.packed_attention)
    logprobs = TokenLogprobs(model, 1.0)
    found = []
    for layout, batches in (("padded", [[0], [1], [2]]), ("shared", [[0, 1, 2]])):
        logprobs.layout = layout
        model.set_attn_implementation({"padded": "sdpa", "shared": PACKED_ATTENTION}[layout])
        found.append(completion_logprobs(logprobs, prompts, completions, batches).values)
    model.set_attn_implementation("sdpa")
    return float(np.abs(found[0] - found[1]).max())


@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "every token"])
def test_rounding_that_grows_does_not_keep_a_model_from_being_packed(
    special: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds_otherwise(monkeypatch)
    text = tokens.trial_rows(200)
    unlike = columns([[1, 2, 3, 4], [1, 2, 3, 4], [7, 1, 2]], [[5, 6, 7], [8, 3], [3, 4, 5, 6, 1]])
    bound = tokens.ROUNDING[torch.float32]
    assert packed_gap(cancelling(special), *unlike) > 3 * bound
    assert (packed_gap(cancelling(special), *text) > 3 * bound) is not special
    for given in (text, unlike):
        assert packed_gap(cancelling(special).double(), *given) < 1e-5
    found = TokenLogprobs(cancelling(special), TEMPERATURE, "auto")
    assert (found.layout, found.note) == ("shared", None)


def test_a_trained_model_is_packed() -> None:
    """Sharp log-probs, from 0 to -20 nats: sequences in which a token is followed by the next one but two."""
    model = make_model("Llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(60):
        ids = (torch.randint(0, 50, (16, 1)) + 3 * torch.arange(12)) % 50
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = TokenLogprobs(model.eval(), 1.0, "auto")
    assert (found.layout, found.note) == ("shared", None)
    prompts, completions = columns([[1, 4, 7], [1, 4, 7], [2, 5]], [[10, 13, 16], [10, 14], [8, 11, 30, 33]])
    logprobs = found(token_batch(prompts, completions, "shared"))
    assert logprobs.max() > -0.1
    assert logprobs.min() < -5
    assert packed_gap(model, prompts, completions) < 1e-4


def deaf(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignores position_ids, so that every completion is put at a wrong place."""
    forward = model.get_decoder().forward

    def called(*args: Any, position_ids: Tensor | None = None, **others: Any) -> Any:
        return forward(*args, **others)

    monkeypatch.setattr(model.get_decoder(), "forward", called)


def shifted(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts from 1 where it is given positions, and from 0 else."""
    forward = model.get_decoder().forward

    def called(*args: Any, position_ids: Tensor | None = None, **others: Any) -> Any:
        return forward(*args, position_ids=None if position_ids is None else position_ids + 1, **others)

    monkeypatch.setattr(model.get_decoder(), "forward", called)


def blind(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong mask: completions do not see the second token of their prompt."""
    mask = attention._mask

    def hidden(block: Any, device: torch.device, window: int | None, own: bool) -> Tensor | None:
        seen = mask(block, device, window, own)
        if own and seen is not None:
            seen = seen.clone()
            seen[..., 1] = False
        return seen

    monkeypatch.setattr(attention, "_mask", hidden)


@pytest.mark.parametrize(
    ("make", "break_it"),
    [
        (partial(make_model, "GPT2"), deaf),
        (partial(make_model, "GPT2"), shifted),  # learned positions; to RoPE a shift is none
        (partial(make_model, "Llama"), deaf),
        (partial(make_model, "Llama"), blind),
        (partial(cancelling, False), deaf),
        (partial(cancelling, False), blind),
    ],
    ids=["places", "shifted places", "turns", "mask", "turns, and rounding grows", "mask, and rounding grows"],
)
def test_a_model_whose_log_probs_change_under_packing_is_not_packed(
    make: Any, break_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    break_it(model, monkeypatch)
    padded = TokenLogprobs(model, TEMPERATURE, "auto")
    assert padded.layout == "padded"
    assert "rows are padded, and prompts not shared: packed, log-probs of a trial are others by" in str(padded.note)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match=r"packing: shared: not with this model: packed, log-probs .* set it to padded"):
        TokenLogprobs(model, TEMPERATURE, "shared")
