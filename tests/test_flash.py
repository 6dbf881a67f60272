"""FlashAttention with shared prompts: with the kernels' formulas in float64, the numbers of dense attention."""

import itertools
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from gift.logprobs.checkpointing import checkpoint_selectively
from gift.logprobs.flash import Call, dense_attention, differs, flash_problem, seen_by, segments, shared_attention
from gift.logprobs.layouts import token_batch
from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError
from tests.test_logprobs import make_model, rows

PIECES = {
    "groups": [(5, (7, 3)), (2, (4, 4, 1)), (1, (6,))],
    "no prompts": [(0, (5,)), (0, (1,)), (0, (8,))],
    "empty completions": [(4, (0, 3, 0)), (3, (0, 0)), (2, (2,))],
    "prompts alone": [(4, ()), (6, (0,))],
    "one of all": [(9, (2, 2, 2, 2, 2, 2, 2, 2))],
    "both": [(0, (3,)), (4, (5, 0, 1)), (0, (2,))],
}


class Formulas:
    """What the kernels compute, sequence by sequence; backward from `out` and `lse` alone, as they do."""

    def forward(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = torch.zeros_like(query), query.new_full(query.shape[1::-1], -torch.inf)
        for q, k in pairs(call):
            scores = self.scores(call, query[q], key[k])
            lse[:, q] = scores.logsumexp(-1)
            out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), wide(value[k], query))
        return out, lse

    def backward(
        self, call: Call, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert all(each.is_contiguous() for each in (gradient, query, key, value, out, lse))
        made = [torch.zeros_like(each) for each in (query, key, value)]
        delta = (gradient * out).sum(-1).t()
        for q, k in pairs(call):
            weights = (self.scores(call, query[q], key[k]) - lse[:, q, None]).exp()
            by_weight = torch.einsum("qhd,khd->hqk", gradient[q], wide(value[k], query))
            by_score = weights * (by_weight - delta[:, q, None]) * call.scale
            made[0][q] = torch.einsum("hqk,khd->qhd", by_score, wide(key[k], query))
            made[1][k] = narrow(torch.einsum("hqk,qhd->khd", by_score, query[q]), key)
            made[2][k] = narrow(torch.einsum("hqk,qhd->khd", weights, gradient[q]), key)
        return made[0], made[1], made[2]

    def scores(self, call: Call, query: Tensor, key: Tensor) -> Tensor:
        found = torch.einsum("qhd,khd->hqk", query, wide(key, query)) * call.scale
        if call.is_causal:
            assert len(query) == len(key)
            found = found.masked_fill(~torch.ones(found.shape[1:], dtype=torch.bool).tril(), -torch.inf)
        return found


def wide(each: Tensor, query: Tensor) -> Tensor:
    return each.repeat_interleave(query.shape[1] // each.shape[1], 1)


def narrow(each: Tensor, key: Tensor) -> Tensor:
    return each.unflatten(1, (key.shape[1], -1)).sum(2)


def pairs(call: Call) -> list[tuple[slice, slice]]:
    for each in (call.queries, call.keys):
        assert each.cuts.dtype == torch.int32
        assert each.longest == int(each.cuts.diff().max())
        assert (each.cuts.diff() > 0).all()
    ends = (itertools.pairwise(each.cuts.tolist()) for each in (call.queries, call.keys))
    return [(slice(*q), slice(*k)) for q, k in zip(*ends, strict=True)]


def inputs(total: int, heads: tuple[int, int, int]) -> list[Tensor]:
    noise = torch.Generator().manual_seed(total)
    number, shared, size = heads
    shapes = [(total, number, size), (total, shared, size), (total, shared, size), (total, number, size)]
    return [torch.randn(shape, generator=noise, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("heads", [(4, 4, 8), (4, 2, 8), (6, 1, 16)])
@pytest.mark.parametrize("name", PIECES)
def test_two_calls_are_dense_attention(name: str, heads: tuple[int, int, int]) -> None:
    pieces = PIECES[name]
    rows = segments(pieces)
    *given, gradient = inputs(int(rows.own.cuts[-1]), heads)
    merged = shared_attention(*given, rows, 0.3, Formulas())
    dense = dense_attention(*given, seen_by(pieces), 0.3)
    torch.testing.assert_close(merged, dense, atol=1e-14, rtol=1e-13)
    for one, other in zip(
        torch.autograd.grad(merged, given, gradient), torch.autograd.grad(dense, given, gradient), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-13, rtol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    rows = segments(PIECES["groups"])
    *given, _ = inputs(int(rows.own.cuts[-1]), (2, 1, 4))
    assert torch.autograd.gradcheck(lambda *each: shared_attention(*each, rows, 0.5, Formulas()), given)


def test_the_scores_of_a_prompt_may_be_far_from_those_of_its_completions() -> None:
    """Neither overflow nor 0 / 0 where one of the two calls has all of the weight."""
    rows = segments([(3, (4, 2))])
    *given, gradient = inputs(9, (2, 2, 4))
    query, key, value = given
    key = torch.cat([key[:3] * 400, key[3:]]).detach().requires_grad_()
    out = shared_attention(query, key, value, rows, 1.0, Formulas())
    dense = dense_attention(query, key, value, seen_by([(3, (4, 2))]), 1.0)
    torch.testing.assert_close(out, dense)
    found, right = (torch.autograd.grad(each, [query, key, value], gradient) for each in (out, dense))
    torch.testing.assert_close(found, right)


class OwnSums(Formulas):
    """Kernels that take the log-sum-exp of their own call in backward, as if nothing had been merged."""

    def backward(
        self, call: Call, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return super().backward(call, gradient, query, key, value, *self.forward(call, query, key, value))


class Upward(Formulas):
    """Kernels whose scores are wrong."""

    def scores(self, call: Call, query: Tensor, key: Tensor) -> Tensor:
        return super().scores(call, query, key) * 1.1


class Missing(Formulas):
    def forward(self, *arguments: object) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        raise RuntimeError("no kernel for this device\nmore")


def test_a_trial_finds_kernels_that_compute_something_else() -> None:
    device = torch.device("cpu")
    assert differs(Formulas(), (4, 2, 8), torch.float64, device) is None
    assert "the gradient of the query" in (differs(OwnSums(), (4, 2, 8), torch.float64, device) or "")
    assert "the output of a trial" in (differs(Upward(), (4, 2, 8), torch.float64, device) or "")
    assert differs(Missing(), (4, 2, 8), torch.float64, device) == "no kernel for this device"


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("family", ["Qwen3", "Mistral", "Qwen2"])
def test_a_model_has_the_log_probs_and_gradients_that_it_has_with_blocks(
    monkeypatch: pytest.MonkeyPatch, family: str, layout: Literal["shared", "packed"]
) -> None:
    """A layer whose window is shorter than a row keeps the blocks: all of this Mistral, one of this Qwen2.

    Selective checkpointing changes no byte, and calls no kernel again.
    """
    calls: list[int] = []
    counts = []

    class Counted(Formulas):
        def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
            calls.append(1)
            return super().forward(*arguments)

    monkeypatch.setattr("gift.logprobs.flash.FLASH", Counted())
    monkeypatch.setattr("gift.logprobs.tokens.flash_problem", lambda *_: None)
    model = TokenLogprobs(make_model(family), 0.9, layout)
    batch = token_batch(*rows(), layout)
    found = []
    for how in ("blocks", "flash", "selective"):
        if how == "flash":
            assert model.use_flash(torch.device("cpu")) is None
        if how == "selective":
            checkpoint_selectively(model.model)
        logprobs = model(batch.to(torch.device("cpu")))
        parameters = [each for each in model.parameters() if each.requires_grad]
        found.append([logprobs, *torch.autograd.grad(logprobs.sin().sum(), parameters)])
        counts.append(len(calls))
    by_blocks, by_flash, by_selective = found
    assert (counts[1] > 0) == (family != "Mistral")
    assert counts == [0, counts[1], 2 * counts[1]]
    for one, other in zip(by_blocks, by_flash, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert all(torch.equal(*each) for each in zip(by_flash, by_selective, strict=True))


def test_what_attention_made_and_keeps_is_not_written_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gift.logprobs.flash.FLASH", Formulas())
    monkeypatch.setattr("gift.logprobs.tokens.flash_problem", lambda *_: None)
    model = TokenLogprobs(make_model("Qwen3"), 0.9, "shared")
    assert model.use_flash(torch.device("cpu")) is None
    product = model.model.model.layers[0].self_attn.o_proj
    product.register_forward_pre_hook(lambda module, inputs: (inputs[0].mul_(2),))
    checkpoint_selectively(model.model)
    with pytest.raises(UserError, match="it writes into what a linear layer or attention made"):
        model(token_batch(*rows(), "shared"))


def test_padded_rows_are_not_for_it() -> None:
    model = TokenLogprobs(make_model("Qwen3"), 1.0, "padded")
    assert model.use_flash(torch.device("cuda")) == "rows are padded"
    assert not model.flash


@pytest.mark.parametrize(
    ("heads", "dtype", "device", "problem"),
    [
        ((4, 2, 64), torch.float32, "cuda", "not for float32"),
        ((4, 2, 512), torch.bfloat16, "cuda", "at most 256"),
        ((4, 2, 36), torch.bfloat16, "cuda", "a multiple of 8"),
    ],
)
def test_it_is_not_used_where_it_is_not_made_for(
    heads: tuple[int, int, int], dtype: torch.dtype, device: str, problem: str
) -> None:
    assert problem in (flash_problem(heads, dtype, torch.device(device)) or "")
