"""TRL's own losses on the same tensors: value and gradient of each method that it has, with its defaults and without.

Its trainers are made without their constructors, which want a model and a data set; the loss itself is TRL's code.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gift.methods.groups import Groups, Outputs, Targets
from gift.methods.names import SELECT
from gift.project.yaml import read_yaml
from tests.groups import make_groups
from tests.losses import run

pytestmark = [
    pytest.mark.slow,  # importing TRL takes most of it
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),  # of its sampling
]

P, G, LONGEST = 2, 3, 4
LENGTHS = torch.tensor([[4, 1, 3], [2, 4, 2]])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_groups() -> Groups:
    count = int(LENGTHS.sum())
    logprobs = {name: -draw(seed, count) for seed, name in enumerate(("ref_logprobs", "old_logprobs"))}
    sampled = logprobs["old_logprobs"] + 0.8 * draw(5, count) - 0.4
    return make_groups(draw(2, P, G), lengths=LENGTHS, rollout_logprobs=sampled, **logprobs)


TARGETS = 2 * draw(3, P, G) - 1


def padded(groups: Groups, values: Tensor, filler: float) -> Tensor:
    """Values of tokens [N] as rows [P * G, longest], as TRL holds them; what is padding must not matter."""
    rows = [nn.functional.pad(each, (0, LONGEST - len(each)), value=filler) for each in values.split(of_rows(groups))]
    return torch.stack(rows)


def of_rows(groups: Groups) -> list[int]:
    lengths: list[int] = groups.lengths.flatten().tolist()
    return lengths


def shown_mask(groups: Groups) -> Tensor:
    return (torch.arange(LONGEST) < groups.lengths.flatten().unsqueeze(-1)).long()


def bare(kind: Any, **attributes: Any) -> Any:
    """A trainer with these attributes, on one process, in training."""
    from accelerate import Accelerator

    trainer = kind.__new__(kind)
    metrics = defaultdict(lambda: defaultdict(list))
    own = {"accelerator": Accelerator(cpu=True), "model": nn.Module(), "_metrics": metrics, "aux_loss_enabled": False}
    for name, value in (own | attributes).items():
        setattr(trainer, name, value)
    return trainer


def sampler_ratio(groups: Groups, mode: str, most: float) -> Tensor:
    """What GRPOTrainer weighs by in a mode of vllm_importance_sampling_mode: of tokens, or one a completion."""
    shown = shown_mask(groups)
    difference = (padded(groups, groups.old_logprobs, 0.0) - padded(groups, groups.rollout_logprobs, 0.0)) * shown
    ratio = (difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference).exp()
    if mode.endswith("truncate"):
        return ratio.clamp(max=most)
    return ratio.masked_fill(ratio > most, 0.0)


def trainer_of_trl(kind: Any, config: Any, **given: Any) -> Any:
    """A GRPOTrainer, or one made from it, with the attributes that its loss reads."""
    args = config(output_dir="unused", report_to="none", use_cpu=True, bf16=False, **given)
    args.steps_per_generation = 1
    return bare(
        kind,
        args=args,
        beta=args.beta,
        loss_type=args.loss_type,
        epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        importance_sampling_level=args.importance_sampling_level,
        max_completion_length=args.max_completion_length,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )


def shown_inputs(groups: Groups) -> dict[str, Tensor]:
    mask = shown_mask(groups)
    return {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": TARGETS.flatten(),
    }


def loss_of_trl(trainer: Any, groups: Groups, logprobs: Tensor, **inputs: Any) -> Tensor:
    """The trainer's loss of one batch that is a whole step."""
    rows = padded(groups, logprobs, -3.0)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (rows, torch.zeros_like(rows), None)
    value: Tensor = trainer._compute_loss(None, shown_inputs(groups) | inputs)
    return value


def grpo_of_trl(
    groups: Groups, logprobs: Tensor, mode: str | None = None, most: float = 3.0, gmpo: bool = False, **config: Any
) -> Tensor:
    """GRPOTrainer's loss; `config` as in its GRPOConfig, which gives the defaults. mode: of the sampler's weights."""
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

    kinds = (GMPOTrainer, GMPOConfig) if gmpo else (GRPOTrainer, GRPOConfig)
    trainer = trainer_of_trl(*kinds, **config)
    inputs = {
        "old_per_token_logps": padded(groups, groups.old_logprobs, -2.0),
        "ref_per_token_logps": padded(groups, groups.ref_logprobs, -1.0),
        "num_items_in_batch": shown_mask(groups).sum(),
    }
    if mode:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        inputs["importance_sampling_ratio"] = sampler_ratio(groups, mode, most)
    return loss_of_trl(trainer, groups, logprobs, **inputs)


