"""Hand numbers of the shapes and selects beyond GIFT's own, what equal rewards leave, and what settings refuse."""

import json
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import mini
import pyarrow as pa
import pytest
import torch
from pydantic import create_model
from torch import Tensor

from gift.methods.choosing import choose
from gift.methods.groups import Groups, Outputs, Targets
from gift.methods.match.policy_gradient.clipped import Clipped, clipped
from gift.methods.names import SELECT, SHAPE
from gift.methods.shape.copo import entropy
from gift.project.errors import UserError
from gift.project.sections import Section, check
from gift.tables.prompts import read_prompts, write_prompts
from gift.training.settings import Update
from tests.groups import make_groups, two_components
from tests.test_methods import SHAPE_FIELDS, draw, some_groups


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def near(*values: float) -> Any:
    return pytest.approx(list(values), abs=5e-5)


def targets(name: str, groups: Groups, **fields: Any) -> Targets:
    """What a shape makes of a step of these groups."""
    shape = SHAPE[name]
    settings = shape.settings.model_validate(fields)
    made = shape.within(groups, settings)
    return shape.across(groups, made, settings) if shape.across else made


def shaped(name: str, rewards: Tensor, lengths: Tensor | None = None, **fields: Any) -> list[float]:
    made: list[float] = targets(name, make_groups(rewards, lengths=lengths), **fields).completions.flatten().tolist()
    return made


def kept(name: str, groups: Groups, **fields: Any) -> list[list[int]]:
    mask = SELECT[name].keep(groups, SELECT[name].settings.model_validate(fields))
    return [row.nonzero().flatten().tolist() for row in mask]


# Shapes.

R = table([1.0, 0.0, 0.0, 0.5])


def test_zscore_is_that_of_trl_and_verl() -> None:
    assert shaped("zscore", R, eps=1e-4) == near(1.3053, -0.7832, -0.7832, 0.2611)
    assert shaped("zscore", R, eps=0.5)[0] == pytest.approx(0.625 / (0.478714 + 0.5), abs=1e-5)


def test_zscore_with_the_std_of_a_step_is_trls_batch() -> None:
    """TRL: r - mean of the group, over the std of all rewards + 1e-4."""
    rewards = table([1.0, 0.0, 0.0], [2.0, 2.0, 3.0])
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-4)
    assert shaped("zscore", rewards, std="step", eps=1e-4) == pytest.approx(theirs.flatten().tolist())
    assert shaped("zscore", torch.ones(2, 3), std="step") == [0] * 6


def test_length_baseline_by_hand() -> None:
    """Lengths 2, 4, 4, 2: the baseline is 3 / 12."""
    assert shaped("length_baseline", R, torch.tensor([[2, 4, 4, 2]])) == near(0.75, -0.25, -0.25, 0.25)


def test_corpo_by_hand() -> None:
    rewards = table([0.2, 0.4, 0.0, 0.6])
    assert shaped("corpo", rewards) == near(-0.3, -0.1, -0.5, 0.1)
    assert shaped("corpo", rewards, correct_from=0.0) == near(-0.1, 0.1, -0.3, 0.3)


def test_rlrr_by_hand() -> None:
    """Ranks 1, 2, 3, 3: right ones of bins 0 and 2, then the wrong ones, whose length does not count."""
    rewards, lengths = table([1, 1, 0, 0]), torch.tensor([[1500, 5000, 300, 900]])
    assert shaped("rlrr", rewards, lengths) == pytest.approx([0.5607, 0.5106, -0.5357, -0.5357], abs=1e-4)
    assert shaped("rlrr", rewards, lengths, score="prr") == near(0.625, 0.125, -0.375, -0.375)
    # All right: the longest would be below 0, and is held at -band.
    held = shaped("rlrr", table([1, 1, 1]), torch.tensor([[10, 3000, 9000]]), score="prr")
    assert held == near(0.5, 0.0, -1e-3)
    # A wrong one with a larger reward than another wrong one is of a better rank, and no more than band.
    graded = shaped("rlrr", table([0.4, 0.1, 0.1]), score="prr")
    assert graded == near(1e-3, -1 / 3, -1 / 3)


