"""Laws of every method: finite differences, parts add up, what is masked does not exist, order; hand numbers."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from pydantic import create_model
from torch import Tensor

from gift.methods.choosing import choose
from gift.methods.groups import Groups, Outputs, Step, Targets
from gift.methods.match.policy_gradient.clipped import Clipped, clipped
from gift.methods.match.policy_gradient.maestro import drawn, weights
from gift.methods.match.preference.amir import Amir, follow
from gift.methods.match.preference.f_grpo import Divergence
from gift.methods.match.regression.flowrl import Flowrl, flowrl
from gift.methods.names import MATCH, SELECT, SHAPE
from gift.methods.select.pods import Pods, pods
from gift.methods.shape.zscore import standardise
from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.project.sections import Section, check, choice
from gift.training.settings import Update
from tests.groups import make_groups, two_components
from tests.losses import gradients, objective_of, paired, run, settings_for

CASES: list[tuple[str, dict[str, Any]]] = [
    ("gift", {}),
    ("gift", {"anchor": "reference", "stats": "full", "spread_floor": 0.3, "token_reduce": "mean", "beta": 0.7}),
    ("gvpo", {}),
    ("gvpo", {"anchor": "reference", "beta": 0.5}),
    ("clipped", {}),
    ("clipped", {"aggregate": "dapo", "clip_high": 0.28, "clip_dual": 1.4}),
    ("clipped", {"aggregate": "dr_grpo", "kl": {"coef": 0.1, "estimator": "k1"}}),
    ("clipped", {"level": "sequence", "clip_low": 0.05, "clip_high": 0.1, "kl": {"coef": 0.1, "ratio": "sequence"}}),
    ("clipped", {"level": "sequence", "aggregate": "dapo", "kl": {"coef": 0.1, "estimator": "k2"}}),
    ("clipped", {"correction": {"level": "token", "outside": "truncate", "most": 1.2}}),
    ("gift", {"kl": {"coef": 0.1, "ratio": "token"}, "correction": {"most": 1.5}}),
    ("clipped", {"level": "sequence_sum", "aggregate": "luspo", "log_ratio_most": 0.1}),
    ("cispo", {}),
    ("cispo", {"least": 0.8, "most": 1.2}),
    ("sapo", {}),
    ("dpo", {}),
    ("dpo", {"anchor": "old", "beta": 0.5}),
    ("dpo", {"loss": "ipo", "token_reduce": "mean", "beta": 0.5, "sft": 0.3}),
    ("pair_regression", {}),
    ("amir", {"clip_low": 0.1}),
    ("amir", {"weight": 0.5, "ref_free": False}),
    ("una", {"beta": 0.7}),
    ("una", {"loss": "bce", "anchor": "old"}),
    ("reinforce", {}),
    ("reinforce", {"aggregate": "dr_grpo"}),
    ("gmpo", {"clip_low": 0.1, "clip_high": 0.2}),
    ("vespo", {}),
    ("vespo", {"sampler": "truncate", "sampler_most": 1.05}),
    ("vespo", {"sampler": "mask", "sampler_most": 1.1, "k_negative": 1.0}),
    ("dppo", {"low": 0.05, "high": 0.05, "most": 1.1}),
    ("dppo", {"divergence": "kl", "low": 0.005, "high": 0.005}),
    ("dro", {"beta": 0.5}),
    ("dro", {"beta": 2.0, "aggregate": "grpo", "kl": {"coef": 0.1}}),
    ("grao", {}),
    ("grao", {"beta": 0.2, "alignment": 0.0}),
    ("maestro", {"tau": 0.5}),
    ("maestro", {"entropy": 0.0, "spread": 0.5, "clip_low": 0.1}),
    ("flowrl", {}),
    ("flowrl", {"weighting": "released_unclipped", "beta": 2.0}),
    ("flowrl", {"weighting": "verl_min10"}),
    *(("f_grpo", {"divergence": divergence, "beta": 0.5}) for divergence in get_args(Divergence)),
    ("f_grpo", {"gamma": 1.0}),
    ("f_grpo", {"weights": "set_softmax"}),
    ("f_hal", {}),
    ("f_hal", {"divergence": "kl", "offline": 0.2, "weights": "set_softmax"}),
]
# Settings under which every group of `some_groups` has right and wrong ones, all of them with a target.
SHAPE_FIELDS: dict[str, dict[str, Any]] = {
    "rlrr": {"correct_from": 1.5, "length_bin": 1},
    "disco": {"correct": "right", "correct_from": 0.3},
    "focal": {"right": 3.0},
    "equal_right": {"correct": "right"},
    "whitened": {"kl_to_go": 0.1},
}
SHAPE_OF: dict[str, tuple[str, dict[str, Any]]] = {  # of others: zscore
    "dpo": ("pairs", {}),
    "pair_regression": ("all_pairs", {}),
    "amir": ("all_pairs", {"margin": 0.3}),
    "f_hal": ("given_pairs", {}),
    "grao": ("with_given", {}),
    "una": ("raw", {"map": "sigmoid"}),
}
every_match = pytest.mark.parametrize(("name", "fields"), CASES, ids=lambda value: str(value))
P, G = 3, 5
ORDER = [3, 1, 4, 0, 2]


def test_every_method_has_a_case() -> None:
    assert {name for name, _ in CASES} == MATCH.keys()


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_groups(order: list[int] | None = None, absent: bool = True) -> Groups:
    """Three groups of five completions of 1 to 4 tokens, two of which do not train; `order` inside a group.

    The fourth and fifth of each group were given, not sampled; tokens weigh between 0.5 and 1.5.
    """
    order = order or list(range(G))
    lengths = torch.randint(1, 5, (P, G), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(P, G, dtype=torch.bool)
    if absent:
        mask[0, 1] = mask[2, 4] = False
    components = draw(1, P, G, 2)
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    completion = torch.repeat_interleave(torch.arange(P * G), lengths.flatten())
    rows = (torch.arange(P).unsqueeze(-1) * G + torch.tensor(order)).flatten()
    tokens = torch.cat([(completion == row).nonzero().squeeze(-1) for row in rows.tolist()])
    sampled = torch.ones(P, G, dtype=torch.bool).index_fill(1, torch.tensor([3, 4]), False)
    groups = two_components(
        components[:, order, 0],
        components[:, order, 1],
        (1.0, 2.0),
        mask=mask[:, order],
        lengths=lengths[:, order],
        rewards=((components * weights).sum(-1) * mask)[:, order],
        truncated=(draw(2, P, G) < 0.3)[:, order],
        ref_logprobs=-draw(3, len(completion))[tokens],
        old_logprobs=-draw(4, len(completion))[tokens],
        rollout_logprobs=(-draw(4, len(completion)) + 0.3 * draw(8, len(completion)) - 0.15)[tokens],
        sampled=sampled[:, order],
        token_weights=0.5 + draw(7, len(completion))[tokens],
        names=("right", "style"),
        answers=torch.tensor([[0, 1, 0, 2, -1], [0, 0, 0, 0, 0], [-1, -1, 1, 2, 2]])[:, order],
        domains=("math", None, "code"),
        draws=draw(9, P, G)[:, order],
    )
    return replace(groups, step=replace(groups.step, num_pairs=7))


def some_outputs(groups: Groups, name: str) -> Outputs:
    """Log-probs near the old ones: some ratios are clipped, most are not."""
    noise = draw(5, P, G, 4)
    places = torch.cat([torch.arange(int(count)) for count in groups.lengths.flatten()])
    logprobs = groups.old_logprobs + 0.6 * noise.view(P * G, 4)[groups.completion, places] - 0.3
    head = MATCH[name].head
    if head is None:
        return Outputs(logprobs)
    return Outputs(logprobs, draw(6, P) if head.where == "prompt_mean" else draw(6, P, G, 2))


def targets_for(groups: Groups, name: str) -> Targets:
    shape, fields = SHAPE_OF.get(name, ("zscore", {}))
    return SHAPE[shape].within(groups, SHAPE[shape].settings(**fields))


def leaves_of(outputs: Outputs) -> list[Tensor]:
    return [each.requires_grad_() for each in (outputs.logprobs, outputs.learned) if each is not None]


@every_match
def test_gradient_is_that_of_finite_differences(
    name: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss detaches is a constant of the gradient: later evaluations see what the first one gave there."""
    groups = some_groups()
    targets, outputs = targets_for(groups, name), some_outputs(groups, name)
    leaves = leaves_of(outputs)
    detach, constants = torch.Tensor.detach, list[Tensor]()
    monkeypatch.setattr(torch.Tensor, "detach", lambda each: constants.append(detach(each)) or constants[-1])
    exact = gradients(run(name, fields, groups, targets, outputs).value, leaves)
    constants = [each.clone() for each in constants]

    def value() -> float:
        again = iter(constants)
        monkeypatch.setattr(torch.Tensor, "detach", lambda _: next(again))
        return float(run(name, fields, groups, targets, outputs).value)

    step = 1e-6
    with torch.no_grad():
        for leaf, gradient in zip(leaves, exact, strict=True):
            flat = leaf.view(-1)
            for index in range(len(flat)):
                flat[index] += step
                above = value()
                flat[index] -= 2 * step
                below = value()
                flat[index] += step
                assert (above - below) / (2 * step) == pytest.approx(float(gradient.view(-1)[index]), abs=1e-7)


