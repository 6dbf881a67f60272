"""leave_one_out: each reward less the mean of the others of its group (RLOO, arXiv 2402.14740)."""

from gift.methods.groups import Groups, Shape, Targets
from gift.methods.statistics import centre
from gift.project.sections import Section


class LeaveOneOut(Section):
    """No choices."""


def leave_one_out(groups: Groups, _: LeaveOneOut) -> Targets:
    """r_i - mean_{j != i} r_j = n / (n - 1) (r_i - mean r); 0 in a group of one."""
    count = groups.mask.sum(-1, keepdim=True)
    return Targets(centre(groups.rewards, groups.mask) * count / (count - 1).clamp_min(1))


METHOD = Shape(LeaveOneOut, leave_one_out)