def test_disco_by_hand() -> None:
    """A quarter right, of a domain that is a tenth of the prompts: 3.9998 x 2.3979."""
    rewards = table([1, 0, 0, 0]).repeat(10, 1)
    groups = make_groups(rewards, domains=("code", *("math",) * 9))
    centred = rewards[0] - 0.25
    for fields, factor in (
        ({}, 3.9998 * 2.3979),
        ({"difficulty": "none"}, 2.3979),
        ({"difficulty": "none", "domain": "log_squared"}, 2.3979**2),
        ({"difficulty": "none", "domain": "inverse"}, 10.0),
        ({"difficulty": "log"}, 2.3979 * math.log1p(1 / 0.25001)),
    ):
        made = targets("disco", groups, **fields).completions
        assert made[0].tolist() == pytest.approx((factor * centred).tolist(), rel=1e-4)
    # The weights that the authors' script has for shares of 3/4 and 1/12; a prompt without a domain has the weight 1.
    groups = make_groups(rewards.repeat(2, 1)[:12], domains=(*("a",) * 9, "b", None, "c"))
    made = targets("disco", groups, difficulty="none").completions[:, 0] / 0.75
    assert made[[0, 9, 10]].tolist() == pytest.approx([0.847, 2.565, 1.0], abs=5e-4)


def test_focal_by_hand() -> None:
    """Half right: half of .8660; a quarter of it with gamma 2. Rewards of -1 and 1 have the same p."""
    assert shaped("focal", table([1, 0, 0, 1])) == near(0.4330, -0.4330, -0.4330, 0.4330)
    assert shaped("focal", table([1, -1, -1, 1]), wrong=-1.0, gamma=2.0)[0] == pytest.approx(0.2165, abs=5e-5)


def copo_groups() -> Groups:
    """Answers AAAABC; the mean rewards of the four prompts are 2/3, 1, 0 and 1/2."""
    rewards = table([1, 1, 1, 1, 0, 0], [1] * 6, [0] * 6, [1, 1, 1, 0, 0, 0])
    answers = torch.tensor([[0, 0, 0, 0, 1, 2], *([[0] * 6] * 3)])
    return make_groups(rewards, answers=answers)


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({}, 0.5690, 0.3000),
        ({"mode": "only_soft"}, 0.5690, -0.9389),
        ({"mode": "only_soft", "k": 20.0, "b": 1.5}, 0.3024, 0.2890),
    ],
)
def test_copo_by_hand(fields: dict[str, Any], right: float, wrong: float) -> None:
    """H 1.2516 bits, w .7787 (5, 1) or .0069 (20, 1.5), the prompt's own target .3000."""
    made = targets("copo", copo_groups(), **fields).completions
    assert made[0].tolist() == near(*[right] * 4, *[wrong] * 2)


def token_loss(target: Tensor, log_ratio: Tensor) -> Tensor:
    """The clipped loss of one token, and its slope: [2]."""
    logprobs = (log_ratio - 1).view(1).requires_grad_()
    settings = Clipped(clip_low=0.2, clip_high=0.2, clip_dual=3.0)
    loss = clipped(make_groups(target.view(1, 1)), Targets(target.view(1, 1)), Outputs(logprobs), settings).value
    return torch.stack([loss.detach(), torch.autograd.grad(loss, logprobs)[0][0]])


def test_copo_is_its_authors_mix_of_two_losses_but_where_a_clip_meets_opposite_signs() -> None:
    """Theirs: w L(A_group) + (1 - w) L(A_prompt), L the clipped loss of a token at one ratio. Ours: L of the mix.

    L is linear in A on each side of 0, so that both are one where the signs agree; and inside of the clip L is -rho A.
    """
    one, other, weight, log_ratio = (draw(seed, 400) for seed in (1, 2, 3, 4))
    one, other, log_ratio = 4 * one - 2, 4 * other - 2, 3 * log_ratio - 1.5
    pairs = zip(one, other, weight, log_ratio, strict=True)
    theirs = torch.stack([w * token_loss(a, r) + (1 - w) * token_loss(b, r) for a, b, w, r in pairs])
    mix = weight * one + (1 - weight) * other
    ours = torch.stack([token_loss(a, r) for a, r in zip(mix, log_ratio, strict=True)])
    same = ((log_ratio.exp() - 1).abs() < 0.2) | (one * other >= 0)
    assert 100 < same.sum() < 300
    torch.testing.assert_close(ours[same], theirs[same])
    assert ((ours - theirs)[~same].abs() > 1e-6).any(-1).all()


