"""The step is plain torch's on four ranks, under offload and every DeepSpeed key that passes; no other key passes."""

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gift.embedded.base_policy import make_tokenizer
from gift.logprobs.tokens import TokenLogprobs
from gift.policy.folder import PolicyFiles, stored_in_bfloat16
from gift.policy.open import Training, open_policy
from gift.project.errors import UserError
from gift.training.deepspeed_config import PASSES, deepspeed_config, key_problems
from gift.training.engine import Engine, start_engine
from gift.training.ranks import distributed
from tests.ranks import run_as_rank, run_ranks
from tests.states import FullState, full_state
from tests.test_engine import Logprobs, difference, load_state, one_step, plain_torch, save_state, settings

OPTIMIZER, PARAMETERS = {"offload_optimizer": True}, {"offload_parameters": True}
BOTH = OPTIMIZER | PARAMETERS


def zero(**keys: object) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": keys}}


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    **{f"float32 stage {stage}": ("float32", stage, {}) for stage in range(4)},
    "offload, stage 1": ("bfloat16", 1, OPTIMIZER),
    "offload, stage 2": ("float32", 2, OPTIMIZER),
    "keys of stage 1": (
        "bfloat16",
        1,
        zero(
            reduce_bucket_size=500,
            allgather_bucket_size=500,
            use_multi_rank_bucket_allreduce=False,
            reduce_scatter=False,
            allgather_partitions=False,
            contiguous_gradients=False,
        ),
    ),
    "keys of stage 2": (
        "bfloat16",
        2,
        zero(overlap_comm=True, parameter_alignment=True, reduce_bucket_size=500, ignore_unused_parameters=False),
    ),
    "keys of stage 3": (
        "float32",
        3,
        zero(
            overlap_comm=False,
            reduce_bucket_size=4000,
            stage3_prefetch_bucket_size=100,
            stage3_param_persistence_threshold=0,
            stage3_model_persistence_threshold=0,
            stage3_max_live_parameters=100,
            stage3_max_reuse_distance=10,
            memory_efficient_linear=False,
            override_module_apply=False,
            stage3_use_all_reduce_for_fetch_params=True,
        ),
    ),
    "keys of stage 3, selective": (
        "float32",
        3,
        zero(
            reduce_bucket_size=4000,
            stage3_prefetch_bucket_size=100_000,  # several parameters lie in one tensor while they are used
            stage3_param_persistence_threshold=0,
            stage3_use_all_reduce_for_fetch_params=True,
        ),
    ),
    "more of them, offload": (
        "bfloat16",
        3,
        {
            **BOTH,
            **zero(
                sub_group_size=300,  # several flat tensors a rank
                stage3_allgather_sequential=True,
                stage3_module_granularity_threshold=100,
                leaf_module={"classes": ["transformers.models.qwen3.modeling_qwen3.Qwen3MLP"]},
                enable_sanity_checks=True,
                log_trace_cache_warnings=False,
                offload_optimizer={"pin_memory": False},
                offload_param={"pin_memory": False},
            ),
        },
    ),
    "two copies of the parameters": ("bfloat16", 3, zero(zero_hpz_partition_size=2)),  # last: its group stays
}


def run(name: str) -> tuple[list[float], FullState | None]:
    """Two steps of a case; every other case does without gradient checkpointing, if its name says nothing of it."""
    dtype, stage, more = CASES[name]
    checkpointing = "selective" if "selective" in name else list(CASES).index(name) % 2 == 0
    engine = Engine(Logprobs(checkpointing), settings(stage, dtype, **more))
    norms = [one_step(engine, step) for step in range(2)]
    state = full_state(engine)
    engine.close()
    return norms, state


