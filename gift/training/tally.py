"""The numbers of an optimizer step: what this rank has seen of them, and their means over all ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gift.methods.groups import Groups, Loss, Step
from gift.methods.statistics import centre, spread

COMMON = ("loss", "log_ratio", "log_ratio_std", "kl", "entropy")


class Tally:
    """Sums of the parts of a step on one rank; `own` are the metrics that the method declares."""

    def __init__(self, groups: Groups, own: Sequence[str]) -> None:
        """groups: all of the round, with what trains in the mask."""
        self._own = tuple(own)
        self._names = (*COMMON, *own, *(f"{name}_known" for name in own))
        self._sums = torch.zeros(len(self._names), dtype=torch.float64)
        self._mask = groups.mask
        self._log_ratio = torch.zeros_like(groups.mask, dtype=torch.float32)

    @torch.no_grad()
    def add(self, rows: Sequence[int], groups: Groups, logprobs: Tensor, anchor: Tensor, loss: Loss) -> None:
        """A part: its rows of the round, as `groups`, and what the loss said of it; anchor: log-probs [N]."""
        to_reference = groups.ref_logprobs - logprobs
        sums = {
            "loss": loss.value.detach(),
            "kl": (to_reference.exp() - to_reference - 1).sum(),
            "entropy": -logprobs.sum(),
            **{name: loss.metrics[name].nansum() for name in self._own},
            **{f"{name}_known": (~loss.metrics[name].isnan()).sum() for name in self._own},
        }
        unknown = torch.zeros((), device=logprobs.device)  # until the groups are whole
        self._sums += torch.stack([sums.get(name, unknown).double() for name in self._names]).cpu()
        of_rows = groups.sum_tokens(logprobs - anchor).flatten()[groups.order]
        self._log_ratio.view(-1)[list(rows)] = of_rows.float().cpu()

    def means(self, own_groups: Sequence[int], step: Step, device: torch.device) -> dict[str, float | None]:
        """Over groups (log_ratio: of each its mean, and its spread), tokens (kl to the reference by k3, entropy), or
        what is known (the method's own); loss is the sum. A collective: all ranks call it, with the groups they had."""
        log_ratio, mask = self._log_ratio[list(own_groups)], self._mask[list(own_groups)]
        self._sums[1] = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp_min(1)).sum()
        self._sums[2] = spread(centre(log_ratio, mask), mask).sum()
        everywhere = self._sums.to(device)
        torch.distributed.all_reduce(everywhere)
        total: Mapping[str, float] = dict(zip(self._names, everywhere.tolist(), strict=True))
        return {
            "loss": total["loss"],
            **{name: total[name] / step.num_groups for name in ("log_ratio", "log_ratio_std")},
            **{name: total[name] / step.num_tokens for name in ("kl", "entropy")},
            **{name: total[name] / known if (known := total[f"{name}_known"]) else None for name in self._own},
            "num_groups": step.num_groups,
            "num_tokens": step.num_tokens,
        }