def cut(name: str, fields: dict[str, Any]) -> list[list[int]]:
    """Parts of rows: whole groups where the method needs them, else any."""
    if MATCH[name].is_coupled(settings_for(name, fields)):
        return [list(range(G)), list(range(G, 3 * G))]
    return [[7, 2, 0, 11], [14], [1, 13, 3, 4, 9, 5], [6, 8, 10, 12]]


def trained(groups: Groups, rows: list[int]) -> list[int]:
    return [row for row in rows if groups.mask.flatten()[row]]


def part_of(groups: Groups, targets: Targets, outputs: Outputs, rows: list[int]) -> tuple[Groups, Targets, Outputs]:
    tokens = torch.cat([(groups.completion == row).nonzero().squeeze(-1) for row in rows])
    learned = outputs.learned
    if learned is not None:
        learned = learned[sorted({row // G for row in rows})]
    return groups.part(rows, groups.step), targets.part(groups, rows), Outputs(outputs.logprobs[tokens], learned)


@every_match
def test_parts_add_up_to_the_whole_step(name: str, fields: dict[str, Any]) -> None:
    groups = some_groups()
    targets, outputs = targets_for(groups, name), some_outputs(groups, name)
    leaves = leaves_of(outputs)
    whole = run(name, fields, groups, targets, outputs)
    rows = [own for part in cut(name, fields) if (own := trained(groups, part))]
    parts = [run(name, fields, *part_of(groups, targets, outputs, part)) for part in rows]
    total = torch.stack([part.value for part in parts]).sum()
    torch.testing.assert_close(total, whole.value, atol=1e-12, rtol=1e-12)
    expected = gradients(whole.value, leaves)
    for one, other in zip(gradients(total, leaves), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)
    for metric in objective_of(name, fields).metrics:  # the mean of what is known is the same, too
        known = torch.cat([part.metrics[metric].flatten() for part in parts])
        if metric != "log_z":  # that of a group stands once in every part of it
            torch.testing.assert_close(known.nanmean(), whole.metrics[metric].nanmean())


@every_match
def test_two_passes_are_one(name: str, fields: dict[str, Any]) -> None:
    """Coefficients from leaves on all of the outputs, then backward of their product with what made the outputs."""
    groups = some_groups()
    targets, outputs = targets_for(groups, name), some_outputs(groups, name)
    weights = [torch.ones_like(leaf).requires_grad_() for leaf in leaves_of(outputs)]
    made = [weight * leaf.detach() for weight, leaf in zip(weights, leaves_of(outputs), strict=True)]
    expected = gradients(run(name, fields, groups, targets, Outputs(*made)).value, weights)
    leaves = [each.detach().requires_grad_() for each in made]
    coefficients = gradients(run(name, fields, groups, targets, Outputs(*leaves)).value, leaves)
    surrogate = torch.stack([(c * each).sum() for c, each in zip(coefficients, made, strict=True)]).sum()
    for one, other in zip(gradients(surrogate, weights), expected, strict=True):
        torch.testing.assert_close(one, other)


@every_match
def test_what_is_masked_does_not_exist(name: str, fields: dict[str, Any]) -> None:
    """Neither its tokens, nor its reward or target: same loss, gradient and metrics; its own gradient is 0."""
    groups = some_groups()
    targets, outputs = targets_for(groups, name), some_outputs(groups, name)
    rows = trained(groups, list(range(P * G)))
    without = part_of(groups, targets, outputs, rows)
    hidden = ~groups.mask.flatten()[groups.completion]
    spoiled = [values.masked_fill(hidden, -50.0) for values in (groups.ref_logprobs, groups.old_logprobs)]
    rewards = groups.rewards.masked_fill(~groups.mask, 99.0)
    worse = replace(groups, ref_logprobs=spoiled[0], old_logprobs=spoiled[1], rewards=rewards)
    logprobs = outputs.logprobs.masked_fill(hidden, -3.0).requires_grad_()
    one = run(name, fields, worse, targets, Outputs(logprobs, outputs.learned))
    other = run(name, fields, *without)
    torch.testing.assert_close(one.value, other.value)
    for metric in objective_of(name, fields).metrics:
        torch.testing.assert_close(one.metrics[metric].nanmean(), other.metrics[metric].nanmean())
    (gradient,) = gradients(one.value, [logprobs])
    assert (gradient[hidden] == 0).all()
    assert set(one.metrics) == set(objective_of(name, fields).metrics)


@every_match
def test_order_of_siblings_does_not_matter(name: str, fields: dict[str, Any]) -> None:
    groups, other = some_groups(), some_groups(ORDER)
    outputs = some_outputs(groups, name)
    by_place = [outputs.logprobs[groups.completion == row] for row in range(P * G)]
    moved = torch.cat([by_place[group * G + place] for group in range(P) for place in ORDER])
    one = run(name, fields, groups, targets_for(groups, name), outputs)
    learned = outputs.learned
    if learned is not None and learned.dim() > 1:
        learned = learned[:, ORDER]
    two = run(name, fields, other, targets_for(other, name), Outputs(moved, learned))
    torch.testing.assert_close(one.value, two.value)


@pytest.mark.parametrize("name", list(SHAPE))
def test_targets_do_not_depend_on_order_or_on_what_is_masked(name: str) -> None:
    shape = SHAPE[name]
    settings = shape.settings.model_validate(SHAPE_FIELDS.get(name, {}))

    def targets(groups: Groups) -> Tensor:
        made = shape.within(groups, settings)
        return (shape.across(groups, made, settings) if shape.across else made).completions

    groups = some_groups()
    values = targets(groups)
    assert (values[~groups.mask] == 0).all()
    assert (values.abs().sum(-1) > 0.1).all()
    torch.testing.assert_close(targets(some_groups(ORDER)), values[:, ORDER])
    spoiled = {
        "rewards": groups.rewards.masked_fill(~groups.mask, 99.0),
        "components": groups.components.masked_fill(~groups.mask.unsqueeze(-1), -7.0),
    }
    torch.testing.assert_close(targets(replace(groups, **spoiled)), values)


SELECTS: list[tuple[str, dict[str, Any]]] = [
    ("overlong", {}),
    ("pods", {"keep": 2}),
    ("pods", {"keep": 3}),
    ("pods", {"keep": 3, "rule": "max_reward"}),
    ("distinct", {"component": "style", "least": 0.2}),
    ("off_policy", {"threshold": 0.05}),
]


@pytest.mark.parametrize(("name", "fields"), SELECTS)
def test_selection_is_of_what_trains_and_does_not_depend_on_order(name: str, fields: dict[str, Any]) -> None:
    settings = SELECT[name].settings.model_validate(fields)
    groups = some_groups()
    kept = SELECT[name].keep(groups, settings)
    assert not (kept & ~groups.mask).any()
    assert 0 < kept.sum() < groups.mask.sum()
    assert SELECT[name].keep(some_groups(ORDER), settings).equal(kept[:, ORDER])


def test_every_select_has_a_case() -> None:
    """at_stake keeps all of these groups, and pods' rule `first` depends on the order: tests/test_shapes.py."""
    assert SELECT.keys() - {name for name, _ in SELECTS} == {"at_stake"}


def conducted(rewards: list[list[float]], draws: list[float], **fields: Any) -> tuple[Groups, Outputs, float]:
    """One group with two reward functions, on the policy that sampled; the conductor chooses either."""
    first, second = (torch.tensor([each]) for each in rewards)
    groups = two_components(first, second, (1.0, 2.0), draws=torch.tensor([draws]), names=("right", "style"))
    outputs = Outputs(groups.old_logprobs.clone().requires_grad_(), torch.zeros(1, len(draws), 2, dtype=torch.float64))
    assert outputs.learned is not None
    outputs.learned.requires_grad_()
    return groups, outputs, run("maestro", fields, groups, targets_for(groups, "maestro"), outputs).value.item()


def test_maestro_by_hand() -> None:
    """Draws below 1/2 choose the first: R = .95 x 1 + .05 x 2 x .5, .05 x 0 + .95 x 2 x 1, .95 x 0 + .05 x 2 x 0."""
    groups, outputs, value = conducted([[1, 0, 0], [0.5, 1, 0]], [0.2, 0.7, 0.4])
    target = standardise(torch.tensor([[1.0, 1.9, 0.0]], dtype=torch.float64), groups.mask)
    # The policy's part is -mean A = 0, and the conductor's -mean(A log 1/2) = 0, less entropy x log 2.
    assert value == pytest.approx(-0.01 * math.log(2), abs=1e-9)
    by_logprob, by_logit = gradients(
        run("maestro", {"entropy": 0.0, "tau": 2.0}, groups, Targets(target), outputs).value, leaves_of(outputs)
    )
    assert by_logprob.tolist() == pytest.approx((-target[0] / 3).tolist())
    chosen = torch.tensor([[0.5, -0.5], [-0.5, 0.5], [0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(by_logit[0], -target[0].unsqueeze(-1) * chosen / 3 / 2)


def test_what_maestro_draws() -> None:
    shares = torch.tensor([[0.25, 0.0, 0.5, 0.25]] * 7)
    draws = torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75, 0.99, 1 - 2**-24])
    assert drawn(shares, draws).tolist() == [0, 0, 2, 2, 3, 3, 3]
    assert drawn(torch.tensor([[0.0, 0.9999, 0.0]]), torch.tensor([0.99995])).tolist() == [1]  # rounding
    known = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    assert weights(torch.tensor([2]), known, 0.3).tolist()[0] == pytest.approx([0.1, 0.0, 0.8, 0.1])


def test_maestro_chooses_no_reward_function_that_gave_nothing() -> None:
    groups = some_groups()
    known = groups.known.clone()
    known[..., 1] = False
    outputs = some_outputs(groups, "maestro")
    alone = replace(groups, known=known)
    loss = run("maestro", {}, alone, targets_for(groups, "maestro"), outputs)
    first = standardise(groups.components[..., 0], groups.mask)
    expected = run("clipped", {}, groups, Targets(first), outputs)
    torch.testing.assert_close(loss.value, expected.value)
    assert loss.metrics["choice_entropy"].nanmean() == 0


# What settings may say.


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"match": {"gfit": {}}}, "update.match.gfit: unknown key; did you mean 'gift'?"),
        ({"match": {"gift": {"anchr": "old"}}}, "update.match.gift.anchr: unknown key; did you mean 'anchor'?"),
        ({"match": {"gift": {"beta": -1.0}}}, "update.match.gift.beta: -1.0: must be greater than 0"),
        ({"match": {"gift": {}, "gvpo": {}}}, "update.match: must name exactly one of gift, .*, not gift and gvpo"),
        ({"match": {}}, "update.match: must name exactly one of gift, .*, not nothing"),
        ({"match": "gift"}, "update.match: 'gift': must be a map"),
        ({"match": {"gift": None}}, "update.match.gift: None: must be a map"),
        (
            {"match": {"maestro": {}}, "shape": {"gdpo": {}}, "zero_targets": "keep"},
            "update: shape: gdpo: match: maestro makes its targets itself; remove shape",
        ),
        (
            {"match": {"maestro": {}}, "kl_in_reward": 0.1, "zero_targets": "keep"},
            "update: kl_in_reward: 0.1: match: maestro reads the rewards as they were given; use update.kl",
        ),
        ({"match": {"maestro": {}}}, "update: zero_targets: drop: match: maestro learns from targets of 0, too; set"),
        (
            {"match": {"dpo": {}}},
            "update: shape: zscore: makes a target for each completion, but match: dpo takes pairs; set shape",
        ),
        ({"shape": {"pairs": {}}}, "update: shape: pairs: makes pairs, but match: gift takes a target for each comp"),
        (
            {"match": {"flowrl": {}}},
            "update: zero_targets: drop: match: flowrl learns from targets of 0, too; set zero",
        ),
        ({"kl_in_reward": 0.1, "shape": {"gdpo": {}}}, "update: kl_in_reward: 0.1: shape: gdpo reads the rewards as"),
        (
            {"correction": {"most": 0.5}},
            "update.correction: least 0, most 0.5: 1, the weight of equal numbers, must be",
        ),
        (
            {"match": {"vespo": {"sampler": "mask"}}, "correction": {}},
            "update: correction: match: vespo weighs by the sampler's log-probs itself; remove one",
        ),
        (
            {"match": {"amir": {}}, "shape": {"raw": {}}},
            "update: shape: raw: .* set shape to all_pairs$",
        ),
        (
            {"match": {"dpo": {}}, "shape": {"raw": {}}},
            "update: shape: raw: .* one of pairs, all_pairs, given_pairs$",
        ),
        (
            {"match": {"clipped": {}}, "shape": {"with_given": {}}},
            "update: shape: with_given: makes targets of given .* match: clipped would train .* match to grao$",
        ),
        (
            {"match": {"amir": {}}, "shape": {"given_pairs": {}}},
            "update: shape: given_pairs: .* match: amir .* match to one of pair_regression, dpo, f_hal$",
        ),
        ({"match": {"clipped": {"clip_dual": 1.1}}}, r"update.match.clipped: clip_dual: 1.1: must be more than 1"),
        ({"select": [{"overlog": {}}]}, "update.select.0.overlog: unknown key; did you mean 'overlong'?"),
        ({"match": {"dro": {}}}, "update.match.dro.beta: missing; it is how strongly a token is pulled back"),
        ({"select": [{"pods": {}}]}, "update.select.0.pods.keep: missing; it is completions of a group that train"),
    ],
)
def test_a_wrong_method_is_one_line(update: dict[str, Any], message: str) -> None:
    content = {"update": {"groups_per_step": 1, "lr": 1.0, "dtype": "float32", **update}}
    with pytest.raises(UserError, match=rf"^params.yaml: {message}[^\n]*$"):
        check(create_model("File", __base__=Section, update=(Update, ...)), content, "params.yaml")


