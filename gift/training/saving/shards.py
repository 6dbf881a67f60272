"""Shards: tensors cut into files by their order and sizes alone, gathered and written by the ranks in turn."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from gift.project.errors import UserError
from gift.training.engine import Engine

T = TypeVar("T")
Key = tuple[str, str]
"""A kind of tensor and a parameter, as `Engine.tensor` takes them."""

SHARD_BYTES = 4 * 10**9  # a file is larger only where a single tensor is


def cut(sizes: Mapping[Key, int]) -> list[list[Key]]:
    """Tensors of these bytes, in their order, as full as shards may be: the same for any number of ranks."""
    shards: list[list[Key]] = [[]]
    room = SHARD_BYTES
    for key, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(key)
        room -= size
    return shards


def file_names(stem: str, count: int) -> list[str]:
    """Hugging Face's: model.safetensors, or model-00001-of-00003.safetensors and so on."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def in_waves(
    engine: Engine, shards: Sequence[Sequence[Key]], dtype: torch.dtype, keep: Callable[[int, dict[Key, Tensor]], T]
) -> dict[int, T]:
    """Gather all tensors in turn; the owner of a shard, rank number % world size, gets its tensors in `keep`.

    In a wave every rank fills one shard, and then all keep theirs at once: no rank holds more than one, and the tensor
    that is on its way. Returns what this rank's calls of `keep` returned, by the number of the shard.
    """
    kept = {}
    for first in range(0, len(shards), engine.world_size):
        held: dict[Key, Tensor] = {}
        for rank, shard in enumerate(shards[first : first + engine.world_size]):
            for kind, name in shard:
                tensor = engine.tensor(kind, name)
                if rank == engine.rank:
                    held[kind, name] = tensor.to("cpu", dtype, copy=True).contiguous()
                del tensor
        if held:
            kept[first + engine.rank] = keep(first + engine.rank, held)
    return kept


def of_all_ranks(kept: dict[int, T]) -> list[T]:
    """What all ranks kept, by the number of the shard, on each of them; all have written theirs then."""
    found: list[dict[int, T]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(found, kept)
    together = {number: each for of_rank in found for number, each in of_rank.items()}
    return [together[number] for number in sorted(together)]


def check_written(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The tensors in a file, and their bytes; a `UserError` where one of `tensors` is not in it to the bit.

    What stands there under a name that `tensors` does not have, is not compared.
    """
    sizes = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a safe_open file is no dict
            read = file.get_tensor(name)
            sizes[name] = read.nbytes
            if name in tensors and not torch.equal(_bytes(read), _bytes(tensors[name])):
                raise UserError(f"{path}: {name} reads otherwise than it was written; nothing was published: the disk?")
    return sizes


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)