def worker(folder: Path) -> None:
    with distributed():
        for name in CASES:
            norms, state = run(name)
            save_file({"norms": torch.tensor(norms)}, folder / f"{name}-norms-{os.environ['RANK']}.safetensors")
            if state is not None:
                save_state(state, folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def truth() -> dict[str, tuple[list[FullState], list[float]]]:
    return {dtype: plain_torch(dtype) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    assert run_ranks(4, __file__, folder) == [(0, "")] * 4
    return folder


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_four_ranks_one_without_work_are_plain_torch(four: Path, truth: dict, name: str) -> None:
    states, norms = truth[CASES[name][0]]
    for rank in range(4):
        found = load_file(four / f"{name}-norms-{rank}.safetensors")["norms"].tolist()
        assert found == pytest.approx(norms[:2], rel=1e-6)
    assert difference(load_state(four / f"{name}.safetensors"), states[1]) < 1e-6


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize(("dtype", "stage"), [("float32", 0), ("float32", 3), ("bfloat16", 1), ("bfloat16", 3)])
def test_the_engine_starts_from_exactly_the_weights_of_the_file(
    tmp_path: Path, stored: str, dtype: str, stage: int
) -> None:
    model = Logprobs().model
    model.to(getattr(torch, stored)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert stored_in_bfloat16(tmp_path) == (stored == "bfloat16")
    given = load_file(tmp_path / "model.safetensors")
    with distributed():
        policy = open_policy(PolicyFiles(tmp_path), dtype, training=Training(None, 0))
        model = TokenLogprobs(policy, 1.0, "auto")
        engine = start_engine(model, settings(stage, dtype), checkpointing=False)
        state = full_state(engine)
        engine.close()
    assert state is not None
    weights = state.tensors["weight"]
    assert weights.keys() == {f"model.{name}" for name in given}
    for name, tensor in given.items():
        assert torch.equal(weights[f"model.{name}"], tensor.float())


def test_one_float32_weight_and_a_folder_is_not_stored_in_bfloat16(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "model-1.safetensors")
    assert stored_in_bfloat16(tmp_path)
    save_file({"b": torch.ones(2)}, tmp_path / "model-2.safetensors")
    assert not stored_in_bfloat16(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "stage", "offload"),
    [
        ("float32", 1, OPTIMIZER),
        ("bfloat16", 2, OPTIMIZER),
        ("float32", 3, OPTIMIZER),
        ("bfloat16", 3, PARAMETERS),
        ("float32", 3, BOTH),
    ],
)
def test_one_process_with_offload_is_plain_torch(truth: dict, dtype: str, stage: int, offload: dict) -> None:
    states, norms = truth[dtype]
    with distributed():
        engine = Engine(Logprobs(), settings(stage, dtype, **offload))
        engine.load(states[0])
        assert [one_step(engine, step) for step in (1, 2)] == pytest.approx(norms[1:], rel=1e-6)
        state = full_state(engine)
        assert state is not None
        assert difference(state, states[2]) < 1e-6
        engine.close()


def test_every_zero_key_that_passes_has_run_on_four_ranks() -> None:
    given: dict[str, Any] = {}
    for _, _, more in CASES.values():
        given |= more.get("deepspeed", {}).get("zero_optimization", {})
    assert given.keys() == PASSES["zero_optimization"].keys()


def test_keys_that_measure_do_not_change_the_step(
    truth: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states, norms = truth["float32"]
    measuring = {
        "steps_per_print": 1,
        "wall_clock_breakdown": True,
        "memory_breakdown": False,  # true takes seconds a backward
        "dump_state": True,
        "disable_python_gc": True,
        "comms_logger": {"enabled": True},
        "csv_monitor": {"enabled": True, "output_path": str(tmp_path)},
        "timers": {"throughput": {"enabled": False}},
        "flops_profiler": {"enabled": True, "profile_step": 1, "output_file": str(tmp_path / "flops")},
    }
    with distributed():
        engine = Engine(Logprobs(), settings(0, deepspeed=measuring))
        assert [one_step(engine, step) for step in range(3)] == pytest.approx(norms, rel=1e-6)
        state = full_state(engine)
        assert state is not None
        assert difference(state, states[2]) < 1e-6
        engine.close()
    assert "bwd_allreduce_microstep" in capsys.readouterr().out
    assert "Flops Profiler" in (tmp_path / "flops").read_text()


class Asked(dict):
    """A configuration that notes which keys DeepSpeed looks up."""

    names: ClassVar[set[str]] = set()

    def get(self, key: str, default: object = None) -> object:
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> object:
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)

    def keys(self) -> "Asked":  # type: ignore[override]
        return self


def test_what_passes_is_known_to_deepspeed_and_the_rest_of_its_keys_does_not_pass() -> None:
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    DeepSpeedConfig(Asked({"train_micro_batch_size_per_gpu": 1}))
    top = Asked.names
    sections = DeepSpeedZeroConfig.model_fields
    zeros = {field.alias or name for name, field in sections.items()}
    assert {"comms_logger", "flops_profiler", "zero_optimization", "optimizer"} <= top  # so the list is not empty
    assert PASSES.keys() <= top
    assert PASSES["zero_optimization"].keys() <= zeros
    assert PASSES["flops_profiler"].keys() == vars(DeepSpeedFlopsProfilerConfig({})).keys()
    for section, known, passing in (("", top, PASSES), ("zero_optimization", zeros, PASSES["zero_optimization"])):
        for key in known - passing.keys():
            keys = {section: {key: 1}} if section else {key: 1}
            (line,) = key_problems(keys)
            assert "did you mean" not in line


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"gradient_clipping": 1}, ".gradient_clipping: is ours to set; use params.yaml: update.max_grad_norm"),
    (
        {"zero_optimization": {"stage": 3}},
        ".zero_optimization.stage: is ours to set; use launch.yaml: update.zero_stage",
    ),
    ({"zero_optimization": {"overlap_com": True}}, ".zero_optimization.overlap_com: does not pass.*'overlap_comm'"),
    ({"wall_clock_breakdwon": True}, ".wall_clock_breakdwon: does not pass.*did you mean 'wall_clock_breakdown'"),
    ({"zero_optimization": {"round_robin_gradients": True}}, "would change the optimizer step.*docs/pipeline.md"),
    (
        {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
        "offload_optimizer.device.*NVMe is not supported",
    ),
    ({"zero_optimization": {"offload_param": {"pin_memory": True}}}, "offload_param: is not switched on"),
    ({"zero_optimization": True}, ".zero_optimization: True: must be a map"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSALS)
def test_a_key_that_does_not_pass_is_refused_with_the_remedy(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^launch.yaml: update.deepspeed.*{message}"):
        settings(1, deepspeed=keys)


def test_what_deepspeed_itself_refuses_is_one_line() -> None:
    with distributed():
        for keys, message in (
            ({"overlap_comm": True}, "only with ZeRO stage 2"),
            ({"overlap_comm": 7}, "overlap_comm"),
        ):
            with pytest.raises(UserError, match=message) as error:
                Engine(nn.Linear(2, 2), settings(1, **zero(**keys)))
            assert "\n" not in error.value.message


def test_the_configuration_is_ours_whatever_passes() -> None:
    given = zero(reduce_bucket_size=7, offload_optimizer={"pin_memory": False})
    config = deepspeed_config(settings(3, "bfloat16", **BOTH, **given), num_parameters=10, pin_memory=True)
    assert config["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 7,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
        "offload_param": {"device": "cpu", "pin_memory": True},
    }
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"]["enabled"]
    assert deepspeed_config(settings(1), 10, False)["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 10}


if __name__ == "__main__":
    run_as_rank(worker)
