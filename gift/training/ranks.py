"""The ranks of a training: joining the others, losing one of them, and what rank 0 alone finds out for all."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from io import StringIO
from typing import Any, TypeVar

import torch

from gift.project.errors import UserError

T = TypeVar("T")
_VERBOSE = os.environ.get("GIFT_VERBOSE") == "1"  # let DeepSpeed talk
# A launcher reports the first rank that it finds ended, and looks once a second: the rank at fault is to be that one.
_GRACE_SECONDS = 5
# In errors of collectives that another rank caused. (NCCL mostly ends the process itself: see gift/launch.py.)
_ANOTHER_RANK = ("gloo", "ncclRemoteError", "NCCL communicator was aborted")


@contextmanager
def distributed(timeout_minutes: float = 30.0) -> Iterator[torch.device]:
    """Join the launcher's processes (torchrun, deepspeed, srun), or stand alone; yields this rank's device.

    gloo on CPU, nccl on GPU. Without a launcher the group's store is in memory: no port. May be entered again.
    A rank that waits for another longer than `timeout_minutes` ends with an error. What all ranks refuse, rank 0 says:
    the others wait a moment, in which the launcher ends them.
    """
    cuda = torch.cuda.is_available()
    if torch.distributed.is_initialized():  # an outer `distributed()` owns the group
        yield own_device()
        return
    launched = _launched(cuda)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not launched or os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    where: dict[str, Any] = {"device_id": own_device()} if cuda else {}
    if not launched:
        where |= {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
    if cuda:
        torch.cuda.set_device(own_device())
    timeout = timedelta(minutes=timeout_minutes)
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=timeout, **where)
    with quiet():
        import deepspeed

        if not cuda:
            # Else DeepSpeed compiles a shared-memory all-reduce (g++, ninja, 40 s), used by nothing but its
            # tensor-parallel inference. It has no switch; this table of usable ops is what DeepSpeed asks.
            deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed()
        # DeepSpeed works on a copy of the group, whose timeout it leaves at torch's default.
        torch.distributed.distributed_c10d._set_pg_timeout(timeout, deepspeed.utils.groups._clone_world_group())
    deepspeed.utils.logging.set_log_level_from_string("info" if _VERBOSE else "error")
    if not _VERBOSE:
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # ZeRO-3's calls
    goodbye = not launched
    try:
        yield own_device()
        goodbye = True
    except UserError:
        if launched and torch.distributed.get_rank():
            time.sleep(_GRACE_SECONDS)
        raise
    except RuntimeError as error:
        if not launched or not any(words in str(error) for words in _ANOTHER_RANK):
            raise
        raise UserError(_why_alone(str(error), timeout_minutes)) from None
    finally:  # after an error on one rank of many, a common goodbye could wait for ever on the others
        if goodbye:
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None


def from_rank_0(look: Callable[[], T]) -> T:
    """What `look` returns on rank 0, on every rank (pickled); the others do not look.

    So no rank enters a collective because of a file that another does not see. An error of `look` is raised on rank 0
    alone: the other ranks end without a word, after it.
    """
    found: list[Any] = [None, None]  # the value, and whether there is one
    failed: Exception | None = None
    if torch.distributed.get_rank() == 0:
        try:
            found = [look(), True]
        except Exception as error:
            failed = error
    torch.distributed.broadcast_object_list(found, 0, device=own_device())
    if failed:
        raise failed
    if not found[1]:
        time.sleep(_GRACE_SECONDS)
        sys.exit(1)
    value: T = found[0]
    return value


def _why_alone(error: str, timeout_minutes: float) -> str:
    """One line for a rank whose collective failed, for that is never its own fault."""
    first = f"rank {os.environ['RANK']}: "
    if "Timed out" in error or "timeout" in error:
        return (
            f"{first}waited {timeout_minutes:g} minutes for another rank, which may hang or be busy; look at what it "
            "said, or raise launch.yaml: update.timeout_minutes"
        )
    time.sleep(_GRACE_SECONDS)
    return f"{first}another rank ended; its own message says why"


def own_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def share_cores() -> None:
    """Launchers give every process one thread; give each its share of the machine's cores instead."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if local > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def _launched(cuda: bool) -> bool:
    """Whether a launcher started us. srun names ranks its own way; give them torch's names."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        alone = cuda and torch.cuda.device_count() == 1  # --gpus-per-task=1: each task sees its own GPU as number 0
        os.environ["LOCAL_RANK"] = "0" if alone else os.environ["SLURM_LOCALID"]
        os.environ.update(RANK=os.environ["SLURM_PROCID"], WORLD_SIZE=os.environ["SLURM_STEP_NUM_TASKS"])
    missing = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"} - os.environ.keys()
    if "RANK" in os.environ and missing:
        raise UserError(f"RANK is set but not {', '.join(sorted(missing))}: start with torchrun, deepspeed or srun")
    return "RANK" in os.environ


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow what DeepSpeed prints and warns about while it is imported and set up."""
    with warnings.catch_warnings(), redirect_stdout(sys.stdout if _VERBOSE else StringIO()):
        warnings.simplefilter("default" if _VERBOSE else "ignore")
        yield