def rloo_of_trl(groups: Groups, logprobs: Tensor, **config: Any) -> Tensor:
    from trl import RLOOConfig, RLOOTrainer

    args = RLOOConfig(output_dir="unused", report_to="none", use_cpu=True, bf16=False, **config)
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    trainer = bare(RLOOTrainer, epsilon_low=args.epsilon, epsilon_high=high)
    return loss_of_trl(trainer, groups, logprobs, old_logps=groups.sum_tokens(groups.old_logprobs).flatten())


def equal(groups: Groups, targets: Targets, name: str, fields: dict[str, Any], theirs: Any) -> None:
    """Ours and theirs have the same value, and the same gradient of every log-prob.

    Where a loss is corrected for the sampler, the value is not compared: TRL weighs it too.
    """
    logprobs = (groups.old_logprobs + 0.8 * draw(4, len(groups.old_logprobs)) - 0.4).requires_grad_()
    ours = run(name, fields, groups, targets, Outputs(logprobs)).value
    trls = theirs(logprobs)
    # TRL holds SAPO's temperatures in float32, in which 1.05 is another number.
    near = {"atol": 1e-13, "rtol": 1e-6 if name == "sapo" and "tau_positive" not in fields else 1e-12}
    if "correction" not in fields:
        torch.testing.assert_close(ours, trls, **near)
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in (ours, trls)]
    torch.testing.assert_close(*gradients, **near)
    assert gradients[0].abs().max() > 1e-3