def test_entropy_counts_no_answer_as_an_answer_and_masked_ones_not() -> None:
    answers = torch.tensor([[0, 0, -1, -1], [0, 1, 2, 3]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert entropy(answers, mask).tolist() == [[1.0], [1.0]]


def test_equal_right_by_hand() -> None:
    """A right completion that its style takes below the mean is above 0 all the same, as far as it was below."""
    groups = two_components([[1, 1, 0, 0]], [[0, 4, 3, 0]], (1.0, 1.0), names=("right", "style"))
    z = targets("zscore", groups).completions[0]
    assert z[0] < 0 < z[2]
    made = targets("equal_right", groups, correct="right").completions[0]
    assert made.tolist() == [-z[0], z[1], -z[2], z[3]]


def test_pass_at_k_by_hand() -> None:
    assert shaped("pass_at_k", R) == near(1.0445, 0, 0, 0)
    assert shaped("pass_at_k", table([0, 1, 0, 1])) == [0, 0, 0, 0]
    masked = make_groups(table([0.5, 9, 0]), torch.tensor([[True, False, False]]))
    assert targets("pass_at_k", masked).completions.tolist() == [[0, 0, 0]]


def test_whitened_by_hand() -> None:
    """Lengths 2, 4, 4, 2; of one prompt the baseline form is the same. Two prompts part them."""
    lengths = torch.tensor([[2, 4, 4, 2]])
    for baseline in ("none", "group"):
        assert shaped("whitened", R, lengths, baseline=baseline) == near(1.8803, -0.6268, -0.6268, 0.6268)
    two, lengths = table([1, 0], [1, 1]), torch.tensor([[1, 3], [2, 2]])
    # Of 8 tokens 5 have the return 1; less the means they are 1/2, 3 x -1/2 and 4 x 0.
    spread = math.sqrt((5 * 0.375**2 + 3 * 0.625**2) / 7)
    assert shaped("whitened", two, lengths) == near(*(each / spread for each in (0.375, -0.625, 0.375, 0.375)))
    spread = math.sqrt((0.625**2 + 3 * 0.375**2 + 4 * 0.125**2) / 7)
    assert shaped("whitened", two, lengths, baseline="group") == near(
        *(each / spread for each in (0.625, -0.375, 0.125, 0.125))
    )


def test_whitened_takes_the_kl_to_go_off_each_token() -> None:
    """old - reference of .1, .2, .3 and coefficient .5: returns of .7, .75, .85 beside the 0 of another's one token."""
    old = torch.tensor([-1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    reference = old - torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64)
    groups = make_groups(table([0.0, 1.0]), lengths=torch.tensor([[1, 3]]), old_logprobs=old, ref_logprobs=reference)
    returns = torch.tensor([0.0, 0.7, 0.75, 0.85], dtype=torch.float64)
    expected = (returns - returns.mean()) / returns.std()
    made = targets("whitened", groups, kl_to_go=0.5)
    assert made.tokens is not None
    torch.testing.assert_close(made.tokens, expected)
    assert made.completions[0].tolist() == near(float(expected[0]), float(expected[1:].mean()))


def test_token_weighted_multiplies_the_target_by_the_weight() -> None:
    weights = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    groups = make_groups(table([1.0, 0.0]), lengths=torch.tensor([[2, 1]]), token_weights=weights)
    made = targets("token_weighted", groups)
    assert made.tokens is not None
    assert made.tokens.tolist() == near(*(math.sqrt(0.5) * each for each in (0.5, 1.5, -1.0)))


def test_gdpo_counts_what_a_gate_shuts_as_0() -> None:
    """Eq. 8 of GDPO: a reward counts only where another is reached, which is `only_if`: then its component is 0."""
    shut = two_components([[1, 1, 0, 0]], [[0.9, 0.1, 0.0, 0.0]], (1.0, 1.0))
    other = two_components([[1, 1, 0, 0]], [[0.9, 0.1, 0.7, 0.0]], (1.0, 1.0))
    one, two = (targets("gdpo", groups).completions[0] for groups in (shut, other))
    assert one[2] == one[3]
    assert two[2] > two[3]


# What stays in a group of equal rewards, beside one in which something is at stake.

STAYS = {  # whether all wrong, and whether all right completions get targets; others do not
    ("raw", ""): (False, True),
    ("corpo", ""): (True, False),
    ("rlrr", ""): (False, True),
    ("copo", ""): (True, True),
    ("whitened", "none"): (True, True),
    ("whitened", "group"): (True, True),
}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name in SHAPE
        for option in {"whitened": ("none", "group"), "zscore": ("group", "step")}.get(name, ("",))
        for value in (0.0, 1.0)
    ],
)
def test_what_equal_rewards_leave(name: str, option: str, value: float) -> None:
    """By length where all are right (rlrr); as a failure (corpo); beside other prompts (copo, whitened): else nothing.

    `at_stake` leaves such a group out, whatever the shape.
    """
    lengths = torch.tensor([[1, 3000, 10], [1, 2, 1]])
    fields = {"whitened": {"baseline": option}, "zscore": {"std": option}}.get(name, {})
    groups = make_groups(
        table([value] * 3, [1.0, 0.0, 0.0]),
        lengths=lengths,
        token_weights=torch.ones(int(lengths.sum()), dtype=torch.float64),
        answers=torch.zeros(2, 3, dtype=torch.int64),
        domains=("math", "code"),
    )
    made = targets(name, groups, **fields).completions
    stays = STAYS.get((name, option if name == "whitened" else ""), (False, False))[int(value)]
    assert bool(made[0].abs().max() > 1e-6) == stays
    assert made[1].abs().max() > 0.1
    assert kept("at_stake", groups) == [[], [0, 1, 2]]


BEARS: dict[str, tuple[str, str]] = {  # what rewards of another offset, and of another scale, make of the targets
    **dict.fromkeys(("zscore", "gdpo", "pass_at_k", "token_weighted", "with_given"), ("same", "same")),
    **dict.fromkeys(("pairs", "all_pairs", "given_pairs"), ("same", "same")),  # those of the zscore in them
    **dict.fromkeys(("centred", "leave_one_out", "length_baseline"), ("same", "times")),
    "whitened": ("same", "same"),
    "corpo": ("other", "times"),  # at least the reward of a right one
    "disco": ("other", "times"),  # right from so much of one reward function on, whose weight it is then
    "equal_right": ("other", "same"),  # right: the same
    "copo": ("other", "same"),  # a reward of 0 is one of another kind
    "rlrr": ("other", "other"),  # right from so much of the total on
    "focal": ("other", "other"),  # right: the total itself
    "raw": ("other", "times"),
}


@pytest.mark.parametrize("name", list(SHAPE))
def test_what_another_scale_of_rewards_makes_of_the_targets(name: str) -> None:
    """Rewards less 2 and plus 2, and times 100 by their weights; what is the same is so but for a shape's epsilon."""
    groups = some_groups()
    rewards, components = groups.rewards.clone(), groups.components.clone()
    rewards[0, 0], components[0, 0] = 0.0, 0.0
    groups = replace(groups, rewards=rewards, components=components)
    fields = {key: value for key, value in SHAPE_FIELDS.get(name, {}).items() if key != "kl_to_go"}
    before = targets(name, groups, **fields).completions
    offset, scale = BEARS[name]
    found = []
    for more in (-2.0, 2.0):
        moved = torch.tensor([more, 0.0], dtype=torch.float64)
        other = replace(groups, rewards=(rewards + more) * groups.mask, components=components + moved)
        found.append(torch.allclose(targets(name, other, **fields).completions, before, atol=1e-4))
    assert all(found) == (offset == "same")
    other = replace(groups, rewards=100 * rewards, weights=100 * groups.weights)
    made = targets(name, other, **fields).completions
    assert torch.allclose(made, before, atol=1e-4) == (scale == "same")
    assert torch.allclose(made, 100 * before, rtol=1e-4, atol=1e-6) == (scale == "times")


def test_floats_that_should_be_equal_are() -> None:
    groups = make_groups(torch.full((1, 3), 0.1 + 0.2, dtype=torch.float64), domains=("math",))
    for name in SHAPE.keys() - {"raw", "corpo", "copo", "whitened", "token_weighted"}:
        assert targets(name, groups).completions.abs().max() < 1e-6, name


# Selects.


def test_at_stake_looks_at_one_reward_or_at_the_total() -> None:
    """The second group's total is equal and its rewards are not, which only gdpo could use; one alone has no range."""
    groups = two_components(
        [[1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 1, 0]],
        [[0, 0, 0], [0, 1, 1], [1, 2, 3], [0, 0, 0]],
        (1.0, 1.0),
        names=("right", "style"),
        mask=torch.tensor([[True] * 3, [True] * 3, [True] * 3, [True, False, False]]),
    )
    assert kept("at_stake", groups) == [[0, 1, 2], [], [0, 1, 2], []]
    assert kept("at_stake", groups, component="right") == [[0, 1, 2], [0, 1, 2], [], []]
    message = r"^params.yaml: update: 'rigth': the scores have no reward of that name; did you mean 'right'\? "
    with pytest.raises(UserError, match=message):
        kept("at_stake", groups, component="rigth")


def test_at_stake_is_what_zero_targets_drop_leaves_out_of_zscore() -> None:
    groups = make_groups(table([1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0.5, 0]))
    fields = {"groups_per_step": 1, "lr": 1.0, "dtype": "float32"}
    drop = choose(groups, Update.model_validate(fields))
    select = choose(groups, Update.model_validate({**fields, "select": [{"at_stake": {}}], "zero_targets": "keep"}))
    assert drop.indices == select.indices == [0, 3]
    assert (drop.ledger["num_groups_zero_targets"], select.ledger["num_groups_zero_targets"]) == (2, 0)
    assert (drop.ledger["num_groups_not_selected"], select.ledger["num_groups_not_selected"]) == (0, 2)
    corpo = {**fields, "shape": {"corpo": {}}}
    assert choose(groups, Update.model_validate(corpo)).indices == [0, 2, 3]
    both = Update.model_validate({**corpo, "select": [{"at_stake": {}}]})
    assert choose(groups, both).indices == [0, 3]


def test_pods_has_the_rules_of_its_authors() -> None:
    rewards = table([0.1, 0.9, 0.5, 0.8, 0.0])
    groups = make_groups(rewards, torch.tensor([[True, True, False, True, True]]))
    assert kept("pods", groups, keep=2) == [[1, 4]]
    assert kept("pods", groups, keep=2, rule="max_reward") == [[1, 3]]
    assert kept("pods", groups, keep=3, rule="first") == [[0, 1, 3]]
    assert kept("pods", groups, keep=4, rule="max_reward") == [[0, 1, 3, 4]]


def test_overlong_leaves_out_what_was_cut_off() -> None:
    groups = make_groups(
        table([1, 0, 1], [0, 0, 1]), truncated=torch.tensor([[True, False, False], [True, True, False]])
    )
    assert kept("overlong", groups) == [[1, 2], [2]]


def test_distinct_leaves_out_both_of_a_close_pair() -> None:
    """Scores .5 and .45 on two sides of the mean; .44 is as close, but has no score of its own."""
    groups = two_components(
        [[1, 1, 0, 0, 0]],
        [[0.9, 0.5, 0.45, 0.1, 0.44]],
        (1.0, 0.0),
        names=("right", "judge"),
        known=torch.tensor([[[True, True]] * 4 + [[True, False]]]),
    )
    assert kept("distinct", groups, component="judge", least=0.1) == [[0, 3, 4]]
    assert kept("distinct", groups, component="judge", least=0.01) == [[0, 1, 2, 3, 4]]
    # With rewards of 0 and 1 as scores a pair is as far apart as can be: nothing can be done.
    assert kept("distinct", groups, component="right", least=1.0) == [[0, 1, 2, 3, 4]]
    equal = make_groups(torch.ones(1, 3, dtype=torch.float64))
    assert kept("distinct", equal, component="reward", least=9.0) == [[0, 1, 2]]


def test_off_policy_by_hand() -> None:
    """Gaps of .1, .3, .3 and .2 nats a token: of what is below the mean, those above the threshold go."""
    old = torch.full((5,), -1.0, dtype=torch.float64)
    rollout = old + torch.tensor([0.0, 0.2, 0.3, 0.3, 0.2], dtype=torch.float64)
    fields = {"lengths": torch.tensor([[2, 1, 1, 1]]), "old_logprobs": old, "rollout_logprobs": rollout}
    assert kept("off_policy", make_groups(table([0, 0, 1, 0]), **fields), threshold=0.2) == [[0, 2, 3]]
    assert kept("off_policy", make_groups(table([1, 1, 1, 1]), **fields), threshold=0.0) == [[0, 1, 2, 3]]


# What settings refuse.


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            {"shape": {"copo": {}}, "zero_targets": "keep"},
            r"update: shape: copo: needs the final answers; set final_answer, such as final_answer: \{boxed: \{\}\}",
        ),
        (
            {"shape": {"token_weighted": {}}, "match": {"clipped": {"level": "sequence"}}},
            "update: shape: token_weighted: makes a target for each token, but match: clipped, as it is set, takes a "
            "target for each completion; set shape to one of zscore, ",
        ),
        (
            {"shape": {"pairs": {}}, "match": {"amir": {}}},
            "update: shape: pairs: match: amir is made for all_pairs; set it",
        ),
        (
            {"shape": {"all_pairs": {}}, "match": {"f_hal": {}}},
            "update: shape: all_pairs: match: f_hal is made for given_pairs; set it",
        ),
        (
            {"shape": {"zscore": {"std": "step"}}, "match": {"maestro": {}}, "zero_targets": "keep"},
            r"update: shape: zscore: match: maestro makes its targets itself; remove shape, or set it to zscore: \{\}",
        ),
        (
            {"select": [{"at_stake": {}}], "kl_in_reward": 0.05},
            "update: kl_in_reward: 0.05: select: at_stake: after it no two rewards of a group are equal; set at_stake: "
            "component to a reward function, or use update.kl",
        ),
        ({"final_answer": {"boxed": {}}}, "update: final_answer: no method that is chosen reads it; remove it"),
        (
            {"shape": {"copo": {}}, "final_answer": {"last_number": {}}},
            "update: zero_targets: drop: shape: copo compares groups, and one of equal rewards counts, too; set zero",
        ),
        (
            {
                "shape": {"copo": {}},
                "final_answer": {"boxed": {}},
                "zero_targets": "keep",
                "groups_per_step": 1,
            },
            "update: groups_per_step: 1: shape: copo compares the groups of a step; set 2 or more",
        ),
        (
            {"shape": {"whitened": {}}, "match": {"clipped": {}}},
            "update: zero_targets: drop: shape: whitened compares groups",
        ),
        ({"shape": {"whitened": {}}}, "update: shape: whitened: makes a target for each token, but match: gift takes"),
        (
            {"shape": {"whitened": {"baseline": "group", "kl_to_go": 0.1}}},
            "update.shape.whitened: kl_to_go: 0.1: with baseline: group the KL of a whole completion belongs in its",
        ),
        ({"shape": {"corpo": {}}, "kl_in_reward": 0.1}, "update: kl_in_reward: 0.1: shape: corpo reads the rewards as"),
        ({"shape": {"focal": {"right": 0.0}}}, r"update.shape.focal: right: 0: must be more than wrong \(0\)"),
        ({"shape": {"zscore": {"eps": -1.0}}}, "update.shape.zscore.eps: -1.0: must be greater than or equal to 0"),
        ({"select": [{"distinct": {"least": 0.1}}]}, "update.select.0.distinct.component: missing; it is the reward"),
        ({"select": [{"off_policy": {}}]}, "update.select.0.off_policy.threshold: missing; it is nats a token"),
        ({"final_answer": {"pattern": {"regex": "("}}}, r"update.final_answer.pattern.regex: '\(': is no regular exp"),
        (
            {"final_answer": {"pattern": {"regex": "(a)(b)"}}},
            r"update.final_answer.pattern.regex: '\(a\)\(b\)': has 2 groups; one alone is the answer",
        ),
    ],
)
def test_a_senseless_choice_is_one_line(update: dict[str, Any], message: str) -> None:
    content = {"update": {"groups_per_step": 8, "lr": 1.0, "dtype": "float32", **update}}
    with pytest.raises(UserError, match=rf"^params.yaml: {message}[^\n]*$"):
        check(create_model("File", __base__=Section, update=(Update, ...)), content, "params.yaml")


