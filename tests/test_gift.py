"""The laws of the GIFT loss: hand numbers, finite differences, invariances, the first step, and its minimiser."""

import math

import pytest
import torch
from torch import Tensor

from gift.methods.choosing import choose
from gift.methods.groups import Groups, Loss, Outputs, Targets
from gift.methods.match.regression.gift import Gift, gift
from gift.methods.names import SHAPE
from gift.methods.shape.zscore import standardise
from gift.methods.statistics import centre, spread
from gift.training.settings import Update
from tests.groups import make_groups, two_components

TINY = 1e-9


def settings(**fields: object) -> Gift:
    return Gift.model_validate({"anchor": "old", "stats": "detached", "spread_floor": 0.3, **fields})


def step_loss(log_ratio: Tensor, rewards: Tensor, mask: Tensor | None = None, **fields: object) -> Loss:
    """Of completions of one token whose log-ratio to both anchors is `log_ratio` [P, G]."""
    groups = make_groups(rewards, mask)
    targets = Targets(standardise(rewards, groups.mask))
    return gift(groups, targets, Outputs(log_ratio.flatten() - 1), settings(**fields))


def loss_of(log_ratio: Tensor, rewards: Tensor, mask: Tensor | None = None, **fields: object) -> Tensor:
    """The sum over groups."""
    return step_loss(log_ratio, rewards, mask, **fields).value * len(rewards)


def gradient_of(log_ratio: Tensor, rewards: Tensor, mask: Tensor | None = None, **fields: object) -> Tensor:
    leaf = log_ratio.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(leaf, rewards, mask, **fields), leaf)
    return gradient


def at_stake(rewards: Tensor, shape: str = "zscore") -> list[int]:
    """The groups that train."""
    update = {"groups_per_step": 1, "lr": 1.0, "dtype": "float32", "shape": {shape: {}}}
    return choose(make_groups(rewards), Update.model_validate(update)).indices


def within(groups: Groups, shape: str) -> Tensor:
    return SHAPE[shape].within(groups, SHAPE[shape].settings()).completions


def across(groups: Groups) -> Tensor:
    """The targets of gdpo over a step."""
    shape = SHAPE["gdpo"]
    assert shape.across is not None
    return shape.across(groups, shape.within(groups, shape.settings()), shape.settings()).completions


