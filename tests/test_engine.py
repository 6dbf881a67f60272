"""Laws of the engine: a step is AdamW's on the plain sum of losses, at any split, world size and ZeRO stage."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gift.logprobs.checkpointing import checkpoint_selectively
from gift.project.errors import UserError
from gift.training.engine import Engine, EngineSettings
from gift.training.memory import Checkpointing
from gift.training.ranks import distributed
from tests.ranks import run_as_rank, run_two_ranks
from tests.states import FullState, full_state

LR = (1e-3, 2e-3, 5e-4)  # one a step; not constant, so that a step that ignores it is caught
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
MAX_GRAD_NORM = 1.0
# The micro-batches of each rank, by world size: unequal, so that some pad, and one of four has nothing.
SHARES = {1: ((0, 1, 2, 3),), 2: ((0, 1, 3), (2,)), 4: ((0,), (1, 3), (), (2,))}
SIMPLEST = {"float32": 0, "bfloat16": 1}  # the lowest stage of each dtype
CASES = [("float32", stage) for stage in (0, 1, 2, 3)] + [("bfloat16", stage) for stage in (1, 2, 3)]

MicroBatch = tuple[Tensor, Tensor]


class Logprobs(nn.Module):
    """A tiny causal LM with tied embeddings: token ids [B, T] to log-probs [B * (T - 1)]."""

    def __init__(self, checkpointing: Checkpointing = True) -> None:
        super().__init__()
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            tie_word_embeddings=True,
        )
        self.model = Qwen3ForCausalLM(config).train()
        self.scale = nn.Parameter(torch.ones(1))  # no number of ranks but one divides it
        if checkpointing == "selective":
            checkpoint_selectively(self.model)
        elif checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.model(ids, use_cache=False).logits[:, :-1].float() * self.scale
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten()


def micro_batches(step: int) -> list[MicroBatch]:
    """Four micro-batches of unequal size: ids [B, T], and the loss's coefficients of the log-probs [B * (T - 1)]."""
    made = torch.Generator().manual_seed(100 + step)
    shapes = ((2, 9), (1, 14), (3, 6), (2, 5))
    return [
        (torch.randint(61, (b, t), generator=made), torch.randn(b * (t - 1), generator=made) / 4) for b, t in shapes
    ]


def one_step(engine: Engine, step: int) -> float:
    """Optimizer step `step` on this rank's share, with a no-grad pass first as the update does; returns the norm."""
    batches = micro_batches(step)
    shares = SHARES[engine.world_size]
    dummy = (batches[0][0][:1, :2], torch.zeros(1))
    work = [batches[i] for i in shares[engine.rank]]
    work += [dummy] * (max(map(len, shares)) - len(work))
    with torch.no_grad():
        for ids, _ in work:
            engine.forward(ids)
    for ids, coefficients in work:
        engine.backward((coefficients * engine.forward(ids)).sum())
    return engine.step(LR[step])


def settings(stage: int, dtype: str = "float32", **more: object) -> EngineSettings:
    return EngineSettings(max_grad_norm=MAX_GRAD_NORM, dtype=dtype, zero_stage=stage, **ADAMW, **more)


def plain_torch(dtype: str) -> tuple[list[FullState], list[float]]:
    """The truth, without DeepSpeed: states before the first and after each of three steps, norms before clipping.

    bfloat16: fp32 master weights and moments, the gradients of a bfloat16 copy, summed in fp32.
    """
    masters, copy = Logprobs(), Logprobs()
    for q in copy.parameters():  # parameters only: DeepSpeed leaves buffers (rotary frequencies) in fp32
        q.data = q.data.to(getattr(torch, dtype), copy=True)
    named = dict(masters.named_parameters())
    pairs = list(zip(masters.parameters(), copy.parameters(), strict=True))
    adamw = torch.optim.AdamW(masters.parameters(), lr=0.0, **ADAMW)
    states, norms = [], []
    for step in range(3):
        for p, _ in pairs:
            p.grad = torch.zeros_like(p)
        for ids, coefficients in micro_batches(step):
            (coefficients * copy(ids)).sum().backward()
            for p, q in pairs:
                p.grad += q.grad.float()
                q.grad = None
        norms.append(float(nn.utils.clip_grad_norm_(masters.parameters(), MAX_GRAD_NORM)))
        adamw.param_groups[0]["lr"] = LR[step]
        adamw.step()
        for p, q in pairs:
            q.data.copy_(p.data)
        tensors = {key: {n: adamw.state[p][key].clone() for n, p in named.items()} for key in ("exp_avg", "exp_avg_sq")}
        tensors["weight"] = {n: p.detach().clone() for n, p in named.items()}
        states.append(FullState(step + 1, tensors))
    return states, norms


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def difference(a: FullState, b: FullState) -> float:
    assert a.step == b.step
    assert a.tensors.keys() == b.tensors.keys()
    return max(farthest(a.tensors[key], b.tensors[key]) for key in a.tensors)