def test_what_is_read_for_a_method_alone() -> None:
    content = {"groups_per_step": 1, "lr": 1.0, "dtype": "float32"}
    assert Update.model_validate({**content, "match": {"vespo": {}}}).needs == set()
    assert Update.model_validate({**content, "match": {"vespo": {"sampler": "mask"}}}).needs == {"rollout_logprobs"}
    assert Update.model_validate({**content, "correction": {}}).needs == {"rollout_logprobs"}


def test_metadata_say_which_methods_ran() -> None:
    update = Update(groups_per_step=1, lr=1.0, dtype="float32")
    assert settings_of(update) == {
        "groups_per_step": 1,
        "lr": 1.0,
        "dtype": "float32",
        "shape": {"zscore": {}},
        "match": {"gift": {}},
    }
    other = update.model_copy(update={"match": choice(MATCH).model_validate({"gvpo": {"beta": 0.2}})})
    assert settings_of(other)["match"] == {"gvpo": {"beta": 0.2}}


# Hand numbers of shapes and selects.


def shaped(name: str, rewards: list[list[float]]) -> list[list[float]]:
    groups = make_groups(torch.tensor(rewards, dtype=torch.float64))
    made: list[list[float]] = SHAPE[name].within(groups, SHAPE[name].settings()).completions.tolist()
    return made


