"""The closed form: its optimum and distances by their laws, where methods stand still, and the benchmark's numbers."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from benchmarks import closed_form, results, tables
from benchmarks.closed_form_methods import BASELINE, Method, methods_of
from benchmarks.tabular import Policy, Problem, kl, measure, nearest, problem_of, train, train_round

BETA = 0.5
SEEDS = (0, 1)
PROBLEM = problem_of(SEEDS, 3, 5, "normal")
BINARY = problem_of(SEEDS, 3, 5, "binary")
OTHER = torch.randn(6, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64).log_softmax(-1)
BOTH = pytest.mark.parametrize("problem", [PROBLEM, BINARY], ids=["normal", "binary"])


def objective(problem: Problem, logprobs: Tensor) -> Tensor:
    """E[r] - beta KL(pi, pi_ref) of each prompt."""
    return problem.expected_reward(logprobs) - BETA * kl(logprobs, problem.reference)


@BOTH
def test_the_optimum_is_above_every_perturbation_of_it(problem: Problem) -> None:
    best = problem.optimum(BETA)
    draw = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 3.0):
        for _ in range(20):
            moved = (best + size * torch.randn(best.shape, generator=draw, dtype=best.dtype)).log_softmax(-1)
            assert (objective(problem, moved) < objective(problem, best)).all()


@BOTH
def test_what_a_policy_lacks_is_beta_times_its_kl_to_the_optimum(problem: Problem) -> None:
    best = problem.optimum(BETA)
    lacks = objective(problem, best) - objective(problem, OTHER)
    torch.testing.assert_close(lacks, BETA * kl(OTHER, best), atol=1e-13, rtol=1e-12)
    assert (lacks > 0.01).all()


def test_an_aligned_optimum_is_at_distance_0_and_gives_its_b() -> None:
    for b in (0.02, 0.5, 7.0):
        distance, sharpness = nearest(PROBLEM, PROBLEM.optimum(b))
        assert (distance.abs() < 1e-9).all()
        torch.testing.assert_close(1 / sharpness, torch.full((6,), b, dtype=torch.float64), rtol=1e-5, atol=0)
        assert (measure(PROBLEM, PROBLEM.optimum(b), BETA).nearest_b - b).abs().max() < 1e-4 * b


def test_the_nearest_optimum_is_that_of_a_grid_search() -> None:
    grid = torch.linspace(0, 20, 20_001, dtype=torch.float64)
    for prompt, (found, sharpness) in enumerate(zip(*nearest(PROBLEM, OTHER), strict=True)):
        tilted = (PROBLEM.reference[prompt] + grid.unsqueeze(-1) * PROBLEM.rewards[prompt]).log_softmax(-1)
        distances = kl(OTHER[prompt].expand_as(tilted), tilted)
        assert found <= distances.min() + 1e-12
        assert found == pytest.approx(float(distances.min()), abs=1e-5)
        assert sharpness == pytest.approx(float(grid[distances.argmin()]), abs=1e-3)


def test_a_policy_that_earns_less_than_the_reference_is_nearest_to_it() -> None:
    worse = PROBLEM.tilted(torch.full((6,), -1.0, dtype=torch.float64))
    distance, sharpness = nearest(PROBLEM, worse)
    torch.testing.assert_close(distance, kl(worse, PROBLEM.reference))
    assert (sharpness == 0).all()


def test_where_all_rewards_are_equal_every_optimum_is_the_reference() -> None:
    problem = Problem(PROBLEM.reference, torch.ones_like(PROBLEM.rewards))
    distance, sharpness = nearest(problem, OTHER)
    torch.testing.assert_close(distance, kl(OTHER, problem.reference))
    assert sharpness.isnan().all()


def method(name: str, group_size: int = 8, beta: float = BETA) -> Method:
    return methods_of(beta, group_size, "normal")[name]


def gradient(problem: Problem, name: str, at: Tensor, completions: Tensor) -> Tensor:
    """Of the loss of a round's first step, by the logits [M, K], where they are `at`; log Z is the optimum's."""
    update = method(name, completions.shape[1]).update(0.1, 1, len(completions))
    policy = Policy(problem, update)
    policy.logits.data = at.clone()
    policy.log_z.data = (problem.reference + problem.rewards / BETA).logsumexp(-1)
    train_round(problem, policy, update, completions)
    return torch.zeros_like(at) if policy.logits.grad is None else policy.logits.grad


GROUPS = torch.randint(5, (6, 8), generator=torch.Generator().manual_seed(3))
STILL = ["gvpo-reference", "pair_regression", "flowrl-raw", "rloo", "rloo-clipped", "grpo-kl_in_reward"]
STILL += ["reinforce_pp_baseline"]


@pytest.mark.parametrize("name", STILL)
def test_at_the_optimum_no_group_moves_what_takes_the_kl_completion_by_completion(name: str) -> None:
    """So that the noise of sampling is 0 there: of any group, not in expectation alone."""
    assert gradient(PROBLEM, name, PROBLEM.optimum(BETA), GROUPS).abs().max() < 1e-10
    assert gradient(PROBLEM, name, OTHER, GROUPS).abs().max() > 1e-3


def test_gvpo_from_the_reference_is_beta_times_rloo_with_the_kl_in_the_reward_on_what_the_policy_sampled() -> None:
    """The first step of a round: Adam, which sees no factor, takes the same one."""
    gvpo, rloo = (gradient(PROBLEM, name, OTHER, GROUPS) for name in ("gvpo-reference", "rloo"))
    torch.testing.assert_close(gvpo, BETA * rloo, atol=1e-13, rtol=1e-10)


def test_what_keeps_rloo_from_the_optimum_is_that_adams_step_does_not_shrink_with_the_gradient() -> None:
    """With an eps far above the gradients near the optimum the step does: the same draws end at a third or less."""
    problem, reached = problem_of((2,), 8, 5, "normal"), {}
    for eps in (1e-8, 1e-3):
        update = method("rloo").update(0.08, 4, 8).model_copy(update={"eps": eps})
        *_, last = train(problem, update, 200, 8, (2,))
        reached[eps] = float(measure(problem, last, BETA).to_optimum)
    assert reached[1e-3] < reached[1e-8] / 3


def expected_gradient(name: str, at: Tensor) -> Tensor:
    """The mean gradient over all groups of 2 of 5 completions, each as likely as under the policy: [K], of prompt 0."""
    pairs = torch.tensor(list(itertools.product(range(5), repeat=2)))
    copies = Problem(PROBLEM.reference[:1].expand(25, 5).clone(), PROBLEM.rewards[:1].expand(25, 5).clone())
    chance = at[pairs].sum(-1).exp()
    assert float(chance.sum()) == pytest.approx(1)
    found = gradient(copies, name, at.expand(25, 5).clone(), pairs)
    return (25 * chance.unsqueeze(-1) * found).sum(0)


def turned_round() -> Tensor:
    """Log-probs [K] of beta pi_ref / (lambda - r) of prompt 0, which maximises E[r] - beta KL(pi_ref, pi)."""
    reference, rewards = PROBLEM.reference[0].exp(), PROBLEM.rewards[0]
    low, high = float(rewards.max()), float(rewards.max()) + BETA
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float((BETA * reference / (middle - rewards)).sum()) > 1 else (low, middle)
    return (BETA * reference / (high - rewards)).log()


def test_k3_times_the_ratio_ends_at_the_optimum_and_k3_alone_at_that_of_the_kl_turned_round() -> None:
    best, turned = PROBLEM.optimum(BETA)[0], turned_round()
    assert float(turned.exp().sum()) == pytest.approx(1)
    assert expected_gradient("dr_grpo-kl", best).abs().max() < 1e-12
    assert expected_gradient("dr_grpo-k3", turned).abs().max() < 1e-12
    assert expected_gradient("dr_grpo-k3", best).abs().max() > 1e-2
    assert expected_gradient("dr_grpo-kl", turned).abs().max() > 1e-2
    assert expected_gradient(BASELINE, best).abs().max() > 1e-2  # z-scores divide the reward, and not the KL


@pytest.mark.parametrize("name", ["gvpo-reference", "pair_regression"])
@BOTH
def test_with_exact_gradients_the_fixed_point_is_the_optimum(problem: Problem, name: str) -> None:
    """Each group holds every completion once."""
    update = method(name, 5).update(0.05, 1, 6)
    policy, every = Policy(problem, update), torch.arange(5).expand(6, 5)
    for _ in range(500):
        train_round(problem, policy, update, every)
    found = measure(problem, policy.logprobs().detach(), BETA)
    assert found.to_optimum.max() < 1e-8
    assert kl(problem.reference, problem.optimum(BETA)).max() > 0.1


def test_gift_as_its_paper_writes_it_stands_still_at_every_aligned_optimum() -> None:
    every = torch.arange(5).expand(6, 5)
    for b in (0.2, 0.5, 2.0):
        assert gradient(PROBLEM, "gift-paper", PROBLEM.optimum(b), every).abs().max() < 1e-5
    assert gradient(PROBLEM, "gift-paper", OTHER, every).abs().max() > 1e-3


def after(name: str, seeds: tuple[int, ...], rounds: int = 3) -> Tensor:
    problem = problem_of(seeds, 4, 5, "binary")
    *_, last = train(problem, method(name).update(0.1, 2, 4), rounds, 8, seeds)
    return last


@pytest.mark.parametrize("name", ["gvpo-reference", "flowrl-raw", "reinforce_pp_baseline"])
def test_a_seed_gives_the_same_numbers_alone_and_among_others(name: str) -> None:
    together = after(name, (5, 6))
    assert torch.equal(together, after(name, (5, 6)))
    torch.testing.assert_close(together[:4], after(name, (5,)), atol=1e-9, rtol=0)
    assert (together[:4] - together[4:]).abs().max() > 0.1


def test_completions_are_drawn_as_often_as_the_policy_says() -> None:
    problem = Problem(PROBLEM.reference[:1], PROBLEM.rewards[:1])
    drawn: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.tabular.train_round", lambda *given: drawn.append(given[-1]))
        list(train(problem, method("grpo").update(0.1, 1, 1), 1, 100_000, (0,)))
    shares = drawn[0].flatten().bincount(minlength=5) / 100_000
    torch.testing.assert_close(shares.double(), problem.reference[0].exp(), atol=0.006, rtol=0)


def test_the_command_measures_and_its_numbers_reach_the_table(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["--quick", "--threads", "1", "--method", "gvpo-reference", "--rewards", "normal", "--out", str(out)]
    said = CliRunner().invoke(closed_form.main, arguments)
    assert said.exit_code == 0, said.output
    result: dict[str, Any] = json.loads(out.read_text())
    found = result["normal"]["gvpo-reference"]
    assert found["rollouts"] == [32 * rounds for rounds in (0, 1, 2, 3, 4, 6, 8, 12, 16)]
    reached = {each["lr"]: each["to_optimum"] for each in found["sweep"]}
    assert found["lr"] == min(reached, key=lambda lr: reached[lr])
    ours, theirs = (result["normal"][name]["end"]["to_optimum"] for name in ("gvpo-reference", BASELINE))
    gap = ours["difference"]
    assert len(ours["seeds"]) == 3
    assert gap["mean"] == pytest.approx(math.fsum(ours["seeds"]) / 3 - math.fsum(theirs["seeds"]) / 3, rel=1e-3)
    assert f"| {ours['mean']:.3f} ± {ours['error']:.3f} | {gap['mean']:+.3f} [" in closed_form.table(result)
    assert "gvpo; match: {gvpo: {anchor: reference, beta: 0.5}}" in closed_form.table(result)


def test_every_number_that_the_page_says_stands_in_its_table() -> None:
    page = (tables.STUDY / "closed_form.md").read_text(encoding="utf-8")
    said, table = page.split("<!-- closed_form -->")
    numbers = re.findall(r"[+-]?\d+\.\d+", said)
    assert len(numbers) > 50
    assert not [number for number in numbers if number not in table]


def test_the_figures_are_those_of_the_results() -> None:
    (result,) = results.read_results("closed_form")
    for name, figure in tables.study_figures(result).items():
        assert f"]({name})" in (tables.STUDY / "closed_form.md").read_text(encoding="utf-8")
        assert (tables.STUDY / name).read_text(encoding="utf-8") == figure, "run `make bench ARGS=tables`"
