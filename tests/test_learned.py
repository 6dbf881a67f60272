"""A head of a method: it trains and is carried beside the policy, is no part of it, and no other method takes it."""

import json
from pathlib import Path

import mini
import pytest
import torch
from safetensors import safe_open

from gift.methods.names import MATCH
from gift.project.errors import UserError
from gift.project.sections import choice
from gift.training.learned import LearnedLogprobs, policy_module, refuse_other_head
from tests.test_trainer import model

WEIGHTS = {f"learned.{layer}.{kind}" for layer in (0, 2, 3, 5, 6) for kind in ("weight", "bias")}


def names(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def test_the_heads_weights_are_in_the_optimizers_state_and_not_in_the_policy(copied: Path) -> None:
    params = mini.read_yaml(copied / "params.yaml")
    params["update"] |= {"match": {"flowrl": {}}, "zero_targets": "keep"}
    (copied / "params.yaml").write_text(json.dumps(params))
    folder = copied / "data/rounds/r1"
    without = names(folder / "policy/model.safetensors")
    mini.remove_outputs(copied, "update@r1")
    mini.run_stages(copied, ["update@r1"])
    assert names(folder / "policy/model.safetensors") == without
    state = names(folder / "optimizer/state.safetensors")
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        assert {f"{kind}/{name}" for name in WEIGHTS} <= state
    columns = (folder / "metrics/steps.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {"log_z", "importance"} <= set(columns)


def test_another_method_refuses_the_head_by_name() -> None:
    policy = {"model.a"}
    refuse_other_head("state", policy | WEIGHTS, policy | WEIGHTS)
    with pytest.raises(UserError, match=r"^state: it has learned.0.bias, .* update.optimizer_state to reset$"):
        refuse_other_head("state", policy | WEIGHTS, policy)
    with pytest.raises(UserError, match=r"^state: it lacks learned.0.bias, "):
        refuse_other_head("state", policy, policy | WEIGHTS)


def test_the_head_is_drawn_from_the_seed_alone() -> None:
    def made(seed: int) -> torch.Tensor:
        match = choice(MATCH).model_validate({"flowrl": {}})
        module = policy_module(model(), 1.0, "padded", match, seed)
        assert isinstance(module, LearnedLogprobs)
        assert {name for name, _ in module.named_parameters() if name.startswith("learned.")} == WEIGHTS
        torch.rand(3)
        return module.learned[0].weight.detach()  # type: ignore[index]

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