def test_shapes_by_hand() -> None:
    third = math.sqrt(1 / 3)
    assert shaped("zscore", [[0, 0, 1, 1]])[0] == pytest.approx([-0.5 / third] * 2 + [0.5 / third] * 2)
    assert shaped("centred", [[1, 0, 0, 0.5]])[0] == pytest.approx([0.625, -0.375, -0.375, 0.125])
    assert shaped("leave_one_out", [[1, 0, 0, 0.5]])[0] == pytest.approx([0.8333, -0.5, -0.5, 0.1667], abs=1e-4)
    assert shaped("pairs", [[0.5, 1, 0, 1], [1, 1, 1, 1]]) == [[0, 1, -1, 0], [0, 0, 0, 0]]
    # GDPO's two prompts of two rollouts: whitened per rollout, with TRL's epsilon.
    groups = make_groups(torch.zeros(2, 2, dtype=torch.float64), components=torch.zeros(2, 2, 2))
    half = math.sqrt(0.5)
    targets = Targets(torch.tensor([[-half, half], [-2 * half, 2 * half]], dtype=torch.float64))
    whitened = SHAPE["gdpo"].across(groups, targets, SHAPE["gdpo"].settings())  # type: ignore[misc]
    assert whitened.completions.flatten().tolist() == pytest.approx([-0.5477, 0.5477, -1.0954, 1.0954], abs=1e-3)


def test_pods_keeps_the_largest_variance() -> None:
    """Of 8 with 2 right it keeps 2 right and 2 wrong, whose standardised rewards are -+ .866; a small group stays."""
    rewards = torch.tensor([[0, 0, 1, 0, 0, 1, 0, 0]], dtype=torch.float64)
    kept = pods(make_groups(rewards), Pods(keep=4))
    assert rewards[kept].tolist().count(1.0) == 2
    assert standardise(rewards, kept)[0, 2].item() == pytest.approx(math.sqrt(3) / 2)
    small = torch.tensor([[True, False, True, True, False, False, False, False]])
    assert pods(make_groups(rewards, small), Pods(keep=4)).equal(small)
    # By brute force: no other three have a larger variance.
    values = draw(9, 1, 6)
    largest = max(float(values[0, list(three)].var()) for three in torch.combinations(torch.arange(6), 3).tolist())
    assert float(values[pods(make_groups(values), Pods(keep=3))].var()) == pytest.approx(largest)


# Hand numbers of losses: one token a completion unless said otherwise.


def value_of(name: str, target: Tensor, log_ratio: Tensor, learned: Tensor | None = None, **fields: Any) -> float:
    """The loss of completions of one token with log-prob -1 under both anchors, and these targets [P, G]."""
    groups = make_groups(target)
    outputs = Outputs(log_ratio.flatten() - 1, learned)
    return float(run(name, fields, groups, Targets(target), outputs).value)


