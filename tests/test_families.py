"""What losses are to each other: where two are one, where all start as REINFORCE, what equal rewards do to each."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gift.methods.groups import Groups, Outputs, Targets
from gift.methods.names import MATCH, SHAPE
from gift.methods.shape.zscore import standardise
from gift.methods.statistics import centre, spread
from tests.groups import make_groups, two_components
from tests.losses import gradients, run

P, G = 3, 4
REWARDS = torch.rand(P, G, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
RATIOS = torch.rand(P, G, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
LENGTHS = torch.tensor([[1, 3, 2, 4], [2, 2, 1, 3], [4, 1, 1, 2]])


def shaped(groups: Groups, name: str, **fields: Any) -> tuple[Groups, Targets]:
    """Groups and their targets, and in the step as many pairs as there are."""
    targets = SHAPE[name].within(groups, SHAPE[name].settings(**fields))
    count = 0 if targets.pairs is None else len(targets.pairs)
    return replace(groups, step=replace(groups.step, num_pairs=count)), targets


def value_and_gradient(
    name: str,
    fields: dict[str, Any],
    groups: Groups,
    targets: Targets,
    log_ratio: Tensor,
    learned: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Of a loss where the completions' log-ratio [P, G] to both anchors is spread evenly over their tokens.

    The gradient is that of every token: [N].
    """
    moved = groups.to_tokens(log_ratio / groups.lengths)
    logprobs = (groups.old_logprobs + moved).requires_grad_()
    loss = run(name, fields, groups, targets, Outputs(logprobs, learned)).value
    return loss.detach(), gradients(loss, [logprobs])[0]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


# One family: regress the log-ratio on the reward.


def test_gvpo_is_the_mean_of_pair_regression_over_all_pairs() -> None:
    """A quarter of it, value and gradient; of a group of two that is 1/4 (beta (l_1 - l_2) - (r_1 - r_2))^2."""
    for size in (G, 2):
        groups, rows = make_groups(REWARDS[:, :size]), RATIOS[:, :size]
        fields = {"anchor": "old", "beta": 0.3}
        regressed = value_and_gradient("pair_regression", fields, *shaped(groups, "all_pairs"), rows)
        matched = value_and_gradient("gvpo", fields, *shaped(groups, "centred"), rows)
        close(matched[0], regressed[0] / 4)
        close(matched[1], regressed[1] / 4)
    closed = ((0.3 * (rows[:, 0] - rows[:, 1]) - (REWARDS[:, 0] - REWARDS[:, 1])).square() / 4).mean()
    close(matched[0], closed)


def test_pair_regression_is_not_gvpo_where_rewards_are_equal() -> None:
    """GVPO draws equals together; they are no pair. Of rewards 1, 1 and 0 with beta 1 and l of .3, 0, 0 by hand.

    GVPO: residuals less their mean are .2 - 1/3, -.1 - 1/3, -.1 + 2/3. Pairs: (.3 - 1)^2 and (0 - 1)^2.
    """
    groups = make_groups(torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))
    rows = torch.tensor([[0.3, 0.0, 0.0]], dtype=torch.float64)
    fields = {"anchor": "old", "beta": 1.0}
    regressed = value_and_gradient("pair_regression", fields, *shaped(groups, "all_pairs"), rows)
    matched = value_and_gradient("gvpo", fields, *shaped(groups, "centred"), rows)
    assert regressed[0].item() == pytest.approx((0.49 + 1.0) / 2)
    thirds = (0.2 - 1 / 3) ** 2 + (-0.1 - 1 / 3) ** 2 + (-0.1 + 2 / 3) ** 2
    assert matched[0].item() == pytest.approx(thirds / 4)
    assert matched[0].item() == pytest.approx((0.09 + 0.49 + 1.0) / 12), "GVPO over the same three pairs"