def save_state(state: FullState, path: Path) -> None:
    """As the project stores it: tensors in safetensors, never a pickle."""
    flat = {f"{key}/{name}": tensor for key, whole in state.tensors.items() for name, tensor in whole.items()}
    save_file({"step": torch.tensor(state.step), **flat}, path)


def load_state(path: Path) -> FullState:
    flat = load_file(path)
    step = int(flat.pop("step"))
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        tensors.setdefault(key.split("/")[0], {})[key.split("/")[1]] = tensor
    return FullState(step, tensors)


def worker(folder: Path) -> None:
    """One of two ranks; at each stage: two steps, the state, a third step; then the third from one process's state."""
    with distributed():
        for dtype, stage in CASES:
            engine = Engine(Logprobs(), settings(stage, dtype))
            norms = [one_step(engine, step) for step in (0, 1)]
            states = [full_state(engine)]
            norms.append(one_step(engine, 2))
            states.append(full_state(engine))
            engine.close()
            engine = Engine(Logprobs(), settings(stage, dtype))
            engine.load(load_state(folder / f"{dtype}-one-1.safetensors") if engine.rank == 0 else None)
            norms.append(one_step(engine, 2))
            states.append(full_state(engine))
            engine.close()
            for name, state in zip(("two-1", "two-2", "resumed"), states, strict=True):
                if state is not None:
                    save_state(state, folder / f"{dtype}-{stage}-{name}.safetensors")
            save_file({"norms": torch.tensor(norms)}, folder / f"{dtype}-{stage}-norms-{engine.rank}.safetensors")