def one(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


R = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
L = torch.tensor([[0.3, -0.2, 0.1, 0.4]], dtype=torch.float64)


def test_gift_and_gvpo_by_hand() -> None:
    groups = make_groups(R)
    assert value_of("gift", standardise(R, groups.mask), L, spread_floor=1e-9) == pytest.approx(0.1907, abs=5e-5)
    assert value_of("gift", standardise(R, groups.mask), L, spread_floor=1e-9, beta=0.5) == pytest.approx(
        0.2828, abs=5e-5
    )
    logprobs = (L.flatten() - 1).requires_grad_()
    loss = run("gvpo", {}, groups, SHAPE["centred"].within(groups, SHAPE["centred"].settings()), Outputs(logprobs))
    assert loss.value.item() == pytest.approx(0.1537, abs=5e-5)
    (gradient,) = gradients(loss.value, [logprobs])
    assert gradient.tolist() == pytest.approx([-0.0162, 0.0155, 0.0165, -0.0158], abs=1e-4)


@pytest.mark.parametrize(
    ("ratio", "target", "fields", "expected"),
    [
        (1.5, 1.0, {"clip_high": 0.28}, -1.28),
        (1.5, -1.0, {"clip_high": 0.28}, 1.5),
        (0.5, 1.0, {"clip_high": 0.28}, -0.5),
        (0.5, -1.0, {"clip_high": 0.28}, 0.8),
        (4.0, -1.0, {"clip_dual": 3.0}, 3.0),
        (4.0, -1.0, {}, 4.0),
    ],
)
def test_clip_by_hand(ratio: float, target: float, fields: dict[str, Any], expected: float) -> None:
    assert value_of("clipped", one(target), one(math.log(ratio)), **fields) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("aggregate", "expected"), [("luspo", 0.75), ("grpo", -7 / 12), ("dapo", 0.375), ("dr_grpo", 0.075)]
)
def test_reinforce_by_hand(aggregate: str, expected: float) -> None:
    """Log-probs -1, -2, -1 with target 1 and -2.5 with target -1: 4 - 2.5 in all, 4/3 - 2.5 of means, of 4 tokens."""
    lengths, step = torch.tensor([[3, 1]]), Step(1, 2, 4, max_tokens=10)
    targets = Targets(torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    groups = make_groups(targets.completions, lengths=lengths, step=step)
    logprobs = torch.tensor([-1.0, -2.0, -1.0, -2.5], dtype=torch.float64, requires_grad=True)
    loss = run("reinforce", {"aggregate": aggregate}, groups, targets, Outputs(logprobs)).value
    assert loss.item() == pytest.approx(expected)
    signs = gradients(loss, [logprobs])[0].sign().tolist()
    assert signs == [-1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize(
    ("ratio", "fields", "expected"),
    [
        (1.5, {}, 1.8060),
        (1.5, {"least": 0.8, "most": 1.2}, 1.4448),
        (0.5, {}, 0.6020),
        (0.5, {"least": 0.8, "most": 1.2}, 0.9632),
    ],
)
def test_cispo_by_hand(ratio: float, fields: dict[str, Any], expected: float) -> None:
    logprob = math.log(0.3)
    old = torch.tensor([logprob - math.log(ratio)], dtype=torch.float64)
    groups = make_groups(one(1.0), old_logprobs=old)
    outputs = Outputs(torch.tensor([logprob], dtype=torch.float64))
    assert run("cispo", fields, groups, Targets(one(1.0)), outputs).value.item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("ratio", "target", "value", "gradient"),
    [(1.5, 1.0, -2.4898, -1.4100), (1.5, -1.0, 2.3936, 1.4012), (0.5, 1.0, None, -0.4700), (0.5, -1.0, None, 0.4671)],
)
def test_sapo_by_hand(ratio: float, target: float, value: float | None, gradient: float) -> None:
    """TRL 1.16's per-token loss; at a ratio of 1 the gradient is -A, whatever tau is."""
    outputs = Outputs(torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True))
    groups = make_groups(one(1.0), old_logprobs=torch.zeros(1, dtype=torch.float64))
    loss = run("sapo", {}, groups, Targets(one(target)), outputs).value
    assert value is None or loss.item() == pytest.approx(value, abs=5e-5)
    assert gradients(loss, [outputs.logprobs])[0].item() == pytest.approx(gradient, abs=5e-5)
    start = Outputs(torch.zeros(1, dtype=torch.float64, requires_grad=True))
    loss = run("sapo", {"tau_positive": 3.0, "tau_negative": 0.5}, groups, Targets(one(target)), start).value
    assert gradients(loss, [start.logprobs])[0].item() == pytest.approx(-target, abs=1e-12)


def test_sequence_ratio_and_aggregation_by_hand() -> None:
    """GSPO's ratio of log-ratios .1, -.05, .2 is exp of their mean; a token mean then counts it three times."""
    log_ratio = torch.tensor([0.1, -0.05, 0.2, 0.0], dtype=torch.float64)
    groups = make_groups(
        torch.ones(1, 2, dtype=torch.float64), lengths=torch.tensor([[3, 1]]), step=Step(1, 2, 4, max_tokens=10)
    )
    targets = Targets(torch.ones(1, 2, dtype=torch.float64))
    ratio = 1.0869
    for aggregate, expected in {
        "grpo": (ratio + 1) / 2,
        "dapo": (3 * ratio + 1) / 4,
        "dr_grpo": (3 * ratio + 1) / 20,
        "luspo": (3 * ratio + 1) / 2,
    }.items():
        settings = Clipped(level="sequence", aggregate=aggregate)
        loss = clipped(groups, targets, Outputs(log_ratio - 1), settings)
        assert loss.value.item() == pytest.approx(-expected, abs=1e-4)
    # TRL's RLOO: the ratio of the whole completion, exp(.25).
    whole = clipped(groups, targets, Outputs(log_ratio - 1), Clipped(level="sequence_sum", clip_high=9.0))
    assert whole.value.item() == pytest.approx(-(math.exp(0.25) + 1) / 2)


@pytest.mark.parametrize(
    ("fields", "value", "gradient"),
    [
        ({}, 0.0408, 0.2592),
        ({"ratio": "token"}, 0.0408, 0.3),
        ({"estimator": "k2"}, 0.045, 0.3),
        ({"estimator": "k1"}, 0.3, 1),
    ],
)
def test_kl_by_hand(fields: dict[str, Any], value: float, gradient: float) -> None:
    """Log-prob -1, reference -1.3, ratio 1; target 0. The corrected k3 has the gradient of the KL itself."""
    groups = make_groups(one(0.0), ref_logprobs=torch.tensor([-1.3], dtype=torch.float64))
    logprobs = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    loss = run("clipped", {"kl": {"coef": 1.0, **fields}}, groups, Targets(one(0.0)), Outputs(logprobs))
    assert loss.value.item() == pytest.approx(value, abs=5e-5)
    assert gradients(loss.value, [logprobs])[0].item() == pytest.approx(gradient, abs=5e-5)


@pytest.mark.parametrize(
    ("fields", "weights", "cut"),
    [
        ({}, [2.4596, 2.4596, 0.0], [0, 1]),
        ({"outside": "truncate"}, [2.4596, 2.4596, 3.0], [0, 1]),
        ({"level": "token", "most": 1.5}, [1.3499, 0.0, 0.0], [0, 1, 1]),
        ({"level": "token", "most": 1.5, "outside": "truncate"}, [1.3499, 1.5, 1.5], [0, 1, 1]),
    ],
)
def test_correction_by_hand(fields: dict[str, Any], weights: list[float], cut: list[float]) -> None:
    """old - rollout of .3 and .6, together .9, and of 1.2: exp of it weighs the gradient and leaves the value alone."""
    lengths, old = torch.tensor([[2, 1]]), torch.full((3,), -1.0, dtype=torch.float64)
    rollout = old - torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64)
    target = torch.ones(1, 2, dtype=torch.float64)
    groups = make_groups(target, lengths=lengths, old_logprobs=old, rollout_logprobs=rollout)
    outputs = Outputs(torch.full((3,), -0.9, dtype=torch.float64, requires_grad=True))
    plain = run("cispo", {}, groups, Targets(target), outputs)
    loss = run("cispo", {"correction": fields}, groups, Targets(target), outputs)
    assert loss.value.item() == plain.value.item()
    ratio = gradients(loss.value, [outputs.logprobs])[0] / gradients(plain.value, [outputs.logprobs])[0]
    assert ratio.tolist() == pytest.approx(weights, abs=5e-5)
    assert loss.metrics["correction_cut"].flatten().tolist() == cut