@pytest.mark.parametrize(
    ("name", "fields", "shape"),
    [
        ("gvpo", {"beta": 0.3}, "centred"),
        ("dpo", {"anchor": "old"}, "pairs"),
        ("dpo", {"anchor": "old", "loss": "ipo"}, "all_pairs"),
        ("pair_regression", {"anchor": "old"}, "all_pairs"),
        ("gift", {"spread_floor": 0.3}, "zscore"),
    ],
)
def test_log_z_of_a_prompt_is_not_seen(name: str, fields: dict[str, Any], shape: str) -> None:
    """The same number more on all log-ratios of a group: neither value nor gradient changes. UNA sees it."""
    groups, targets = shaped(make_groups(REWARDS, lengths=LENGTHS), shape)
    before = value_and_gradient(name, fields, groups, targets, RATIOS)
    log_z = torch.tensor([[0.7], [-2.0], [0.1]], dtype=torch.float64)
    after = value_and_gradient(name, fields, groups, targets, RATIOS + log_z)
    close(after[0], before[0])
    close(after[1], before[1])
    raw = SHAPE["raw"].within(groups, SHAPE["raw"].settings())
    una = [value_and_gradient("una", {}, groups, raw, ratios)[0] for ratios in (RATIOS, RATIOS + log_z)]
    assert (una[0] - una[1]).abs() > 1e-4


def test_gift_as_released_is_gvpo_on_standardised_rewards_with_beta_of_one_over_the_spread() -> None:
    """Of each group by itself: the factor is G / (2 (G - 1)) of GIFT's gradient, beta a constant of GVPO's."""
    for group in range(P):
        groups = make_groups(REWARDS[group : group + 1])
        rows = RATIOS[group : group + 1]
        targets = Targets(standardise(groups.rewards, groups.mask))
        scale = float(spread(centre(rows, groups.mask), groups.mask))
        _, gift = value_and_gradient("gift", {"spread_floor": 1e-9}, groups, targets, rows)
        _, gvpo = value_and_gradient("gvpo", {"beta": 1 / scale}, groups, targets, rows)
        close(gvpo, gift * G / (2 * (G - 1)))


def test_flowrl_is_gvpo_of_token_means_where_log_z_makes_the_mean_residual_0() -> None:
    """beta of FlowRL is on the reward; with weights of 1 its gradient is that of GVPO but for the constants."""
    groups = make_groups(REWARDS, lengths=LENGTHS)
    targets = Targets(standardise(REWARDS, groups.mask))
    means = RATIOS / LENGTHS
    log_z = (15.0 * targets.completions - means).mean(-1)
    fields = {"weighting": "paper", "clip": 0.0}  # w = 1
    value, gradient = value_and_gradient("flowrl", fields, groups, targets, RATIOS, log_z)
    single = make_groups(REWARDS)
    theirs = value_and_gradient("gvpo", {"beta": 1.0}, single, Targets(15.0 * targets.completions), means)
    close(value, theirs[0] * 2 * (G - 1) / G)
    close(groups.sum_tokens(gradient).flatten(), theirs[1] * 2 * (G - 1) / G)