@pytest.mark.parametrize(
    ("chosen", "text", "answer"),
    [
        ({"boxed": {}}, "so \\boxed{7} or rather \\boxed{ 8 }", "8"),
        ({"boxed": {}}, "8", None),
        ({"last_number": {}}, "1, then $1,200.50.", Decimal("1200.5")),
        ({"last_number": {}}, "none", None),
        ({"pattern": {"regex": r"#(-?\d+)"}}, "#1 #-2 3", "-2"),
        ({"pattern": {"regex": r"[AB]"}}, "A or B.", "B"),
        ({"pattern": {"regex": r"#(\d+)?"}}, "#1 #", None),
        ({"pattern": {"regex": r"#(\d+)"}}, "1", None),
    ],
)
def test_final_answers(chosen: dict[str, Any], text: str, answer: Any) -> None:
    fields = {"groups_per_step": 2, "lr": 1.0, "dtype": "float32", "shape": {"copo": {}}, "zero_targets": "keep"}
    update = Update.model_validate({**fields, "final_answer": chosen})
    assert update.needs == {"answers"}
    assert update.find_answer is not None
    assert update.find_answer(text) == answer


@pytest.mark.parametrize("name", ["copo", "disco"])
def test_a_round_trains_with_what_its_shape_needs(name: str, copied: Path) -> None:
    """The stage reads answers out of completions, and domains out of the prompts, which have none before."""
    params = mini.read_yaml(copied / "params.yaml")
    params["update"] |= {"match": {"clipped": {}}, "shape": {name: {}}, "zero_targets": "keep"}
    params["update"] |= {"final_answer": {"pattern": {"regex": r"#(-?\d+)"}}} if name == "copo" else {}
    (copied / "params.yaml").write_text(json.dumps(params))
    if name == "disco":
        path = copied / "data/prompts/train.parquet"
        table, metadata = read_prompts(path)
        domains = [("odd", "even")[index % 2] for index in range(table.num_rows)]
        path.unlink()
        write_prompts(path, table.append_column("domain", pa.array(domains)), metadata)
    mini.remove_outputs(copied, "update@r1")
    mini.run_stages(copied, ["update@r1"])
    numbers = json.loads((copied / "data/rounds/r1/metrics/update.json").read_text())
    assert numbers["num_groups_trained"] > 0
    assert numbers["grad_norm"] > 0


def test_targets_of_tokens_go_back_to_their_places() -> None:
    groups = make_groups(torch.zeros(3, 2, dtype=torch.float64), lengths=torch.tensor([[1, 2], [3, 1], [2, 2]]))
    all_ = Targets(torch.zeros(3, 2), torch.arange(11.0))
    rows = [0, 4, 5]
    part = all_.part(groups, rows)
    assert part.tokens is not None
    assert part.tokens.tolist() == [0, 7, 8, 9, 10]
    put = all_.put(groups, rows, Targets(part.completions + 1, -part.tokens))
    assert put.tokens is not None
    assert put.tokens.tolist() == [0, 1, 2, 3, 4, 5, 6, -7, -8, -9, -10]
    assert put.completions.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert replace(put, tokens=None).put(groups, rows, part).tokens is None