def test_kl_in_reward_is_taken_off_before_the_shape() -> None:
    """RLOO's r - beta (old - ref) of whole completions, here .5 x (1, 0) and .5 x (-.5, 0)."""
    rewards = torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    old = torch.tensor([-1.0, -1.0, -1.5, -1.0], dtype=torch.float64)
    groups = make_groups(rewards, ref_logprobs=torch.tensor([-2.0, -1.0, -1.0, -1.0]).double(), old_logprobs=old)
    content = {"groups_per_step": 1, "lr": 1.0, "dtype": "float32", "shape": {"leave_one_out": {}}}
    chosen = choose(groups, Update.model_validate({**content, "kl_in_reward": 0.5}))
    assert chosen.targets.completions.tolist() == [[0.5, -0.5], [-0.25, 0.25]]
    assert choose(groups, Update.model_validate(content)).targets.completions.tolist() == [[1, -1], [-0.5, 0.5]]


PAIRS = torch.tensor([[0, 2]])


def test_dpo_by_hand() -> None:
    """beta .1, l = 2 against -1: -log sigmoid(.3); the gradients are -+ beta sigmoid(-.3). A tie adds nothing."""
    groups = paired(torch.tensor([[1.0, 0.5, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64))
    targets = SHAPE["pairs"].within(groups, SHAPE["pairs"].settings())
    assert targets.pairs is not None
    assert targets.pairs.equal(PAIRS)
    logprobs = torch.tensor([1.0, 7.0, -2.0, 5.0, 6.0, 7.0], dtype=torch.float64, requires_grad=True)
    loss = run("dpo", {}, groups, targets, Outputs(logprobs))
    assert loss.value.item() == pytest.approx(math.log1p(math.exp(-0.3)))
    slope = 0.1 / (1 + math.exp(0.3))
    assert gradients(loss.value, [logprobs])[0].tolist() == pytest.approx([-slope, 0, slope, 0, 0, 0])
    far = run("dpo", {"beta": 1000.0}, groups, targets, Outputs(-logprobs))
    assert far.value.item() == pytest.approx(3000)
    nothing = replace(groups, step=replace(groups.step, num_pairs=0))
    assert run("dpo", {}, nothing, replace(targets, pairs=PAIRS[:0]), Outputs(logprobs)).value.item() == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"loss": "ipo"}, (2.2 + 1.2 - 5) ** 2),
        ({"loss": "ipo", "token_reduce": "mean"}, (1.1 + 0.6 - 5) ** 2),
        ({"loss": "sigmoid", "token_reduce": "mean"}, math.log1p(math.exp(-0.17))),
        ({"loss": "sigmoid", "sft": 0.5}, math.log1p(math.exp(-0.34)) - 0.5 * 0.1),
    ],
)
def test_ipo_and_the_sft_term_by_hand(fields: dict[str, Any], expected: float) -> None:
    """Of two tokens each, log-ratios 2.2 against -1.2, the mean log-prob of the better .1; beta .1."""
    groups = paired(torch.tensor([[1.0, 0.0]], dtype=torch.float64), lengths=torch.tensor([[2, 2]]))
    logprobs = torch.tensor([0.5, -0.3, -2.0, -1.2], dtype=torch.float64)
    targets = Targets(groups.rewards, pairs=torch.tensor([[0, 1]]))
    assert run("dpo", fields, groups, targets, Outputs(logprobs)).value.item() == pytest.approx(expected)


def test_pair_regression_by_hand() -> None:
    """beta .5, l .3 against -.2, rewards 1 against .25: (.25 - .75)^2; the gradients are -+ 2 beta x .5."""
    groups = paired(torch.tensor([[1.0, 0.25]], dtype=torch.float64))
    logprobs = torch.tensor([-0.7, -1.2], dtype=torch.float64, requires_grad=True)
    targets = Targets(groups.rewards, pairs=torch.tensor([[0, 1]]))
    loss = run("pair_regression", {"beta": 0.5}, groups, targets, Outputs(logprobs))
    assert loss.value.item() == pytest.approx(0.25)
    assert gradients(loss.value, [logprobs])[0].tolist() == pytest.approx([-0.5, 0.5])


def test_una_by_hand() -> None:
    """beta .03, l = 2, target 1: sigmoid .5150, squared error .2352, gradient -.0073; cross-entropy -ln .5150."""
    logprobs = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    loss = run("una", {}, make_groups(one(1.0)), Targets(one(1.0)), Outputs(logprobs))
    assert loss.value.item() == pytest.approx(0.2352, abs=5e-5)
    assert gradients(loss.value, [logprobs])[0].item() == pytest.approx(-0.0073, abs=5e-5)
    assert loss.metrics["score"].item() == pytest.approx(0.5150, abs=5e-5)
    assert value_of("una", one(1.0), one(2.0), loss="bce") == pytest.approx(-math.log(0.515), abs=5e-5)
    assert value_of("una", one(0.25), one(2.0), loss="bce", beta=1.0) == pytest.approx(
        -0.25 * math.log(0.880797) - 0.75 * math.log(0.119203), abs=5e-5
    )


def test_targets_outside_of_what_a_loss_takes_are_refused() -> None:
    groups = make_groups(torch.tensor([[1.0, 0.0], [0.5, 1.5]], dtype=torch.float64))
    content = {"groups_per_step": 1, "lr": 1.0, "dtype": "float32", "match": {"una": {}}, "zero_targets": "keep"}
    with pytest.raises(UserError, match=r"una takes targets between 0 and 1, but shape: raw made 1 others .* 1\.5;"):
        choose(groups, Update.model_validate({**content, "shape": {"raw": {}}}))
    mapped = choose(groups, Update.model_validate({**content, "shape": {"raw": {"map": "sigmoid"}}}))
    assert mapped.targets.completions[1, 1].item() == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert choose(groups, Update.model_validate({**content, "match": {"gvpo": {}}, "shape": {"raw": {}}})).indices


@pytest.mark.parametrize(
    ("weighting", "expected"), [("paper", 248.8), ("verl_min10", 309.3), ("released_unclipped", 309.3)]
)
def test_flowrl_by_hand(weighting: str, expected: float) -> None:
    """log Z .5, mean log-prob -.8, reference -.9, target 1, beta 15: residual -14.4; ln w = .4."""
    lengths = torch.tensor([[2]])
    logprobs = torch.tensor([-0.7, -0.9], dtype=torch.float64)
    groups = make_groups(
        one(1.0),
        lengths=lengths,
        ref_logprobs=torch.tensor([-1.0, -0.8], dtype=torch.float64),
        old_logprobs=torch.tensor([-1.0, -1.0], dtype=torch.float64),
    )
    learned = torch.tensor([0.5], dtype=torch.float64)
    loss = flowrl(groups, Targets(one(1.0)), Outputs(logprobs, learned), Flowrl(weighting=weighting))
    assert loss.value.item() == pytest.approx(expected, abs=0.05)