def random_groups(seed: int, num: int = 3, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(num, size, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(), draw()


def test_hand_numbers() -> None:
    # Rewards 0, 0, 1, 1: mean 1/2, std (n - 1) sqrt(1/3), so A = -+ sqrt(3)/2. Log-ratios -1, 1, 1, 3: mean 1,
    # variance 8/3; with floor^2 = 4/3 the scale is 2, so z = -1, 0, 0, 1.
    rewards = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    log_ratio = torch.tensor([[-1.0, 1.0, 1.0, 3.0]], dtype=torch.float64)
    a = math.sqrt(3) / 2
    expected = ((-a + 1) ** 2 + a**2 + a**2 + (a - 1) ** 2) / 4
    loss = loss_of(log_ratio, rewards, spread_floor=math.sqrt(4 / 3))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    # Detached: dL/dl_k = -(2 / (G s)) (A_k - z_k), by hand with s = 2, G = 4.
    gradient = gradient_of(log_ratio, rewards, spread_floor=math.sqrt(4 / 3))
    by_hand = [-(2 / 8) * (target - z) for target, z in zip([-a, -a, a, a], [-1, 0, 0, 1], strict=True)]
    assert gradient.flatten().tolist() == pytest.approx(by_hand, abs=1e-12)


def test_beta_factor_by_hand() -> None:
    log_ratio, rewards = random_groups(1, num=1)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    centred = log_ratio - log_ratio.mean()
    scale = math.sqrt(float(centred.square().sum()) / 5 + 0.3**2)
    residual = standardise(rewards, mask) - 0.5 * centred / scale
    assert loss_of(log_ratio, rewards, beta=0.5).item() == pytest.approx(float(residual.square().mean()), rel=1e-12)
    expected = -(2 * 0.5 / (6 * scale)) * residual
    torch.testing.assert_close(gradient_of(log_ratio, rewards, beta=0.5), expected)


def test_full_gradient_closed_form() -> None:
    """dL/dl_k = -(2 / (G s)) [A_k - (1 + R - q) z_k] (beta 1), R = sum A z / (G - 1), q = sum z^2 / (G - 1)."""
    log_ratio, rewards = random_groups(4, num=1, size=5)
    target = standardise(rewards, torch.ones_like(rewards, dtype=torch.bool))
    centred = log_ratio - log_ratio.mean()
    scale = torch.sqrt(centred.square().sum() / 4 + 0.3**2)
    z = centred / scale
    r, q = (target * z).sum() / 4, z.square().sum() / 4
    expected = -(2 / (5 * scale)) * (target - (1 + r - q) * z)
    torch.testing.assert_close(gradient_of(log_ratio, rewards, stats="full"), expected)


def test_loss_is_one_minus_correlation() -> None:
    """With no floor: mean (A - z)^2 = 2 (G - 1) / G (1 - Pearson)."""
    log_ratio, rewards = random_groups(5, num=1)
    pearson = torch.corrcoef(torch.cat([log_ratio, rewards]))[0, 1]
    loss = loss_of(log_ratio, rewards, spread_floor=TINY)
    torch.testing.assert_close(loss, 2 * 5 / 6 * (1 - pearson))


@pytest.mark.parametrize("stats", ["detached", "full"])
def test_value_is_invariant_to_shift_and_scale(stats: str) -> None:
    """log Z(x) shifts the log-ratio of a prompt, the KL coefficient scales it: neither is seen (floor to 0)."""
    log_ratio, rewards = random_groups(6)
    shift, scale = torch.tensor([[3.0], [-2.0], [0.1]]), torch.tensor([[0.5], [2.0], [7.0]])
    before = loss_of(log_ratio, rewards, stats=stats, spread_floor=TINY)
    torch.testing.assert_close(loss_of(shift + scale * log_ratio, rewards, stats=stats, spread_floor=TINY), before)
    shifted = loss_of(log_ratio, shift + scale * rewards, stats=stats)
    torch.testing.assert_close(shifted, loss_of(log_ratio, rewards, stats=stats))


def test_full_gradient_leaves_mean_and_spread_alone() -> None:
    log_ratio, rewards = random_groups(7)
    gradient = gradient_of(log_ratio, rewards, stats="full", spread_floor=TINY)
    centred = log_ratio - log_ratio.mean(-1, keepdim=True)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close((gradient * centred).sum(-1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_detached_gradient_shrinks_the_spread() -> None:
    """Its product with the deviations is 2 (G - 1) / G (1 - R) > 0: a descent step pulls towards the anchor."""
    log_ratio, rewards = random_groups(8, num=1)
    gradient = gradient_of(log_ratio, rewards, spread_floor=TINY)
    centred = log_ratio - log_ratio.mean()
    pearson = torch.corrcoef(torch.cat([log_ratio, rewards]))[0, 1]
    torch.testing.assert_close((gradient * centred).sum(), 2 * 5 / 6 * (1 - pearson))


@pytest.mark.parametrize("stats", ["detached", "full"])
def test_first_step_is_finite_and_reinforce(stats: str) -> None:
    """At policy = anchor every log-ratio is 0; the gradient is -(2 beta / (G floor)) A, exactly."""
    _, rewards = random_groups(9)
    zeros = torch.zeros_like(rewards)
    gradient = gradient_of(zeros, rewards, stats=stats, spread_floor=0.2, beta=0.5)
    target = standardise(rewards, torch.ones_like(rewards, dtype=torch.bool))
    torch.testing.assert_close(gradient, -(2 * 0.5 / (6 * 0.2)) * target)


@pytest.mark.parametrize("stats", ["detached", "full"])
def test_group_of_two_has_a_gradient(stats: str) -> None:
    """Without a floor the full gradient of two completions is 0 whatever they are; the floor restores the signal."""
    rewards = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    log_ratio = torch.tensor([[0.1, 0.05]], dtype=torch.float64)
    gradient = gradient_of(log_ratio, rewards, stats=stats)
    assert gradient[0, 0] > 0.1
    assert gradient[0, 1] < -0.1
    if stats == "full":
        degenerate = gradient_of(log_ratio, rewards, stats=stats, spread_floor=TINY)
        torch.testing.assert_close(degenerate, torch.zeros_like(degenerate), atol=1e-9, rtol=0)


def test_zero_reward_spread() -> None:
    """A group of equal rewards has target 0: dropped by `mask`; kept, the detached loss still pulls it together."""
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.1 + 0.2]], dtype=torch.float64)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    assert at_stake(rewards) == [1]
    assert standardise(rewards, mask)[0].tolist() == [0.0, 0.0, 0.0]
    almost = torch.tensor([[0.3, 0.1 + 0.2, 0.3]], dtype=torch.float32)
    assert at_stake(almost) == []
    log_ratio = torch.tensor([[0.5, 0.0, -0.5]], dtype=torch.float64)
    gradient = gradient_of(log_ratio, rewards[:1])
    assert gradient[0, 0] > 0 > gradient[0, 2]


def test_masked_completions_do_not_exist() -> None:
    """A completion whose reward failed changes nothing: same loss and gradient as without it, and 0 for itself."""
    log_ratio, rewards = random_groups(10, num=1, size=4)
    mask = torch.tensor([[True, True, False, True]])
    kept = [0, 1, 3]
    for stats in ("detached", "full"):
        whole = gradient_of(log_ratio, rewards, mask, stats=stats)
        without = gradient_of(log_ratio[:, kept], rewards[:, kept], stats=stats)
        torch.testing.assert_close(whole[:, kept], without)
        assert whole[0, 2] == 0
        torch.testing.assert_close(
            loss_of(log_ratio, rewards, mask, stats=stats), loss_of(log_ratio[:, kept], rewards[:, kept], stats=stats)
        )


def test_order_inside_a_group_does_not_matter() -> None:
    log_ratio, rewards = random_groups(11)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(loss_of(log_ratio[:, order], rewards[:, order]), loss_of(log_ratio, rewards))
    torch.testing.assert_close(
        gradient_of(log_ratio[:, order], rewards[:, order]), gradient_of(log_ratio, rewards)[:, order]
    )


def test_reference_and_old_anchor_differ_where_they_should() -> None:
    logprobs = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    old, reference = logprobs - torch.tensor([0.0, 1.0]), logprobs - torch.tensor([1.0, 0.0])
    groups = make_groups(torch.tensor([[0.0, 1.0]]), ref_logprobs=reference, old_logprobs=old)
    targets = Targets(standardise(groups.rewards, groups.mask))
    for anchor, correlation in (("old", 1), ("reference", -1)):
        loss = gift(groups, targets, Outputs(logprobs), settings(anchor=anchor))
        assert loss.metrics["correlation"].item() == pytest.approx(correlation)


def test_statistics_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    log_ratio = torch.tensor([[-1.0, 1.0, 1.0, 3.0]], dtype=torch.float64)
    statistics = step_loss(log_ratio, rewards).metrics
    assert statistics["implied_beta"].item() == pytest.approx(math.sqrt(1 / 3) / math.sqrt(8 / 3))
    assert statistics["correlation"].item() == pytest.approx(math.sqrt(1 / 2))
    unmoved = step_loss(torch.zeros_like(rewards), rewards).metrics
    assert math.isnan(unmoved["correlation"].item())


@pytest.mark.parametrize("stats", ["detached", "full"])
def test_minimiser_is_the_tilted_reference(stats: str) -> None:
    """Softmax policy over five answers, every answer in the group: the minimum is pi_ref exp(r / beta(x)) / Z."""
    generator = torch.Generator().manual_seed(12)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    rewards = torch.tensor([[0.0, 0.3, 0.5, 0.9, 1.0]], dtype=torch.float64)
    logits = (reference + 0.1 * torch.randn(5, generator=generator, dtype=torch.float64)).requires_grad_()
    chosen = settings(anchor="reference", stats=stats, spread_floor=TINY)
    optimizer = torch.optim.Adam([logits], lr=0.02)
    groups = make_groups(rewards, ref_logprobs=reference, old_logprobs=reference)
    target = Targets(standardise(rewards, groups.mask))
    for step in range(3000):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 3000)
        loss = gift(groups, target, Outputs(logits.log_softmax(-1)), chosen)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert loss.value.item() < 1e-6
    beta = loss.metrics["implied_beta"].item()
    tilted = (reference + rewards[0] / beta).softmax(-1)
    torch.testing.assert_close(logits.softmax(-1).detach(), tilted, atol=1e-3, rtol=0)
    assert (tilted - reference.exp()).abs().max() > 0.01


