"""Kernels of a GPU in place of PyTorch's operations: the same numbers, for one model alone, and trials that fail."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gift.logprobs import kernels
from gift.logprobs.checkpointing import checkpoint_selectively
from gift.logprobs.head import PLAIN, LogprobHead, compiled_steps
from gift.logprobs.kernels import compile_head, use_kernels
from gift.logprobs.layouts import token_batch
from gift.logprobs.liger import differs, replace_modules, use_liger
from gift.logprobs.settings import Kernels
from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError
from tests.test_logprobs import make_model, rows

CPU = torch.device("cpu")
COMPILER = shutil.which("g++") or shutil.which("clang++")
# What liger-kernel's function does to a model, with formulas in the place of its kernels.
LIGER = '''
import sys
from types import MethodType
import torch

WRONG = "{wrong}"


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.save_for_backward(x, weight, rstd := (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt())
        return weight * (x.float() * rstd).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        normed, g = x.float() * rstd, (dy * weight).float()
        dx = rstd * (g - normed * (g * normed).mean(-1, keepdim=True) * (WRONG != "norm"))
        return dx.to(x.dtype), (dy.float() * normed).sum((0, 1)).to(weight.dtype), None


class SiluMul(torch.autograd.Function):
    """Its backward writes into what it was given, as the kernel does."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return (torch.nn.functional.silu(a.float()) * (WRONG != "gate") ).to(b.dtype) * b

    @staticmethod
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        sig = torch.sigmoid(a.float())
        silu = a.float() * sig
        db = (dc * silu).to(b.dtype)
        da = (dc.float() * b * (silu * (1 - sig) + sig)).to(a.dtype)
        a.data.copy_(da)
        b.data.copy_(db)
        return a, b


class Replaced:
    def forward(self, x):
        if "eps" in vars(self):
            return Norm.apply(x, self.weight, self.eps)
        return self.down_proj(SiluMul.apply(self.gate_proj(x), self.up_proj(x)))


def _apply_liger_kernel_to_instance(model, **flags):
    assert flags == dict(rms_norm=True, layer_norm=True, swiglu=True, geglu=True, rope=False, cross_entropy=False,
                         fused_linear_cross_entropy=False)
    if WRONG == "crash":
        raise TypeError("no such configuration")
    if WRONG == "nothing":
        return
    names = vars(sys.modules[type(model).__module__])
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith(("RMSNorm", "MLP")):
            names[kind] = Replaced
            if kind.endswith("RMSNorm"):
                module.eps = module.variance_epsilon
            module.forward = MethodType(Replaced.forward, module)
'''


@pytest.fixture
def liger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A liger-kernel of formulas, right or wrong somewhere."""

    def install(wrong: str = "") -> None:
        (tmp_path / "liger_kernel").mkdir()
        (tmp_path / "liger_kernel/__init__.py").touch()
        (tmp_path / "liger_kernel/transformers.py").write_text(LIGER.replace("{wrong}", wrong))
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in ("liger_kernel", "liger_kernel.transformers"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    return install


def made(model: TokenLogprobs) -> list[Tensor]:
    logprobs = model(token_batch(*rows(), model.layout))
    parameters = [each for each in model.parameters() if each.requires_grad]
    return [logprobs, *torch.autograd.grad(logprobs.sin().sum(), parameters)]


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("family", ["Qwen3", "Qwen2", pytest.param("Llama", marks=pytest.mark.slow)])
def test_a_model_keeps_its_numbers_and_others_their_classes(
    liger: Callable[[str], None], family: str, selective: bool
) -> None:
    liger("")
    model = TokenLogprobs(make_model(family), 0.9, "shared")
    before = made(model)
    names = dict(vars(sys.modules[type(model.model).__module__]))
    if selective:
        checkpoint_selectively(model.model)
    assert use_liger(model.model, CPU) is None
    for one, other in zip(made(model), before, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert vars(sys.modules[type(model.model).__module__]) == names
    assert not any("forward" in vars(each) for each in make_model(family).modules())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("norm", "the gradient of "),
        ("gate", "the output of a trial is off by "),
        ("crash", "TypeError: no such configuration"),
        ("nothing", "it has nothing for models of the kind qwen2"),
    ],
)
def test_a_trial_finds_what_is_wrong_and_leaves_the_model_as_it_was(
    liger: Callable[[str], None], wrong: str, said: str
) -> None:
    liger(wrong)
    model = TokenLogprobs(make_model("Qwen2"), 1.0, "shared")
    assert said in (use_liger(model.model, CPU) or "")
    assert not any("forward" in vars(each) for each in model.model.get_decoder().layers.modules())


def test_a_trial_allows_no_more_than_the_errors_of_bfloat16(liger: Callable[[str], None]) -> None:
    liger("")
    assert differs(make_model("Qwen2").bfloat16(), CPU) is None


def test_without_the_package_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "is not installed" in (use_liger(make_model("Qwen2"), CPU) or "")


@pytest.mark.parametrize("key", Kernels.model_fields)
def test_where_there_is_no_gpu_the_line_says_so(key: str) -> None:
    model = TokenLogprobs(make_model("Qwen2"), 1.0, "shared")
    with pytest.raises(UserError, match=rf"^launch\.yaml: {key}: true: it is for GPUs; set it to false$"):
        use_kernels(model, Kernels(**{key: True}), CPU)
    use_kernels(model, Kernels(), CPU)
    assert not model.flash
    assert model.head.steps is PLAIN


@pytest.mark.skipif(COMPILER is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
def test_a_compiled_head_has_the_numbers_of_a_plain_one_at_any_number_of_tokens(
    dtype: torch.dtype, atol: float
) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 101).to(dtype)
    plain, compiled = (LogprobHead(linear, 0.9, tile_bytes=4 * 30 * 40) for _ in range(2))
    assert compile_head(compiled, CPU) is None
    assert compiled.steps is compiled_steps()
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for number in (30, 17, 23):
        hidden = torch.randn(number, 16).to(dtype).requires_grad_()
        targets = torch.randint(101, (number,))
        found = []
        for head in (plain, compiled):
            logprobs = head(hidden, targets)
            found.append([logprobs, *torch.autograd.grad(logprobs.sin().sum(), [hidden, *linear.parameters()])])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=atol, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted, "one compilation serves all shapes"


def test_a_trial_finds_a_compiler_that_is_wrong_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = LogprobHead(torch.nn.Linear(16, 101), 1.0)

    def missing(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nmore")

    def wrong(*given: Any) -> Any:
        made, sums = PLAIN[1](*given)
        return made * 1.01, sums

    for steps, said in ((missing, PLAIN[1]), "RuntimeError: Failed to find"), ((PLAIN[0], wrong), "of the states of a"):
        monkeypatch.setattr(kernels, "compiled_steps", lambda steps=steps: steps)
        assert said in (compile_head(head, CPU) or "")
        assert head.steps is PLAIN


def test_replaced_modules_are_counted(liger: Callable[[str], None]) -> None:
    liger("")
    model = make_model("Llama")
    layers = model.config.num_hidden_layers
    assert replace_modules(model) == 3 * layers + 1
