"""One optimizer step over whole groups, with the exact gradient at any micro-batch and world size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gift.logprobs.batches import num_tokens
from gift.logprobs.layouts import token_batch
from gift.logprobs.settings import Layout
from gift.methods.before import OBJECTIVES, GroupBatch, step_advantages
from gift.training.engine import Engine
from gift.training.rows import Rows
from gift.training.settings import Update
from gift.training.steps import MicroBatches, micro_batches, share_groups

GROUP_STATISTICS = ("loss", "log_ratio", "log_ratio_std", "correlation", "implied_beta")
SUMS = (*GROUP_STATISTICS, "correlation_known", "implied_beta_known", "kl", "entropy", "tokens")


class Trainer:
    """The loop over the steps of a round on one rank; `rank` and `world_size` come from the engine."""

    def __init__(
        self, engine: Engine, rows: Rows, settings: Update, tokens_per_batch: int, layout: Layout = "padded"
    ) -> None:
        """`layout` is that of the `TokenLogprobs` in the engine."""
        self.engine, self.rows, self.settings = engine, rows, settings
        self.tokens_per_batch, self.layout = tokens_per_batch, layout
        self._lengths = [(len(p), len(c)) for p, c in zip(rows.prompt_ids, rows.completion_ids, strict=True)]

    def train_step(self, groups: Sequence[int], lr: float) -> dict[str, float | None]:
        """One optimizer step on the mean loss of `groups`; returns its metrics (the same on every rank).

        A loss is a sum over groups, so a micro-batch of whole groups needs one pass: plain autograd through the
        objective. Groups too large for a micro-batch take two: all their log-probs without gradient, c = dLoss/dlogprob
        of the objective, then backward of sum(c * logprob) part by part. Both give the same gradient.
        """
        rows = self.rows
        tokens = [num_tokens([rows.rows_of([group])], self._lengths, self.layout) for group in groups]
        shares = [[groups[i] for i in share] for share in share_groups(tokens, self.engine.world_size)]
        plans = [self._plan(share) for share in shares]
        own = plans[self.engine.rank]
        # Collectives need all ranks: one with fewer batches than another runs empty ones, whose weight is 0.
        num_first = max(len(plan.parts) for plan in plans)
        num_backward = max(len(plan.whole) + len(plan.parts) for plan in plans)
        sums = torch.zeros(len(SUMS), dtype=torch.float64)
        targets = torch.zeros_like(rows.rewards.total)
        targets[groups] = step_advantages(rows.rewards.take(list(groups)), self.settings.advantages)
        coefficients, own_sums = self._first_pass(own.parts, num_first, len(groups), targets)
        sums += own_sums
        for batch in own.whole:
            logprobs = self.logprobs([row for group in batch for row in group])
            loss, own_sums = self._objective(logprobs, [group[0] // rows.group_size for group in batch], targets)
            self.engine.backward(loss / len(groups))
            sums += own_sums
        for part in own.parts:
            weights = torch.cat([coefficients[row] for row in part])
            self.engine.backward((weights * self.logprobs(part)).sum())
        for _ in range(num_backward - len(own.whole) - len(own.parts)):
            self.engine.backward(self.logprobs([]).sum() * 0)
        norm = self.engine.step(lr)
        return {**self._metrics(sums, len(groups)), "grad_norm": norm, "learning_rate": lr}

    def _plan(self, groups: Sequence[int]) -> MicroBatches:
        chosen = [self.rows.rows_of([group]) for group in groups]
        return micro_batches(chosen, self._lengths, self.tokens_per_batch, self.layout)

    def _first_pass(
        self, parts: list[list[int]], count: int, num_groups: int, targets: Tensor
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Of the rows in `parts`, which make whole groups: dLoss/dlogprob by row, and the sums of their metrics."""
        values: dict[int, Tensor] = {}
        with torch.no_grad():
            for index in range(count):
                if index >= len(parts):
                    self.logprobs([])
                    continue
                part = parts[index]
                logprobs = self.logprobs(part)
                values.update(zip(part, logprobs.split([self._lengths[row][1] for row in part]), strict=True))
        if not parts:
            return {}, torch.zeros(len(SUMS), dtype=torch.float64)
        own = sorted(values)
        leaf = torch.cat([values[row] for row in own]).requires_grad_()
        chosen = [row // self.rows.group_size for row in own[:: self.rows.group_size]]
        loss, sums = self._objective(leaf, chosen, targets)
        (gradient,) = torch.autograd.grad(loss / num_groups, leaf)
        return dict(zip(own, gradient.split([self._lengths[row][1] for row in own]), strict=True)), sums

    def logprobs(self, chosen: list[int]) -> Tensor:
        """Log-probs [N] of the completions of some rows; without rows, of the shortest one (to be weighted with 0)."""
        chosen = chosen or [min(range(len(self._lengths)), key=lambda row: sum(self._lengths[row]))]
        prompts, completions = self.rows.prompt_ids, self.rows.completion_ids
        batch = token_batch([prompts[row] for row in chosen], [completions[row] for row in chosen], self.layout)
        logprobs: Tensor = self.engine.forward(batch.to(self.engine.device))
        return logprobs

    def _objective(self, logprobs: Tensor, groups: list[int], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the objective over groups, and the sums (order of SUMS) that metrics are made of.

        logprobs: float [N], of the groups' completions in order; targets: float [P, G], of all groups of the round.
        """
        rows, device = self.rows, logprobs.device
        own = rows.rows_of(groups)
        lengths = torch.tensor([len(rows.completion_ids[row]) for row in own])
        batch = GroupBatch(
            logprobs=logprobs,
            ref_logprobs=torch.cat([rows.ref_logprobs[row] for row in own]).to(device),
            old_logprobs=torch.cat([rows.old_logprobs[row] for row in own]).to(device),
            completion=torch.repeat_interleave(torch.arange(len(own)), lengths).to(device),
            rewards=rows.rewards.total[groups].to(device),
            advantages=targets[groups].to(device),
            mask=rows.rewards.mask[groups].to(device),
        )
        loss, statistics = OBJECTIVES[self.settings.objective](batch, self.settings.gift)
        with torch.no_grad():
            log_ratio = batch.ref_logprobs - logprobs
            sums = {
                **{name: statistics[name].sum() for name in ("loss", "log_ratio", "log_ratio_std")},
                # Of a group that has not moved these two are not known: nan, by `gift`.
                **{name: statistics[name].nansum() for name in ("correlation", "implied_beta")},
                **{f"{name}_known": (~statistics[name].isnan()).sum() for name in ("correlation", "implied_beta")},
                "kl": (log_ratio.exp() - log_ratio - 1).sum(),
                "entropy": -logprobs.sum(),
                "tokens": torch.tensor(float(len(logprobs))),
            }
        return loss, torch.stack([sums[name].double().cpu() for name in SUMS])

    def _metrics(self, sums: Tensor, num_groups: int) -> dict[str, float | None]:
        """Means over groups (loss, log_ratio, ...) and over tokens (kl to the reference by k3, entropy), nats."""
        everywhere = sums.to(self.engine.device)
        torch.distributed.all_reduce(everywhere)
        total = dict(zip(SUMS, everywhere.tolist(), strict=True))
        known = {name: total[f"{name}_known"] for name in ("correlation", "implied_beta")}
        return {
            **{name: total[name] / num_groups for name in ("loss", "log_ratio", "log_ratio_std")},
            **{name: total[name] / count if count else None for name, count in known.items()},
            "kl": total["kl"] / total["tokens"],
            "entropy": total["entropy"] / total["tokens"],
            "num_groups": num_groups,
            "num_tokens": int(total["tokens"]),
        }