def test_the_head_of_flowrl_gives_one_number_a_prompt() -> None:
    head = MATCH["flowrl"].head
    assert head is not None
    module = head.build(8, Flowrl(), ())
    assert sum(isinstance(part, torch.nn.Linear) for part in module) == 3
    assert module(torch.ones(5, 8)).shape == (5,)


def test_zscore_is_trls_advantage_but_for_its_epsilon() -> None:
    """TRL adds 1e-4 to the standard deviation; ours divides by it alone."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.5]], dtype=torch.float64)
    theirs = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    assert theirs.flatten().tolist() == pytest.approx([1.3053, -0.7832, -0.7832, 0.2611], abs=5e-5)
    assert shaped("zscore", rewards.tolist())[0] == pytest.approx(theirs.flatten().tolist(), rel=3e-4)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("kl", 0.0267),
        ("reverse_kl", -0.0267),
        ("pearson", -0.0286),
        ("hellinger", -0.0263),
        ("jensen_shannon", -0.0138),
        ("total_variation", -0.0143),
    ],
)
def test_f_grpo_by_hand(divergence: str, expected: float) -> None:
    target = standardise(R, torch.ones_like(R, dtype=torch.bool))
    assert value_of("f_grpo", target, L, divergence=divergence, beta=0.5) == pytest.approx(expected, abs=5e-5)
    # Both anchors are the same here: gamma adds to beta in v, not in the factor.
    more = value_of("f_grpo", target, L, divergence=divergence, beta=0.25, gamma=0.25)
    assert more == pytest.approx(expected * 3 / 5, abs=5e-5)


def test_f_grpo_weights_by_hand() -> None:
    """ln pi_old = -12, -10, -11, -13: the softmax of r - ln pi_old of the better, of -r - ln pi_old of the others."""
    groups = make_groups(R, old_logprobs=torch.tensor([-12.0, -10.0, -11.0, -13.0], dtype=torch.float64))
    targets = Targets(standardise(R, groups.mask))
    logprobs = (L.flatten() - 1).requires_grad_()
    losses = [run("f_grpo", {"weights": each}, groups, targets, Outputs(logprobs)) for each in ("set_softmax", "none")]
    weighted, plain = (gradients(loss.value, [logprobs])[0] for loss in losses)
    assert (weighted / plain).tolist() == pytest.approx([0.2689, 0.2689, 0.7311, 0.7311], abs=5e-5)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("kl", 0.0012),
        ("reverse_kl", -0.4592),
        ("pearson", -0.4900),
        ("hellinger", -0.4405),
        ("jensen_shannon", -0.2338),
        ("total_variation", -0.2443),
    ],
)
def test_f_hal_by_hand(divergence: str, expected: float) -> None:
    """FDO of a given pair with v = .3 and -.2; of the rest it is f-GRPO of what was sampled."""
    sampled = torch.tensor([[True, True, False, False]])
    groups = paired(torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64), sampled=sampled)
    targets = SHAPE["given_pairs"].within(groups, SHAPE["given_pairs"].settings())
    outputs = Outputs(torch.tensor([0.2, 0.4, 0.6, -0.4], dtype=torch.float64) - 1)
    fields = {"divergence": divergence, "beta": 0.5}
    loss = run("f_hal", {**fields, "offline": 1.0}, groups, targets, outputs)
    assert loss.value.item() == pytest.approx(expected, abs=5e-5)
    online = run("f_hal", {**fields, "offline": 0.0}, groups, targets, outputs).value
    own = groups.part([0, 1], Step(1, 2, 2, 2))
    alone = run("f_grpo", fields, own, targets.part(groups, [0, 1]), Outputs(outputs.logprobs[:2])).value
    assert online.item() == pytest.approx(alone.item())
    half = run("f_hal", {**fields, "offline": 0.5}, groups, targets, outputs).value
    assert half.item() == pytest.approx((expected + online.item()) / 2, abs=5e-5)


@pytest.mark.parametrize(
    ("ratio", "target", "expected"),
    [(1.5, 1.0, 0.5020), (0.5, 1.0, 1.1204), (1.5, -1.0, 1.2416), (0.5, -1.0, 0.3398), (1.0, 1.0, 1), (1.0, -1.0, 1)],
)
def test_vespo_by_hand(ratio: float, target: float, expected: float) -> None:
    """phi(W) of a whole completion: here W is made of two tokens, and the same W of the sampler's numbers."""
    old = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    outputs = Outputs((old + torch.tensor([math.log(ratio) + 0.1, -0.1], dtype=torch.float64)).requires_grad_())
    given = {"lengths": torch.tensor([[2]]), "old_logprobs": old}
    loss = run("vespo", {}, make_groups(one(1.0), **given), Targets(one(target)), outputs)
    assert loss.metrics["importance"].tolist() == pytest.approx([expected] * 2, abs=5e-5)
    assert gradients(loss.value, [outputs.logprobs])[0].tolist() == pytest.approx(
        [-target * expected / 2] * 2, abs=5e-5
    )
    same = Outputs(old.clone().requires_grad_())
    groups = make_groups(one(1.0), **given, rollout_logprobs=old - math.log(ratio) / 2)
    by_sampler = run("vespo", {"sampler": "truncate"}, groups, Targets(one(target)), same)
    assert by_sampler.metrics["importance"].tolist() == pytest.approx([expected] * 2, abs=5e-5)


@pytest.mark.parametrize(
    ("fields", "target", "kept"),
    [
        ({"high": 0.2999}, 1.0, False),
        ({"high": 0.3001}, 1.0, True),
        ({"low": 0.01}, -1.0, True),
        ({"divergence": "kl", "high": 0.1926}, 1.0, False),
        ({"divergence": "kl", "high": 0.1928}, 1.0, True),
        ({"divergence": "kl", "low": 0.01}, -1.0, True),
    ],
)
def test_dppo_by_hand(fields: dict[str, Any], target: float, kept: bool) -> None:
    """From .2 to .5: total variation .3, binary KL .1927, ratio 2.5; back towards .2 it may always go."""
    groups = make_groups(one(1.0), old_logprobs=torch.tensor([math.log(0.2)], dtype=torch.float64))
    outputs = Outputs(torch.tensor([math.log(0.5)], dtype=torch.float64, requires_grad=True))
    loss = run("dppo", fields, groups, Targets(one(target)), outputs)
    assert gradients(loss.value, [outputs.logprobs])[0].item() == pytest.approx(-2.5 * target * kept)
    cut = run("dppo", {**fields, "most": 2.0}, groups, Targets(one(target)), outputs)
    assert gradients(cut.value, [outputs.logprobs])[0].item() == pytest.approx(-2.0 * target * kept)