@pytest.mark.parametrize(
    ("name", "fields", "shape", "of_reward"),
    [
        ("gvpo", {"beta": 0.3}, "centred", lambda r, a: -0.3 / (G - 1) * (r - r.mean(-1, keepdim=True)) / P),
        ("gift", {"spread_floor": 0.3, "stats": "full"}, "zscore", lambda r, a: -2 / (G * 0.3) * a / P),
        ("gift", {"spread_floor": 0.3, "beta": 0.5}, "zscore", lambda r, a: -2 * 0.5 / (G * 0.3) * a / P),
        ("una", {"beta": 0.3}, "raw", lambda r, a: 0.3 / 2 * (0.5 - r) / (P * G)),
        ("una", {"beta": 0.3, "loss": "bce"}, "raw", lambda r, a: 0.3 * (0.5 - r) / (P * G)),
        ("dpo", {"beta": 0.3}, "pairs", lambda r, a: -0.3 / 2 * best_and_worst(r) / P),
        ("dpo", {"beta": 0.3, "loss": "ipo"}, "pairs", lambda r, a: -1 / 0.3 * best_and_worst(r) / P),
        (
            "pair_regression",
            {"beta": 0.3},
            "pairs",
            lambda r, a: -2 * 0.3 * best_and_worst(r) * (r.amax(-1) - r.amin(-1)).unsqueeze(-1) / P,
        ),
    ],
)
def test_gradients_where_nothing_has_moved(
    name: str, fields: dict[str, Any], shape: str, of_reward: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Of the log-ratio of each completion. GVPO's and GIFT's are REINFORCE on centred rewards, UNA's is not centred."""
    groups, targets = shaped(make_groups(REWARDS), shape)
    _, gradient = value_and_gradient(name, fields, groups, targets, torch.zeros_like(RATIOS))
    close(gradient.view(P, G), of_reward(REWARDS, standardise(REWARDS, groups.mask)))


def best_and_worst(rewards: Tensor) -> Tensor:
    return (rewards == rewards.amax(-1, keepdim=True)).double() - (rewards == rewards.amin(-1, keepdim=True)).double()


# One family: the policy gradient.


def reinforced(groups: Groups, targets: Targets, aggregate: str) -> Tensor:
    return value_and_gradient("reinforce", {"aggregate": aggregate}, groups, targets, torch.zeros_like(RATIOS))[1]


@pytest.mark.parametrize(
    ("name", "fields", "aggregate"),
    [
        ("clipped", {}, "grpo"),
        ("clipped", {"aggregate": "dapo", "clip_high": 0.28, "clip_dual": 3.0}, "dapo"),
        ("clipped", {"aggregate": "dr_grpo"}, "dr_grpo"),
        ("clipped", {"level": "sequence", "aggregate": "grpo"}, "grpo"),
        ("clipped", {"level": "sequence", "aggregate": "luspo"}, "luspo"),
        ("clipped", {"level": "sequence_sum"}, "luspo"),  # RLOO's own: the log-prob of a whole completion
        ("cispo", {}, "dapo"),
        ("sapo", {}, "grpo"),
        ("sapo", {"tau_positive": 3.0, "tau_negative": 0.3}, "grpo"),
        ("gmpo", {}, "grpo"),
        ("vespo", {}, "dapo"),
        ("dppo", {}, "dapo"),
        ("dppo", {"divergence": "kl"}, "dapo"),
        ("dro", {"beta": 0.3}, "dapo"),
        ("dro", {"beta": 0.3, "aggregate": "luspo"}, "luspo"),
        ("grao", {"alignment": 0.0}, "grpo"),
    ],
)
def test_at_a_ratio_of_1_they_are_reinforce(name: str, fields: dict[str, Any], aggregate: str) -> None:
    groups = make_groups(REWARDS, lengths=LENGTHS)
    targets = Targets(standardise(REWARDS, groups.mask))
    _, gradient = value_and_gradient(name, fields, groups, targets, torch.zeros_like(RATIOS))
    close(gradient, reinforced(groups, targets, aggregate))


def test_rloo_is_dr_grpos_advantage_but_for_a_factor() -> None:
    groups = make_groups(REWARDS)
    close(shaped(groups, "leave_one_out")[1].completions, shaped(groups, "centred")[1].completions * G / (G - 1))


def test_luspo_is_gspo_times_the_length() -> None:
    """Of every token: both clip the same completions, and each of LUSPO's counts as often as it has tokens."""
    groups = make_groups(REWARDS, lengths=LENGTHS)
    targets = Targets(standardise(REWARDS, groups.mask))
    clip = {"level": "sequence", "clip_low": 0.05, "clip_high": 0.05}
    gspo, luspo = (
        value_and_gradient("clipped", {**clip, "aggregate": each}, groups, targets, RATIOS)[1]
        for each in ("grpo", "luspo")
    )
    close(luspo, gspo * groups.to_tokens(LENGTHS))
    assert (gspo == 0).any()


@pytest.mark.parametrize("aggregate", ["grpo", "dapo"])
def test_verls_ratio_of_gspo_has_the_same_gradient(aggregate: Any) -> None:
    """verl gives each token the ratio sg[s] exp(logprob - sg[logprob]), ours has s itself, of all tokens."""
    groups = make_groups(REWARDS, lengths=LENGTHS)
    targets = Targets(standardise(REWARDS, groups.mask))
    fields = {"level": "sequence", "clip_low": 0.05, "clip_high": 0.05, "aggregate": aggregate}
    _, ours = value_and_gradient("clipped", fields, groups, targets, RATIOS)
    logprobs = (groups.old_logprobs + groups.to_tokens(RATIOS / LENGTHS)).requires_grad_()
    whole = groups.to_tokens(groups.mean_tokens(logprobs.detach() - groups.old_logprobs))
    ratio = (logprobs - logprobs.detach() + whole).exp()
    target = targets.of_tokens(groups)
    loss = (-target * ratio).maximum(-target * ratio.clamp(0.95, 1.05))
    close(ours, gradients(groups.aggregate(loss, aggregate), [logprobs])[0])


def test_cispo_and_dppo_are_one_where_neither_limits() -> None:
    groups = make_groups(REWARDS, lengths=LENGTHS)
    targets = Targets(standardise(REWARDS, groups.mask))
    cispo = value_and_gradient("cispo", {"most": 20.0}, groups, targets, RATIOS)
    dppo = value_and_gradient("dppo", {"low": 1.0, "high": 1.0}, groups, targets, RATIOS)
    close(cispo[1], dppo[1])


def test_dro_is_gvpo_of_single_tokens_whose_mean_log_ratio_is_0() -> None:
    """But for a factor. Of more tokens it draws each to a log-ratio of A / beta by itself, not their sum."""
    groups = make_groups(REWARDS)
    targets, rows = Targets(standardise(REWARDS, groups.mask)), centre(RATIOS, groups.mask)
    dro, gvpo = (value_and_gradient(name, {"beta": 0.3}, groups, targets, rows)[1] for name in ("dro", "gvpo"))
    close(gvpo, dro * 0.3 * G / (G - 1))
    groups = make_groups(REWARDS, lengths=LENGTHS)
    _, longer = value_and_gradient("dro", {"beta": 0.3}, groups, targets, RATIOS)
    close(longer, groups.to_tokens(0.3 * RATIOS / LENGTHS - targets.completions) / LENGTHS.sum())


def test_amir_is_grpo_beside_dpo_of_token_means() -> None:
    """With a reference, and a weight of 1, the sum of the two."""
    groups, targets = shaped(make_groups(REWARDS, lengths=LENGTHS), "all_pairs", margin=0.2)
    amir = value_and_gradient("amir", {"weight": 1.0, "beta": 0.3, "ref_free": False}, groups, targets, RATIOS)
    grpo = value_and_gradient("clipped", {}, groups, targets, RATIOS)
    dpo = value_and_gradient("dpo", {"beta": 0.3, "token_reduce": "mean"}, groups, targets, RATIOS)
    close(amir[0], grpo[0] + dpo[0])
    close(amir[1], grpo[1] + dpo[1])


def test_graos_two_readings_of_its_advantage() -> None:
    """Of the sampled alone they add up to 0, and the alignment is more exploration; with the answer among them not."""
    rewards = torch.tensor([[0.9, 0.4, 0.5, 0.8]], dtype=torch.float64)
    groups = make_groups(rewards, sampled=torch.tensor([[True, True, True, False]]))
    rows = RATIOS[:1]
    alone, whole = (shaped(groups, "with_given", statistics=each)[1] for each in ("sampled", "group"))
    assert alone.completions[0, :3].sum().item() == pytest.approx(0)
    assert whole.completions[0, :3].sum().item() == pytest.approx(-whole.completions[0, 3].item())
    with_it, without = (value_and_gradient("grao", {"alignment": each}, groups, alone, rows)[1] for each in (0.6, 0.0))
    close(with_it[:3], 1.6 * without[:3])
    close(with_it[3], without[3])
    _, gradient = value_and_gradient("grao", {}, groups, whole, rows)
    close(gradient[3], -(0.5 + 0.6 / 3) * whole.completions[0, 3])


# Groups of equal rewards, where they stay in.

EQUAL = torch.full((P, G), 0.7, dtype=torch.float64)
N = torch.ones(P, G, dtype=torch.bool)
PULLS: dict[str, tuple[dict[str, Any], str, Callable[[Tensor], Tensor]]] = {
    # GIFT and GVPO pull the log-ratios of a group together: dLoss/dl, of c = l - mean l and s, the spread.
    "gift": ({"spread_floor": 1e-9}, "zscore", lambda c: 2 / (G * s(c)) * c / s(c)),
    "gift, full": (
        {"spread_floor": 0.3, "stats": "full"},
        "zscore",
        lambda c: 2 / (G * s(c, 0.3)) * (1 - (s(c) / s(c, 0.3)).square()) * c / s(c, 0.3),
    ),
    "gift, full, no floor": ({"spread_floor": 1e-9, "stats": "full"}, "zscore", torch.zeros_like),
    "gvpo": ({"beta": 0.3}, "centred", lambda c: 0.3**2 / (G - 1) * c),
}
SILENT: dict[str, tuple[dict[str, Any], str]] = {
    **{f"clipped, {level}": ({"level": level}, "zscore") for level in ("token", "sequence", "sequence_sum")},
    "clipped, rloo": ({"level": "sequence_sum"}, "leave_one_out"),
    "clipped, dr_grpo": ({"aggregate": "dr_grpo"}, "centred"),
    **{name: ({}, "zscore") for name in ("reinforce", "cispo", "sapo", "gmpo", "vespo", "dppo", "f_grpo")},
    "clipped, oar": ({}, "token_weighted"),
    "dpo": ({"sft": 1.0}, "pairs"),
    "pair_regression": ({}, "all_pairs"),
    "amir": ({}, "all_pairs"),
    "f_hal": ({}, "given_pairs"),
    "grao": ({}, "with_given"),
}


def s(deviation: Tensor, floor: float = 0.0) -> Tensor:
    return spread(deviation, N, floor)


def of_equal_rewards(name: str, fields: dict[str, Any], shape: str, learned: Tensor | None = None) -> Tensor:
    sampled = torch.tensor([[True, True, True, False]]).expand(P, G)
    groups, targets = shaped(make_groups(EQUAL, sampled=sampled, token_weights=torch.ones(P * G)), shape)
    return value_and_gradient(name, fields, groups, targets, RATIOS, learned)[1].view(P, G)


def test_every_loss_says_what_equal_rewards_do() -> None:
    named = {name.split(",")[0] for name in (*PULLS, *SILENT)}
    assert named | {"una", "flowrl", "maestro", "dro"} == MATCH.keys()


@pytest.mark.parametrize("name", SILENT)
def test_equal_rewards_have_no_gradient(name: str) -> None:
    assert of_equal_rewards(name.split(",")[0], *SILENT[name]).abs().max() < 1e-12


@pytest.mark.parametrize("name", PULLS)
def test_equal_rewards_pull_the_log_ratios_together(name: str) -> None:
    fields, shape, closed = PULLS[name]
    gradient = of_equal_rewards(name.split(",")[0], fields, shape)
    torch.testing.assert_close(gradient, closed(centre(RATIOS, N)) / P, atol=1e-9, rtol=1e-9)


def test_dro_pulls_each_log_ratio_to_0_where_rewards_are_equal() -> None:
    """Not to the mean of its group."""
    close(of_equal_rewards("dro", {"beta": 0.3}, "zscore"), 0.3 * RATIOS / (P * G))


def test_una_and_flowrl_learn_from_equal_rewards() -> None:
    """UNA has a target all the same; FlowRL's residual is log Z + mean log-ratio."""
    una = of_equal_rewards("una", {"beta": 0.3}, "raw")
    score = (0.3 * RATIOS).sigmoid()
    close(una, 2 * (score - 0.7) * score * (1 - score) * 0.3 / (P * G))
    flowrl = of_equal_rewards("flowrl", {"clip": 0.0}, "zscore", torch.full((P,), 0.25, dtype=torch.float64))
    close(flowrl, 2 * (0.25 + RATIOS) / (P * G))
    assert MATCH["una"].learns_from_zero
    assert MATCH["flowrl"].learns_from_zero


def test_maestro_learns_from_equal_rewards_by_what_it_draws() -> None:
    """Where all have the same two rewards, 1 and 0, A is which of them was drawn; with the same twice it is 0."""
    draws = torch.tensor([[0.1, 0.9, 0.6, 0.2]], dtype=torch.float64).expand(P, G)
    learned = torch.zeros(P, G, 2, dtype=torch.float64)
    for second, target in ((0.0, standardise((draws < 0.5).double(), N)), (1.0, torch.zeros(P, G))):
        groups = two_components(torch.ones(P, G), torch.full((P, G), second), (1.0, 1.0), draws=draws)
        gradient = value_and_gradient("maestro", {}, groups, Targets(target), torch.zeros(P, G), learned)[1]
        close(gradient.view(P, G), -target.double() / (P * G))


def test_pairs_of_a_step_count_alike_whatever_their_group() -> None:
    """A group with more pairs weighs more: the mean is over the pairs of the step, not over its groups."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.9, 0.1, 0.0]], dtype=torch.float64)
    groups, targets = shaped(make_groups(rewards), "all_pairs")
    assert groups.step.num_pairs == 3 + 6
    value, _ = value_and_gradient("dpo", {}, groups, targets, torch.zeros_like(rewards))
    assert value.item() == pytest.approx(math.log(2))
    rows = list(range(4))
    part = groups.part(rows, replace(groups.step, num_groups=2))
    alone, _ = value_and_gradient("dpo", {}, part, targets.part(groups, rows), torch.zeros(1, 4, dtype=torch.float64))
    assert alone.item() == pytest.approx(3 / 9 * math.log(2))
