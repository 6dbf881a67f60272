"""One optimizer step over whole groups, with the exact gradient at any micro-batch and world size, and its numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gift.logprobs.batches import num_tokens
from gift.logprobs.layouts import TokenBatch, token_batch
from gift.logprobs.settings import Layout
from gift.methods.choosing import Chosen
from gift.methods.groups import Groups, Loss, Match, Outputs, Step, Targets
from gift.methods.statistics import centre, spread
from gift.training.engine import Engine
from gift.training.inputs import Rows
from gift.training.settings import Update
from gift.training.steps import MicroBatches, micro_batches, share_groups

COMMON = ("loss", "log_ratio", "log_ratio_std", "kl", "entropy")


class Tally:
    """Sums of the parts of a step on one rank; `own` are the metrics that the method declares.

    They stay on the rank's device to the end of the step: who reads a number waits for all kernels before it, and the
    next micro-batch is not built meanwhile.
    """

    def __init__(self, groups: Groups, own: Sequence[str], device: torch.device) -> None:
        """groups: all of the round, with what trains in the mask."""
        self._own = tuple(own)
        self._names = (*COMMON, *own, *(f"{name}_known" for name in own))
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._mask = (groups.mask & groups.sampled).to(device)
        self._log_ratio = torch.zeros_like(self._mask, dtype=torch.float32)

    @torch.no_grad()
    def add(self, rows: Sequence[int], groups: Groups, logprobs: Tensor, anchor: Tensor, loss: Loss) -> None:
        """A part: its rows of the round, as `groups`, and what the loss said of it; anchor: log-probs [N]."""
        sampled = groups.to_tokens(groups.sampled)
        to_reference = (groups.ref_logprobs - logprobs).where(sampled, 0.0)
        sums = {
            "loss": loss.value.detach(),
            "kl": (to_reference.exp() - to_reference - 1).sum(),
            "entropy": -logprobs.where(sampled, 0.0).sum(),
            **{name: loss.metrics[name].nansum() for name in self._own},
            **{f"{name}_known": (~loss.metrics[name].isnan()).sum() for name in self._own},
        }
        unknown = torch.zeros((), device=logprobs.device)  # until the groups are whole
        self._sums += torch.stack([sums.get(name, unknown).double() for name in self._names])
        of_rows = groups.sum_tokens(logprobs - anchor).flatten()[groups.order]
        self._log_ratio.view(-1)[list(rows)] = of_rows.float()

    def means(self, own_groups: Sequence[int], step: Step) -> dict[str, float | None]:
        """Over groups (log_ratio: of each its mean, and its spread), tokens (kl to the reference by k3, entropy), or
        what is known (the method's own); loss is the sum. Given answers are in the loss and the method's own alone.
        A collective: all ranks call it, with the groups they had."""
        log_ratio, mask = self._log_ratio[list(own_groups)], self._mask[list(own_groups)]
        self._sums[1] = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp_min(1)).sum()
        self._sums[2] = spread(centre(log_ratio, mask), mask).sum()
        torch.distributed.all_reduce(self._sums)
        total: Mapping[str, float] = dict(zip(self._names, self._sums.tolist(), strict=True))
        return {
            "loss": total["loss"],
            **{name: total[name] / step.num_groups for name in ("log_ratio", "log_ratio_std")},
            **{name: total[name] / step.num_tokens for name in ("kl", "entropy")},
            **{name: total[name] / known if (known := total[f"{name}_known"]) else None for name in self._own},
            "num_groups": step.num_groups,
            "num_tokens": step.num_tokens,
        }


@dataclass(frozen=True)
class Coefficients:
    """dLoss/doutput of the first pass: [T_i] by row; of what a head has learned by what it looks at: group, or row."""

    rows: dict[int, Tensor]
    learned: dict[int, Tensor]


class Trainer:
    """The loop over the steps of a round on one rank; `rank` and `world_size` come from the engine."""

    def __init__(
        self,
        engine: Engine,
        rows: Rows,
        chosen: Chosen,
        update: Update,
        tokens_per_batch: int,
        layout: Layout = "padded",
    ) -> None:
        """`layout` is that of the `TokenLogprobs` in the engine."""
        self.engine, self.rows, self.chosen, self.update = engine, rows, chosen, update
        self.tokens_per_batch, self.layout = tokens_per_batch, layout
        self.match: Match[Any] = update.match.record
        self.objective = update.objective
        self.settings: Any = update.match.settings
        self._by_row = self.match.head is not None and self.match.head.where == "last_token"
        self._size = chosen.groups.mask.shape[1]
        self._trains = chosen.groups.mask.flatten().tolist()

    def train_step(
        self, groups: Sequence[int], lr: float, told: Callable[[float], None] = lambda share: None
    ) -> dict[str, float | None]:
        """One optimizer step on the loss of `groups`; returns its metrics (the same on every rank).

        told: hears after each backward what share of them is done.

        The parts of a loss add up. A micro-batch of whole groups, or of any rows where the method allows it, needs one
        pass: plain autograd through the loss. Groups too large for a micro-batch, of a method that needs them whole,
        take two: all their outputs without gradient, c = dLoss/doutput, then backward of sum(c * output) part by part.
        Both give the same gradient.
        """
        rows = {group: self._rows_of(group) for group in groups}
        step = self._totals(groups)
        tokens = [num_tokens([rows[group]], self.rows.lengths, self.layout) for group in groups]
        shares = [[groups[i] for i in share] for share in share_groups(tokens, self.engine.world_size)]
        plans = [self._plan([rows[group] for group in share]) for share in shares]
        own = plans[self.engine.rank]
        # Collectives need all ranks: one with fewer batches than another runs empty ones, whose weight is 0.
        num_first = max(len(plan.parts) for plan in plans)
        num_backward = max(len(plan.whole) + len(plan.parts) for plan in plans)
        targets = self._across(groups, step)
        tally = Tally(self.chosen.groups, self.objective.metrics, self.engine.device)
        coefficients = self._first_pass(own.parts, num_first, targets, step, tally)
        for index, batch in enumerate(own.whole):
            part = [row for group in batch for row in group]
            self.engine.backward(self._loss(part, self.outputs(part), targets, step, tally).value)
            told((index + 1) / num_backward)
        for index, part in enumerate(own.parts, len(own.whole)):
            self.engine.backward(self._weighted(part, coefficients))
            told((index + 1) / num_backward)
        for _ in range(num_backward - len(own.whole) - len(own.parts)):
            self.engine.backward(_nothing(self.outputs([])))
        norm = self.engine.step(lr)
        metrics = tally.means(shares[self.engine.rank], step)
        return {**metrics, "grad_norm": norm, "learning_rate": lr}

    def adapt(self, metrics: Mapping[str, float | None]) -> None:
        """The method's settings of the next step, from the metrics of this one."""
        if self.match.adapt is not None:
            self.settings = self.match.adapt(self.settings, metrics)

    def outputs(self, rows: list[int]) -> Outputs:
        """What the forward gives of some rows; without rows, of the shortest one (to be weighted with 0)."""
        rows = rows or [self.rows.shortest]
        batch = token_batch(self.rows.prompt_ids.take(rows), self.rows.completion_ids.take(rows), self.layout)
        places = self._places(rows, batch) if self.match.head else ()
        made = self.engine.forward(batch.to(self.engine.device), *places)
        return Outputs(*made) if places else Outputs(made)

    def _places(self, rows: list[int], batch: TokenBatch) -> tuple[tuple[Tensor, ...]]:
        """Where in the batch the method's head looks: of each row where its last token is predicted, or
        of one prompt of each group, in order; its tokens lie together in every layout."""
        lengths, counts = self.rows.lengths[rows].T
        if self._by_row:
            return (batch.positions[counts.cumsum() - 1].to(self.engine.device).split(1),)
        last = batch.positions.numpy()[counts.cumsum() - counts]  # of a prompt; it predicts the first of a completion
        first = {row // self._size: index for index, row in reversed(list(enumerate(rows)))}
        places = [
            torch.arange(last[index] + 1 - lengths[index], last[index] + 1, device=self.engine.device)
            for _, index in sorted(first.items())
        ]
        return (tuple(places),)

    def _rows_of(self, group: int) -> list[int]:
        return [row for row in range(group * self._size, (group + 1) * self._size) if self._trains[row]]

    def _totals(self, groups: Sequence[int]) -> Step:
        chosen, pairs = self.chosen.groups, self.chosen.targets.pairs
        mask, lengths = (chosen.mask & chosen.sampled)[list(groups)], chosen.lengths[list(groups)]
        num_pairs = 0 if pairs is None else int(torch.isin(pairs[:, 0] // self._size, torch.tensor(groups)).sum())
        return Step(len(groups), int(mask.sum()), int((lengths * mask).sum()), chosen.step.max_tokens, num_pairs)

    def _across(self, groups: Sequence[int], step: Step) -> Targets:
        """The targets of the step, in their places among those of the round."""
        shape, targets = self.update.shape, self.chosen.targets
        if shape.record.across is None:
            return targets
        rows = [row for group in sorted(groups) for row in self._rows_of(group)]
        part = self.chosen.groups.part(rows, step)
        made = shape.record.across(part, targets.part(self.chosen.groups, rows), shape.settings)
        return targets.put(self.chosen.groups, rows, made)

    def _plan(self, groups: list[list[int]]) -> MicroBatches:
        plan = micro_batches(groups, self.rows.lengths, self.tokens_per_batch, self.layout)
        if self.match.is_coupled(self.settings):
            return plan
        return MicroBatches([*plan.whole, *([part] for part in plan.parts)], [])

    def _first_pass(
        self, parts: list[list[int]], count: int, targets: Targets, step: Step, tally: Tally
    ) -> Coefficients:
        """Of the rows in `parts`, which make whole groups: the coefficients of all outputs."""
        by_row: dict[int, Tensor] = {}
        by_place: dict[int, Tensor] = {}
        with torch.no_grad():
            for part in [*parts, *[[]] * (count - len(parts))]:
                outputs = self.outputs(part)
                by_row |= zip(part, self._split(outputs.logprobs, part), strict=True) if part else ()
                if outputs.learned is not None and part:
                    by_place |= zip(self._looked_at(part), outputs.learned, strict=True)
        if not parts:
            return Coefficients({}, {})
        own, places = sorted(by_row), sorted(by_place)
        leaves = [torch.cat([by_row[row] for row in own]).requires_grad_()]
        leaves += [torch.stack([by_place[place] for place in places]).requires_grad_()] if places else []
        loss = self._loss(own, Outputs(*leaves), targets, step, tally)
        gradients = torch.autograd.grad(loss.value, leaves)
        of_rows = dict(zip(own, self._split(gradients[0], own), strict=True))
        return Coefficients(of_rows, dict(zip(places, gradients[1], strict=True)) if places else {})

    def _weighted(self, part: list[int], coefficients: Coefficients) -> Tensor:
        """sum(c * output) of a part; a prompt whose group stands in several parts counts in the first of them."""
        outputs = self.outputs(part)
        value = (torch.cat([coefficients.rows[row] for row in part]) * outputs.logprobs).sum()
        if outputs.learned is None:
            return value
        nothing = torch.zeros_like(outputs.learned[0])
        weights = [coefficients.learned.pop(place, nothing) for place in self._looked_at(part)]
        return value + (torch.stack(weights) * outputs.learned).sum()

    def _loss(self, rows: list[int], outputs: Outputs, targets: Targets, step: Step, tally: Tally) -> Loss:
        """The loss of some rows, and its numbers to the tally."""
        device = outputs.logprobs.device
        part: Groups = self.chosen.groups.part(rows, step).to(device)
        if self._by_row and outputs.learned is not None:
            outputs = Outputs(outputs.logprobs, part.to_places(outputs.learned))
        loss = self.objective.loss(part, targets.part(self.chosen.groups, rows).to(device), outputs, self.settings)
        tally.add(rows, part, outputs.logprobs.detach(), part.anchor(self.match.anchor(self.settings)), loss)
        return loss

    def _split(self, values: Tensor, rows: list[int]) -> Sequence[Tensor]:
        return values.split(self.rows.completion_ids.lengths[rows].tolist())

    def _looked_at(self, rows: list[int]) -> list[int]:
        """What the method's head looks at in some rows: each of them, or their groups."""
        return rows if self._by_row else sorted({row // self._size for row in rows})


def _nothing(outputs: Outputs) -> Tensor:
    return sum((each.sum() * 0 for each in (outputs.logprobs, outputs.learned) if each is not None), torch.zeros(()))
