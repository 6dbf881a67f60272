"""A head of a method: it trains and is carried beside the policy, is no part of it, and no other method takes it."""

import json
from pathlib import Path

import mini
import pytest
import torch
from safetensors import safe_open

from gift.doctor.whole import Params
from gift.methods.making import groups_of
from gift.methods.names import MATCH
from gift.project.errors import UserError
from gift.project.sections import check, choice
from gift.training.inputs import choose
from gift.training.learned import LearnedLogprobs, policy_module, refuse_other_head
from gift.training.settings import Update
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


def test_the_head_that_chooses_among_rewards_is_stored_by_their_names(copied: Path) -> None:
    params = mini.read_yaml(copied / "params.yaml")
    params["update"] |= {"match": {"maestro": {}}, "zero_targets": "keep"}
    (copied / "params.yaml").write_text(json.dumps(params))
    folder = copied / "data/rounds/r1"
    mini.remove_outputs(copied, "update@r1")
    mini.run_stages(copied, ["update@r1"])
    state = names(folder / "optimizer/state.safetensors")
    assert {f"weight/learned.of_{name}.{kind}" for name in ("answer", "short") for kind in ("weight", "bias")} <= state
    header, first = (folder / "metrics/steps.csv").read_text(encoding="utf-8").splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert 0 < float(row["choice_entropy"]) < 0.7  # of two, at most log 2


def test_one_reward_is_nothing_to_choose_from() -> None:
    params = mini.read_yaml(mini.ROOT / "params.yaml")
    params["score"]["rewards"] = {"answer": {"function": "arithmetic_answer"}}
    params["update"] |= {"match": {"maestro": {}}, "zero_targets": "keep"}
    line = (
        r"^params.yaml: update.match: maestro chooses among reward functions, and score.rewards has 1; add one, [^\n]*$"
    )
    with pytest.raises(UserError, match=line):
        check(Params, params, "params.yaml")
    rewards = torch.tensor([[1.0, 0.0]])
    groups = groups_of(
        rewards,
        torch.ones(1, 2, dtype=torch.bool),
        torch.ones(1, 2, dtype=torch.int64),
        2,
        ref_logprobs=torch.zeros(2),
        old_logprobs=torch.zeros(2),
    )
    with pytest.raises(UserError, match=line):
        choose(groups, check(Update, params["update"], "params.yaml"))


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
        module = policy_module(model(), 1.0, "padded", match, seed, ())
        assert isinstance(module, LearnedLogprobs)
        assert {name for name, _ in module.named_parameters() if name.startswith("learned.")} == WEIGHTS
        torch.rand(3)
        return module.learned[0].weight.detach()  # type: ignore[index]

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))
