"""One optimizer step over whole groups, with the exact gradient at any micro-batch and world size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gift.engine import Engine
from gift.logprobs import token_batch
from gift.minibatches import micro_batches, share_groups
from gift.objectives.batch import GroupBatch
from gift.objectives.gift import OBJECTIVES
from gift.params import Update
from gift.rows import Rows

GROUP_STATISTICS = ("loss", "log_ratio", "log_ratio_std", "correlation", "implied_beta")
SUMS = (*GROUP_STATISTICS, "correlation_known", "implied_beta_known", "kl", "entropy", "tokens")


class Trainer:
    """The loop over the steps of a round on one rank; `rank` and `world_size` come from the engine."""

    def __init__(self, engine: Engine, rows: Rows, settings: Update, tokens_per_batch: int) -> None:
        self.engine, self.rows, self.settings, self.tokens_per_batch = engine, rows, settings, tokens_per_batch

    def train_step(self, groups: Sequence[int], lr: float) -> dict[str, float | None]:
        """One optimizer step on the mean loss of `groups`; returns its metrics (the same on every rank)."""
        rows = self.rows
        tokens = [sum(rows.length(row) for row in rows.rows_of([group])) for group in groups]
        shares = [[groups[i] for i in share] for share in share_groups(tokens, self.engine.world_size)]
        lengths = [[rows.length(row) for row in rows.rows_of(share)] for share in shares]
        batches, count = micro_batches(lengths, self.tokens_per_batch)
        own_groups, own_batches = shares[self.engine.rank], batches[self.engine.rank]
        own = rows.rows_of(own_groups)
        if count == 1:
            sums = self._whole(own, own_groups, own_batches[0] if own else [], len(groups))
        else:
            sums = self._split(own, own_groups, own_batches, count, len(groups))
        norm = self.engine.step(lr)
        return {**self._metrics(sums, len(groups)), "grad_norm": norm, "learning_rate": lr}

    def _whole(self, own: list[int], groups: list[int], order: list[int], num_groups: int) -> Tensor:
        """All rows of the rank in one forward: plain autograd through the objective."""
        logprobs = self.logprobs([own[i] for i in order])
        if not own:  # fewer groups than ranks: collectives need all ranks, so this one adds a gradient of 0
            self.engine.backward(logprobs.sum() * 0)
            return torch.zeros(len(SUMS), dtype=torch.float64)
        lengths = [len(self.rows.completion_ids[own[i]]) for i in order]
        parts = dict(zip(order, logprobs.split(lengths), strict=True))
        loss, sums = self._objective(torch.cat([parts[i] for i in range(len(own))]), own, groups)
        self.engine.backward(loss / num_groups)
        return sums

    def _split(
        self, own: list[int], groups: list[int], batches: list[list[int]], count: int, num_groups: int
    ) -> Tensor:
        """Two passes: log-probs of all rows without gradient, c = dLoss/dlogprob, then backward of sum(c * logprob)."""
        with torch.no_grad():
            parts: dict[int, Tensor] = {}
            for index in range(count):
                batch = batches[index] if index < len(batches) else []
                logprobs = self.logprobs([own[i] for i in batch])
                lengths = [len(self.rows.completion_ids[own[i]]) for i in batch]
                if batch:
                    parts.update(zip(batch, logprobs.split(lengths), strict=True))
        coefficients: Sequence[Tensor] = []
        sums = torch.zeros(len(SUMS), dtype=torch.float64)
        if own:
            leaf = torch.cat([parts[i] for i in range(len(own))]).requires_grad_()
            loss, sums = self._objective(leaf, own, groups)
            (gradient,) = torch.autograd.grad(loss / num_groups, leaf)
            coefficients = gradient.split([len(self.rows.completion_ids[row]) for row in own])
        for index in range(count):
            batch = batches[index] if index < len(batches) else []
            logprobs = self.logprobs([own[i] for i in batch])
            # A rank with fewer micro-batches than another runs empty ones of weight 0: collectives need all ranks.
            weights = torch.cat([coefficients[i] for i in batch]) if batch else torch.zeros_like(logprobs)
            self.engine.backward((weights * logprobs).sum())
        return sums

    def logprobs(self, chosen: list[int]) -> Tensor:
        """Log-probs [N] of the completions of some rows; without rows, of the shortest one (to be weighted with 0)."""
        chosen = chosen or [min(range(len(self.rows.prompt_ids)), key=self.rows.length)]
        batch = token_batch(
            [self.rows.prompt_ids[row] for row in chosen], [self.rows.completion_ids[row] for row in chosen]
        ).to(self.engine.device)
        return self.engine.forward(batch.input_ids, batch.positions, batch.targets)

    def _objective(self, logprobs: Tensor, own: list[int], groups: list[int]) -> tuple[Tensor, Tensor]:
        """Sum of the objective over the rank's groups, and the sums (order of SUMS) that metrics are made of."""
        rows, device = self.rows, logprobs.device
        lengths = torch.tensor([len(rows.completion_ids[row]) for row in own])
        batch = GroupBatch(
            logprobs=logprobs,
            ref_logprobs=torch.cat([rows.ref_logprobs[row] for row in own]).to(device),
            old_logprobs=torch.cat([rows.old_logprobs[row] for row in own]).to(device),
            completion=torch.repeat_interleave(torch.arange(len(own)), lengths).to(device),
            rewards=rows.rewards[groups].to(device),
            mask=rows.mask[groups].to(device),
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