@pytest.mark.parametrize(
    ("target", "value", "gradient"), [(1.0, 1.0020, -0.98), (-1.0, -0.9980, 1.02), (0.0, 0.0020, 0.02)]
)
def test_dro_by_hand(target: float, value: float, gradient: float) -> None:
    """From -1.2 to -1 with beta .1: the pull is .05 x .04 = .002, and its gradient .1 x .2 = .02."""
    groups = make_groups(one(1.0), old_logprobs=torch.tensor([-1.2], dtype=torch.float64))
    outputs = Outputs(torch.tensor([-1.0], dtype=torch.float64, requires_grad=True))
    loss = run("dro", {"beta": 0.1}, groups, Targets(one(target)), outputs).value
    assert loss.item() == pytest.approx(value)
    assert gradients(loss, [outputs.logprobs])[0].item() == pytest.approx(gradient)


@pytest.mark.parametrize(("aggregate", "expected"), [("dapo", 0.126), ("luspo", 0.252), ("dr_grpo", 0.063)])
def test_dro_of_tokens_by_hand(aggregate: str, expected: float) -> None:
    """The numbers of verl's own test, beta .05: 1.6 + .001 and -1.35 + .001; the third token does not train."""
    groups = make_groups(
        torch.zeros(1, 2, dtype=torch.float64),
        mask=torch.tensor([[True, False]]),
        lengths=torch.tensor([[2, 1]]),
        old_logprobs=torch.tensor([-1.0, -0.7, -0.2], dtype=torch.float64),
    )
    tokens = torch.tensor([2.0, -1.5, 9.0], dtype=torch.float64)
    outputs = Outputs(torch.tensor([-0.8, -0.9, -0.1], dtype=torch.float64))
    targets = Targets(torch.zeros(1, 2, dtype=torch.float64), tokens)
    loss = run("dro", {"beta": 0.05, "aggregate": aggregate}, groups, targets, outputs)
    assert loss.value.item() == pytest.approx(expected)


@pytest.mark.parametrize(("target", "mean"), [(1.0, (0.4 - 0.1) / 2), (-1.0, (0.6 - 0.05) / 2)])
def test_gmpo_by_hand(target: float, mean: float) -> None:
    """Log-ratios .6 and -.1, cut at .4 above where the target is positive, at -.05 below where it is not."""
    old = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    groups = make_groups(one(1.0), lengths=torch.tensor([[2]]), old_logprobs=old)
    outputs = Outputs(old + torch.tensor([0.6, -0.1], dtype=torch.float64))
    loss = run("gmpo", {"clip_low": 0.05}, groups, Targets(one(target)), outputs)
    assert loss.value.item() == pytest.approx(-target * math.exp(mean))
    assert sorted(loss.metrics["clip_ratio"].tolist()) == [0, 1]


@pytest.mark.parametrize(("fields", "expected"), [({}, math.exp(30)), ({"log_ratio_most": 20.0}, math.exp(20))])
def test_verls_limit_of_a_log_ratio(fields: dict[str, Any], expected: float) -> None:
    assert value_of("clipped", one(-1.0), one(30.0), **fields) == pytest.approx(expected)


def test_grao_by_hand() -> None:
    """Rewards .9, .4, .5 and of the given answer .8; mean log-probs -.5, -.8, -.6 and -.7: -.0818."""
    rewards = torch.tensor([[0.9, 0.4, 0.5, 0.8]], dtype=torch.float64)
    groups = make_groups(rewards, sampled=torch.tensor([[True, True, True, False]]))
    shape = SHAPE["with_given"]
    targets = shape.within(groups, shape.settings())
    assert targets.completions[0].tolist() == pytest.approx([1.3887, -0.9258, -0.4629, 0.7276], abs=5e-5)
    whole = shape.within(groups, shape.settings(statistics="group")).completions[0]
    assert whole.tolist() == pytest.approx([1.2127, -1.2127, -0.7276, 0.7276], abs=5e-5)
    outputs = Outputs(torch.tensor([-0.5, -0.8, -0.6, -0.7], dtype=torch.float64))
    assert run("grao", {}, groups, targets, outputs).value.item() == pytest.approx(0.0818, abs=5e-5)


def test_amir_by_hand() -> None:
    """A pair of mean log-probs -.5 and -.9, without a reference: margin .08, term .6539."""
    groups = paired(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    outputs = Outputs(torch.tensor([-0.5, -0.9], dtype=torch.float64))
    targets = SHAPE["all_pairs"].within(groups, SHAPE["all_pairs"].settings())
    values = [run("amir", {"weight": weight}, groups, targets, outputs).value.item() for weight in (1.0, 2.0)]
    assert values[1] - values[0] == pytest.approx(0.6539, abs=5e-5)
    assert run("amir", {}, groups, targets, outputs).metrics["preference"].tolist() == pytest.approx([0.6539], abs=5e-5)


def test_the_pairs_of_shapes() -> None:
    rewards = torch.tensor([[0.2, 1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    groups = make_groups(rewards, sampled=torch.tensor([[True, True, False, False], [False, True, False, True]]))

    def pairs(name: str, groups: Groups = groups, **fields: Any) -> list[list[int]]:
        made = SHAPE[name].within(groups, SHAPE[name].settings(**fields)).pairs
        return made.tolist()  # type: ignore[union-attr,no-any-return]

    assert pairs("pairs") == [[1, 0]]
    assert pairs("all_pairs") == [[1, 0], [1, 2], [1, 3], [2, 0], [3, 0]]
    assert pairs("all_pairs", margin=0.4) == [[1, 0], [1, 2], [1, 3]]
    assert pairs("all_pairs", at_most=2) == [[1, 0], [1, 2]]
    assert pairs("all_pairs", of_best=True) == [[1, 0], [1, 2], [1, 3]]
    assert pairs("all_pairs", of_best=True, at_most=1, margin=0.1) == [[1, 0]]
    tied = make_groups(torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64), mask=torch.tensor([[True, True, True]]))
    assert pairs("all_pairs", tied, of_best=True) == [[1, 0]]
    tied = replace(tied, mask=torch.tensor([[True, False, True]]))
    assert pairs("all_pairs", tied, of_best=True) == [[2, 0]]
    assert pairs("given_pairs") == []
    other = replace(groups, rewards=rewards.roll(1, -1))  # .5 .2 1 .5
    assert pairs("given_pairs", other) == [[2, 3]]
    made = SHAPE["given_pairs"].within(other, SHAPE["given_pairs"].settings()).completions[0]
    assert made.tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), 1, -1])


def test_settings_may_follow_a_step() -> None:
    settings = Amir()
    for surrogate, factor in ((1.0, 1.25), (0.01, 1.0), (0.001, 0.8), (None, 1.0)):
        followed = follow(settings, {"surrogate": surrogate, "preference": 0.5})
        assert followed.weight == pytest.approx(0.01 * factor)
    assert follow(Amir(weight=0.045), {"surrogate": 1.0, "preference": 0.5}).weight == 0.05
    assert follow(Amir(weight=0.006), {"surrogate": 0.0, "preference": 0.5}).weight == 0.005
    assert follow(Amir(adaptive=False), {"surrogate": 1.0, "preference": 0.5}).weight == 0.01