KL = {"beta": 0.1}
WITH_KL = {"kl": {"coef": 0.1, "ratio": "token"}}
SEQUENCE_KL = {"kl": {"coef": 0.1, "ratio": "sequence"}}
PLAIN_KL = {"kl": {"coef": 0.1}}
SEQUENCE = {"level": "sequence", "clip_low": 0.03, "clip_high": 0.04}
OF_SEQUENCES = {"importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04}


@pytest.mark.parametrize(
    ("name", "fields", "config"),
    [
        ("clipped", {}, {"loss_type": "grpo"}),
        ("clipped", WITH_KL, {"loss_type": "grpo", **KL}),
        ("clipped", PLAIN_KL, {"loss_type": "grpo", **KL, "use_bias_correction_kl": False}),
        ("clipped", {"clip_high": 0.28, "clip_dual": 1.4}, {"loss_type": "grpo", "epsilon_high": 0.28, "delta": 1.4}),
        ("clipped", {"clip_dual": 1.4, **WITH_KL}, {"loss_type": "grpo", "delta": 1.4, **KL}),
        ("clipped", {"aggregate": "dapo", "clip_high": 0.28}, {"epsilon_high": 0.28}),  # its default
        ("clipped", {"aggregate": "dapo", **WITH_KL}, {"loss_type": "dapo", **KL}),
        ("clipped", {"aggregate": "dapo"}, {"loss_type": "bnpo"}),  # of one micro-batch
        ("clipped", {"aggregate": "dapo", **WITH_KL}, {"loss_type": "bnpo", **KL}),
        ("clipped", {"aggregate": "dr_grpo"}, {"loss_type": "dr_grpo"}),
        ("clipped", {"aggregate": "dr_grpo", **WITH_KL}, {"loss_type": "dr_grpo", **KL}),
        ("clipped", SEQUENCE, {"loss_type": "grpo", **OF_SEQUENCES}),
        ("clipped", {**SEQUENCE, **SEQUENCE_KL}, {"loss_type": "grpo", **OF_SEQUENCES, **KL}),
        ("clipped", {**SEQUENCE, "aggregate": "dapo"}, {"loss_type": "bnpo", **OF_SEQUENCES}),  # TRL warns
        ("clipped", {**SEQUENCE, "aggregate": "luspo", **SEQUENCE_KL}, {"loss_type": "luspo", **OF_SEQUENCES, **KL}),
        ("clipped", {"aggregate": "luspo"}, {"loss_type": "luspo"}),  # its default: ratios of tokens
        ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        ("cispo", {"most": 0.2}, {"loss_type": "cispo"}),  # its default: every weight is at most 0.2
        ("cispo", WITH_KL, {"loss_type": "cispo", "epsilon_high": 5.0, **KL}),
        ("sapo", {}, {"loss_type": "sapo"}),
        (
            "sapo",
            {"tau_positive": 2.0, "tau_negative": 3.0, **WITH_KL},
            {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0, **KL},
        ),
        ("vespo", {}, {"loss_type": "vespo"}),
        ("vespo", {"sampler": "truncate", "sampler_most": 1.2}, {"loss_type": "vespo", "mode": "token_truncate"}),
        ("vespo", {"sampler": "mask", "sampler_most": 1.2}, {"loss_type": "vespo", "mode": "token_mask"}),
        (
            "vespo",
            {"k_positive": 1.0, "lambda_positive": 2.0, "k_negative": 2.5, "lambda_negative": 0.5, **WITH_KL},
            {
                "loss_type": "vespo",
                "vespo_k_pos": 1.0,
                "vespo_lambda_pos": 2.0,
                "vespo_k_neg": 2.5,
                "vespo_lambda_neg": 0.5,
                **KL,
            },
        ),
        ("gmpo", {"clip_low": 0.1, "clip_high": 0.2}, {"gmpo": True, "epsilon": 0.1, "epsilon_high": 0.2}),
        ("gmpo", PLAIN_KL, {"gmpo": True, **KL}),
    ],
)
def test_grpo_trainer(name: str, fields: dict[str, Any], config: dict[str, Any]) -> None:
    groups = some_groups()
    config = config | {"max_completion_length": groups.step.max_tokens, "most": 1.2}
    equal(groups, Targets(TARGETS), name, fields, lambda logprobs: grpo_of_trl(groups, logprobs, **config))


OF_TOKENS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("clipped", {}, {"loss_type": "grpo"}),
    ("clipped", {"aggregate": "dapo", **WITH_KL}, {"loss_type": "dapo", **KL}),  # the KL term has no weight
    ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    ("sapo", {}, {"loss_type": "sapo"}),
]
OF_COMPLETIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("clipped", {"level": "sequence"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    (
        "clipped",
        {"level": "sequence", "aggregate": "luspo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    ),
]
CORRECTED = [(*case, mode) for case in OF_TOKENS for mode in ("token_truncate", "token_mask")]
CORRECTED += [(*case, mode) for case in OF_TOKENS + OF_COMPLETIONS for mode in ("sequence_truncate", "sequence_mask")]


@pytest.mark.parametrize(("name", "fields", "config", "mode"), CORRECTED)
def test_the_correction_of_the_sampler(name: str, fields: dict[str, Any], config: dict[str, Any], mode: str) -> None:
    """The gradient is TRL's. Of ratios of sequences only where the weight is one of sequences: TRL's weights of tokens
    multiply the ratio of the whole, ours the gradient of their own token."""
    groups = some_groups()
    level, outside = mode.split("_")
    fields = fields | {"correction": {"level": level, "outside": outside, "most": 1.2}}
    config = config | {"mode": mode, "most": 1.2}
    equal(groups, Targets(TARGETS), name, fields, lambda logprobs: grpo_of_trl(groups, logprobs, **config))


@pytest.mark.parametrize("clip", [0.2, 0.05])
def test_rloo_trainer(clip: float) -> None:
    """The loss; its advantages are `shape: leave_one_out`, its KL `update.kl_in_reward`."""
    groups = some_groups()
    fields = {"level": "sequence_sum", "clip_low": clip, "clip_high": clip}
    theirs = lambda logprobs: rloo_of_trl(groups, logprobs, epsilon=clip)  # noqa: E731
    equal(groups, Targets(TARGETS), "clipped", fields, theirs)


# Places of the better and of the worse of each group; the better have equally many tokens.
BETTER, WORSE = torch.tensor([0, G + 1]), torch.tensor([2, G])


@pytest.mark.parametrize(
    ("fields", "losses"),
    [
        ({}, {"sigmoid": 1.0}),
        ({"beta": 0.4}, {"sigmoid": 1.0}),
        ({"token_reduce": "mean"}, {"sigmoid_norm": 1.0}),
        ({"loss": "ipo", "token_reduce": "mean"}, {"ipo": 1.0}),
        ({"sft": 0.3}, {"sigmoid": 1.0, "sft": 0.3}),
    ],
)
def test_dpo_trainer(fields: dict[str, Any], losses: dict[str, float]) -> None:
    """TRL has one pair a row of its batch. Its SFT term is a mean over the tokens of all that is better: the same as
    ours where they have equally many."""
    from trl import DPOTrainer

    groups = some_groups()
    groups = replace(groups, step=replace(groups.step, num_pairs=P))
    rows = torch.cat([BETTER, WORSE])
    mask = nn.functional.pad(shown_mask(groups)[rows], (1, 0))  # a token of the prompt stands before the completion

    def theirs(logprobs: Tensor) -> Tensor:
        shown = padded(groups, logprobs, 0.0)[rows]
        nothing = torch.zeros_like(shown)
        made = SimpleNamespace(log_probs=shown, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
        reference = groups.sum_tokens(groups.ref_logprobs).flatten()[rows]
        trainer = bare(
            DPOTrainer,
            loss_types=list(losses),
            loss_weights=list(losses.values()),
            beta=fields.get("beta", 0.1),
            label_smoothing=0.0,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            use_weighting=False,
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {
            "input_ids": mask,
            "attention_mask": mask,
            "completion_mask": mask,
            "ref_chosen_logps": reference[:P],
            "ref_rejected_logps": reference[P:],
        }
        value: Tensor = trainer._compute_loss(lambda **_: made, inputs, False)
        return value

    equal(groups, Targets(TARGETS, pairs=torch.stack([BETTER, WORSE], -1)), "dpo", fields, theirs)


def test_off_policy_mask() -> None:
    """TRL's function, given the old log-probs for the current ones, and the reward less the mean for the advantage."""
    from trl import GRPOTrainer

    length = 4
    rewards, lengths = draw(1, 6, 5), torch.full((6, 5), length)
    old = -draw(2, 30 * length)
    rollout = old + draw(3, 30 * length) - 0.4
    groups = make_groups(rewards, lengths=lengths, old_logprobs=old, rollout_logprobs=rollout)
    advantages = (rewards - rewards.mean(-1, keepdim=True)).view(-1, 1)
    tokens = (old.view(-1, length), rollout.view(-1, length), torch.ones(30, length))
    theirs = GRPOTrainer.get_off_policy_mask(advantages, *tokens, 0.1).view(6, 5).bool()
    ours = SELECT["off_policy"].keep(groups, SELECT["off_policy"].settings(threshold=0.1))
    assert ours.equal(theirs)
    assert 3 < (~ours).sum() < 15


def preset(name: str) -> dict[str, Any]:
    content: dict[str, Any] = read_yaml(Path(__file__).parents[1] / "presets" / "methods" / f"{name}.yaml")["update"]
    return content


def test_presets_say_what_trl_does_by_default() -> None:
    from trl import DPOConfig, GRPOConfig, RLOOConfig
    from trl.experimental.gmpo import GMPOConfig

    def defaults(kind: Any) -> Any:
        return kind(output_dir="unused", report_to="none", use_cpu=True, bf16=False)

    grpo, rloo, dpo, gmpo = (defaults(kind) for kind in (GRPOConfig, RLOOConfig, DPOConfig, GMPOConfig))
    clip = {"clip_low": grpo.epsilon, "clip_high": grpo.epsilon, "aggregate": grpo.loss_type}
    level, outside = grpo.vllm_importance_sampling_mode.split("_")
    most = grpo.vllm_importance_sampling_clip_max
    ours = preset("grpo-trl")
    assert ours["match"] == {"clipped": clip}
    assert ours["correction"] == {"level": level, "outside": outside, "most": most}
    assert grpo.vllm_importance_sampling_correction
    assert (grpo.beta, grpo.delta, grpo.epsilon_high, grpo.scale_rewards) == (0.0, None, None, "group")
    assert (grpo.vllm_importance_sampling_clip_min, grpo.importance_sampling_level) == (None, "token")
    assert preset("cispo-trl-default")["match"] == {"cispo": {"most": grpo.epsilon}}
    weights = {"k_positive": grpo.vespo_k_pos, "lambda_positive": grpo.vespo_lambda_pos}
    weights |= {"k_negative": grpo.vespo_k_neg, "lambda_negative": grpo.vespo_lambda_neg}
    assert preset("vespo")["match"] == {"vespo": {**weights, "sampler": "truncate"}}
    sapo = {"tau_positive": grpo.sapo_temperature_pos, "tau_negative": grpo.sapo_temperature_neg}
    assert preset("sapo")["match"] == {"sapo": sapo}
    assert preset("gmpo")["match"] == {"gmpo": {"clip_low": gmpo.epsilon, "clip_high": gmpo.epsilon}}
    clip = {"clip_low": rloo.epsilon, "clip_high": rloo.epsilon}
    assert preset("rloo-trl")["match"] == {"clipped": {"level": "sequence_sum", **clip, "aggregate": "grpo"}}
    assert (preset("rloo-trl")["kl_in_reward"], rloo.normalize_advantages) == (rloo.beta, False)
    assert preset("dpo")["match"]["dpo"]["beta"] == preset("ipo")["match"]["dpo"]["beta"] == dpo.beta
