"""TRL's own losses on the same tensors: value and gradient of each method that it has, with its defaults and without.

Its trainers are made without their constructors, which want a model and a data set; the loss itself is TRL's code.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gift.methods.groups import Groups, Outputs, Targets
from gift.methods.names import MATCH, SELECT
from gift.methods.objective import Kl, Objective
from tests.groups import make_groups

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
    return make_groups(draw(2, P, G), lengths=LENGTHS, **logprobs)


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


def grpo_of_trl(groups: Groups, logprobs: Tensor, **config: Any) -> Tensor:
    """GRPOTrainer's loss of one batch that is a whole step; `config` as in its GRPOConfig, which gives the defaults."""
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(output_dir="unused", report_to="none", use_cpu=True, bf16=False, **config)
    args.steps_per_generation = 1
    trainer = bare(
        GRPOTrainer,
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
    rows = padded(groups, logprobs, -3.0)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (rows, torch.zeros_like(rows), None)
    mask = shown_mask(groups)
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": TARGETS.flatten(),
        "old_per_token_logps": padded(groups, groups.old_logprobs, -2.0),
        "ref_per_token_logps": padded(groups, groups.ref_logprobs, -1.0),
        "num_items_in_batch": mask.sum(),
    }
    value: Tensor = trainer._compute_loss(None, inputs)
    return value


def equal(groups: Groups, targets: Tensor, name: str, fields: dict[str, Any], theirs: Any) -> None:
    """Ours and theirs have the same value, and the same gradient of every log-prob."""
    logprobs = (groups.old_logprobs + 0.8 * draw(4, len(groups.old_logprobs)) - 0.4).requires_grad_()
    match = MATCH[name]
    own = {key: value for key, value in fields.items() if key != "kl"}
    objective = Objective(match, Kl(**fields["kl"]) if "kl" in fields else None)
    ours = objective.loss(groups, Targets(targets), Outputs(logprobs), match.settings.model_validate(own)).value
    trls = theirs(logprobs)
    # TRL holds SAPO's temperatures in float32, in which 1.05 is another number.
    near = {"atol": 1e-13, "rtol": 1e-6 if name == "sapo" and not fields else 1e-12}
    torch.testing.assert_close(ours, trls, **near)
    gradients = [torch.autograd.grad(loss, logprobs)[0] for loss in (ours, trls)]
    torch.testing.assert_close(*gradients, **near)
    assert gradients[0].abs().max() > 1e-3


KL = {"beta": 0.1}
WITH_KL = {"kl": {"coef": 0.1, "ratio": "token"}}


@pytest.mark.parametrize(
    ("name", "fields", "config"),
    [
        ("clipped", {}, {"loss_type": "grpo"}),
        ("clipped", WITH_KL, {"loss_type": "grpo", **KL}),
        ("clipped", {"kl": {"coef": 0.1}}, {"loss_type": "grpo", **KL, "use_bias_correction_kl": False}),
        ("clipped", {"clip_high": 0.28, "clip_dual": 1.4}, {"loss_type": "grpo", "epsilon_high": 0.28, "delta": 1.4}),
        ("clipped", {"aggregate": "dapo", "clip_high": 0.28}, {"epsilon_high": 0.28}),  # its default
        ("clipped", {"aggregate": "dapo", **WITH_KL}, {"loss_type": "dapo", **KL}),
        ("clipped", {"aggregate": "dr_grpo"}, {"loss_type": "dr_grpo"}),
        ("clipped", {"aggregate": "dr_grpo", **WITH_KL}, {"loss_type": "dr_grpo", **KL}),
        ("clipped", {"level": "sequence", "clip_low": 0.03, "clip_high": 0.04}, {"loss_type": "grpo"}),
        ("clipped", {"level": "sequence", "kl": {"coef": 0.1, "ratio": "sequence"}}, {"loss_type": "grpo", **KL}),
        ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
        ("cispo", {"most": 0.2}, {"loss_type": "cispo"}),  # its default: every weight is at most 0.2
        ("sapo", {}, {"loss_type": "sapo"}),
        ("sapo", {"tau_positive": 2.0, "tau_negative": 3.0}, {"loss_type": "sapo"}),
    ],
)
def test_grpo_trainer(name: str, fields: dict[str, Any], config: dict[str, Any]) -> None:
    groups = some_groups()
    if fields.get("level") == "sequence":
        config = config | {"importance_sampling_level": "sequence"}
        config |= {"epsilon": fields.get("clip_low", 0.2), "epsilon_high": fields.get("clip_high", 0.2)}
    if "tau_positive" in fields:
        config |= {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0}
    config |= {"max_completion_length": groups.step.max_tokens}
    equal(groups, TARGETS, name, fields, lambda logprobs: grpo_of_trl(groups, logprobs, **config))


@pytest.mark.parametrize(("name", "fields", "loss_type"), [("dpo", {}, "sigmoid"), ("dpo", {"beta": 0.4}, "sigmoid")])
def test_dpo_trainer(name: str, fields: dict[str, Any], loss_type: str) -> None:
    """TRL has one pair a row of its batch; ours the best and the worst of each group."""
    from trl import DPOTrainer

    groups = some_groups()
    better, worse = TARGETS.argmax(-1), TARGETS.argmin(-1)
    signs = torch.zeros(P, G, dtype=torch.float64).scatter(-1, better.unsqueeze(-1), 1.0)
    signs = signs.scatter(-1, worse.unsqueeze(-1), -1.0)
    rows = torch.cat([better, worse]) + G * torch.arange(P).repeat(2)
    mask = nn.functional.pad(shown_mask(groups)[rows], (1, 0))  # a token of the prompt stands before the completion

    def theirs(logprobs: Tensor) -> Tensor:
        shown = padded(groups, logprobs, 0.0)[rows]
        nothing = torch.zeros_like(shown)
        made = SimpleNamespace(log_probs=shown, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
        reference = groups.sum_tokens(groups.ref_logprobs).flatten()[rows]
        trainer = bare(
            DPOTrainer,
            loss_types=[loss_type],
            loss_weights=[1.0],
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

    equal(groups, signs, name, fields, theirs)


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