def test_gdpo_by_hand() -> None:
    """Two groups of two: (1, 0) standardises to +-sqrt(1/2) whatever its scale; then the step is whitened."""
    rewards = two_components([[1, 0], [1, 0]], [[0, 100], [7, 7]], (2.0, 1.0))
    half = math.sqrt(0.5)
    expected = [[2 * half - half, half - 2 * half], [2 * half, -2 * half]]
    torch.testing.assert_close(within(rewards, "gdpo"), torch.tensor(expected, dtype=torch.float64))
    deviation = math.sqrt((2 * 0.5 + 2 * 2) / 3)
    whitened = [[value / (deviation + 1e-4) for value in row] for row in expected]
    torch.testing.assert_close(across(rewards), torch.tensor(whitened, dtype=torch.float64))


def test_gdpo_sees_what_the_sum_hides() -> None:
    """Equal totals of unequal components may hold a preference; a component's scale changes nothing."""
    hidden = two_components([[1, 0, 0]], [[0, 1, 1]], (1.0, 1.0))
    assert not within(hidden, "zscore").any()
    assert within(hidden, "gdpo").abs().max() < 1e-6
    # Standardised, both components are as wide: now the second, with twice the weight, wins.
    tilted = two_components([[2, 0, 0]], [[0, 1, 1]], (1.0, 2.0))
    assert not within(tilted, "zscore").any()
    assert within(tilted, "gdpo").abs().min() > 0.1
    small = two_components([[0, 1, 0, 1]], [[0, 0, 1e-3, 1e-3]], (1.0, 1.0))
    large = two_components([[0, 1, 0, 1]], [[0, 0, 1e3, 1e3]], (1.0, 1.0))
    torch.testing.assert_close(across(small), across(large))


def test_gdpo_of_one_reward_is_the_group() -> None:
    rewards = make_groups(torch.rand(3, 4, dtype=torch.float64))
    assert across(rewards).equal(within(rewards, "zscore"))


def test_gdpo_leaves_out_what_has_no_value() -> None:
    """An abstention adds nothing and shifts nobody; a completion without a total does not exist."""
    rewards = two_components([[1, 0, 5, 9]], [[3, 1, 5, 9]], (1.0, 1.0))
    rewards.known[0, 2, 0] = False
    rewards.known[0, 3] = False
    rewards.mask[0, 3] = False
    first, second = math.sqrt(0.5), 1.0
    expected = torch.tensor([[first + 0.0, -first - second, second, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(within(rewards, "gdpo"), expected)
    assert across(rewards)[0, 3] == 0


def test_groups_helpers_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[True, True, False]])
    centred = centre(values, mask)
    assert centred.tolist() == [[-1.0, 1.0, 0.0]]
    assert spread(centred, mask).item() == pytest.approx(math.sqrt(2))
    assert spread(centred, mask, floor=1.0).item() == pytest.approx(math.sqrt(3))
    assert centre(values, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0, 0.0]]