@pytest.fixture(scope="module")
def truth() -> dict[str, tuple[list[FullState], list[float]]]:
    return {dtype: plain_torch(dtype) for dtype in SIMPLEST}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process made at the simplest stage: a folder of states and norms."""
    folder = tmp_path_factory.mktemp("engine")
    with distributed():
        for dtype, stage in SIMPLEST.items():
            engine = Engine(Logprobs(), settings(stage, dtype))
            norms = []
            for step in range(3):
                norms.append(one_step(engine, step))
                state = full_state(engine)
                assert state is not None
                save_state(state, folder / f"{dtype}-one-{step}.safetensors")
            save_file({"norms": torch.tensor(norms)}, folder / f"{dtype}-one-norms.safetensors")
            engine.close()
    return folder


@pytest.fixture(scope="module")
def two(one: Path) -> Path:
    """The same folder after two ranks have run every stage, without a compiler in reach and without a word."""
    extensions = one / "extensions"
    assert run_two_ranks(__file__, one, PATH="", TORCH_EXTENSIONS_DIR=str(extensions)) == [(0, ""), (0, "")]
    assert not extensions.exists()
    return one


@pytest.mark.parametrize("dtype", SIMPLEST)
def test_one_process_is_plain_torch(one: Path, truth: dict, dtype: str) -> None:
    states, norms = truth[dtype]
    assert load_file(one / f"{dtype}-one-norms.safetensors")["norms"].tolist() == pytest.approx(norms, rel=1e-6)
    for step, state in enumerate(states):
        assert difference(load_state(one / f"{dtype}-one-{step}.safetensors"), state) < 1e-6


@pytest.mark.parametrize(("dtype", "stage"), CASES)
def test_two_ranks_with_unequal_shares_are_plain_torch(two: Path, truth: dict, dtype: str, stage: int) -> None:
    states, norms = truth[dtype]
    for rank in range(2):
        found = load_file(two / f"{dtype}-{stage}-norms-{rank}.safetensors")["norms"].tolist()
        assert found == pytest.approx([*norms, norms[2]], rel=1e-6)
    for step in (1, 2):
        assert difference(load_state(two / f"{dtype}-{stage}-two-{step}.safetensors"), states[step]) < 1e-6


@pytest.mark.parametrize(("dtype", "stage"), CASES)
def test_two_ranks_continue_what_one_process_wrote(two: Path, truth: dict, dtype: str, stage: int) -> None:
    assert difference(load_state(two / f"{dtype}-{stage}-resumed.safetensors"), truth[dtype][0][2]) < 1e-6


@pytest.mark.parametrize(("dtype", "stage"), CASES)
def test_one_process_continues_what_two_ranks_wrote(two: Path, truth: dict, dtype: str, stage: int) -> None:
    states, norms = truth[dtype]
    with distributed():
        engine = Engine(Logprobs(), settings(SIMPLEST[dtype], dtype))
        engine.load(load_state(two / f"{dtype}-{stage}-two-1.safetensors"))
        assert one_step(engine, 2) == pytest.approx(norms[2], rel=1e-6)
        state = full_state(engine)
        assert state is not None
        assert difference(state, states[2]) < 1e-6
        engine.close()


def test_master_weights_keep_what_bfloat16_would_round_away() -> None:
    module = Logprobs()
    given = {name: p.detach().clone() for name, p in module.named_parameters()}
    with distributed():
        engine = Engine(module, settings(1, "bfloat16"))
        state = full_state(engine)
        assert state is not None
        assert farthest(state.tensors["weight"], given) == 0
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
        assert engine.steps == 0
        engine.close()


def test_only_trainable_weights_are_trained_and_kept() -> None:
    module = Logprobs()
    for name, p in module.named_parameters():
        p.requires_grad_("norm" in name)
    frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    with distributed():
        engine = Engine(module, settings(0))
        one_step(engine, 0)
        state = full_state(engine)
        assert state is not None
        assert all("norm" in name for name in state.tensors["weight"])
        assert farthest({n: p.detach() for n, p in module.named_parameters() if n in frozen}, frozen) == 0
        engine.close()


@pytest.mark.parametrize("stage", range(4))
def test_without_a_limit_nothing_is_clipped(truth: dict, stage: int) -> None:
    """AdamW's step hides the size of a gradient, its first moment does not."""
    states, norms = truth["float32"]
    assert norms[0] > 2 * MAX_GRAD_NORM
    with distributed():
        engine = Engine(Logprobs(), replace(settings(stage), max_grad_norm=None))
        assert one_step(engine, 0) == pytest.approx(norms[0], rel=1e-6)
        state = full_state(engine)
        engine.close()
    assert state is not None
    whole = {name: clipped * norms[0] / MAX_GRAD_NORM for name, clipped in states[0].tensors["exp_avg"].items()}
    assert farthest(state.tensors["exp_avg"], whole) < 1e-5 * norms[0]


def test_a_gradient_that_is_not_finite_stops() -> None:
    with distributed():
        engine = Engine(Logprobs(), settings(0))
        engine.backward(engine.forward(micro_batches(0)[0][0]).sum() * math.inf)
        with pytest.raises(UserError, match="not finite"):
            engine.step(LR[0])
        engine.close()


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(UserError, match="use zero_stage 1"):
        settings(0, "bfloat16")
    with pytest.raises(UserError, match="offload_optimizer"):
        settings(0, offload_optimizer=True)
    with pytest.raises(UserError, match=r"update\.offload_parameters: needs zero_stage 3, not 2"):
        settings(2, offload_parameters=True)
    with distributed():
        for key in ("gradient_clipping", "optimizer"):
            with pytest.raises(UserError, match=key):
                Engine(nn.Linear(2, 2), settings(1, deepspeed={key: 1}))
        with pytest.raises(UserError, match="stage"):
            Engine(nn.Linear(2, 2), settings(1, deepspeed={"zero_optimization": {"stage": 3}}))
        engine = Engine(nn.Linear(2, 2), settings(0))
        state = full_state(engine)
        assert state is not None
        for wrong in ({}, {"weight": torch.zeros(2, 2)}, {"weight": torch.zeros(1, 2), "bias": torch.zeros(2)}):
            with pytest.raises(UserError, match="exp_avg does not fit the module"):
                engine.load(FullState(0, {**state.tensors, "exp_avg": wrong}))
        engine.close()


if __name__ == "__main__":
    run_as_rank(worker)
