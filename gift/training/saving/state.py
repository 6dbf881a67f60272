"""The training state on disk: weights and moments of all that trains, in one file or in shards, read one by one."""

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gift.policy.folder import Lineage
from gift.project.door import file_digest
from gift.project.errors import UserError
from gift.project.work import note_unit, whole_file, write_json
from gift.training.engine import KINDS, Engine
from gift.training.learned import refuse_other_head
from gift.training.ranks import from_rank_0
from gift.training.saving.shards import Key, check_written, cut, file_names, in_waves, of_all_ranks


@dataclass(frozen=True)
class Unsealed:
    """What the ranks gathered of a state, on rank 0; it is one only with its facts, which may be known later.

    One file is held until then. Shards are written, but count for nothing without their index: so a state that replaces
    another one is that other one until the moment when the index is.
    """

    path: Path  # of the one file
    step: int
    held: dict[str, Tensor]
    files: dict[str, list[str]]  # the shards, and the tensors in each

    def seal(self, facts: Mapping[str, Any]) -> Path:
        """Write the file that has the facts (JSON), and remove those of a state that was there before."""
        header = json.dumps({"optimizer_step": self.step, **facts}, sort_keys=True)
        index = _index_of(self.path)
        if self.held:
            with whole_file(self.path) as temporary:
                save_file(self.held, temporary, metadata={"gift": header})
            index.unlink(missing_ok=True)
        else:
            placed = {name: file for file, names in self.files.items() for name in names}
            write_json(index, {"metadata": {"gift": header}, "weight_map": placed})
            self.path.unlink(missing_ok=True)
        for path in self.path.parent.glob(f"{self.path.stem}-*.safetensors"):
            if path.name not in self.files:
                path.unlink()
        return self.path if self.held else index


class Stored:
    """A state that `Unsealed.seal` wrote: nothing of it is in memory, files are mapped and read where asked for."""

    def __init__(self, path: Path) -> None:
        """path: the one file, or the index of the shards; a damaged or missing file is refused by name."""
        self.path, reading = path, path
        self.shapes: dict[str, dict[str, torch.Size]] = {}
        self._files: dict[str, Any] = {}
        try:
            index = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else None
            facts: Any = json.loads(index["metadata"]["gift"]) if index else None
            placed: dict[str, set[str]] = {}
            for key, name in index["weight_map"].items() if index else ():
                placed.setdefault(name, set()).add(key)
            for name in sorted(placed) if index else [path.name]:
                reading = path.with_name(name)
                file = safe_open(reading, framework="pt")
                own = json.loads((file.metadata() or {})["gift"])
                facts = facts or own
                if own["optimizer_step"] != facts["optimizer_step"]:
                    raise ValueError("it belongs to another optimizer step")
                if index and (wrong := sorted(placed[name] ^ set(file.keys()))):
                    raise ValueError(f"it should have other tensors: {wrong[0]}")
                self._files |= dict.fromkeys(file.keys(), file)
            self.facts: dict[str, Any] = facts
            self.step = int(facts["optimizer_step"])
            for key, file in self._files.items():
                kind, name = key.split("/", 1)
                self.shapes.setdefault(kind, {})[name] = torch.Size(file.get_slice(key).get_shape())
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            first = "it is missing" if isinstance(error, FileNotFoundError) else (str(error).splitlines() or [""])[0]
            remedy = "remove its folder, then `dvc checkout`"
            raise UserError(f"{reading}: not a readable training state ({first}); {remedy}") from None

    def tensor(self, kind: str, name: str) -> Tensor:
        """A tensor whose memory is the file's pages."""
        tensor: Tensor = self._files[f"{kind}/{name}"].get_tensor(f"{kind}/{name}")
        return tensor


def write_state(engine: Engine, path: Path, stem: str = "") -> Unsealed | None:
    """Gather the state on all ranks, each of which writes the shards that it owns; what is to be sealed, on rank 0.

    path: of the file that it is where it fits in one. stem: of the names of the shards, if not that of the file.
    """
    shapes, step = engine.shapes, engine.steps
    shards = cut({(kind, name): 4 * shape.numel() for name, shape in shapes.items() for kind in KINDS})
    if len(shards) == 1:
        held = in_waves(engine, shards, torch.float32, lambda _, tensors: _named(tensors))
        return Unsealed(path, step, held[0], {}) if engine.rank == 0 else None
    names = file_names(stem or path.stem, len(shards))
    metadata = {"gift": json.dumps({"optimizer_step": step})}

    def write(number: int, tensors: dict[Key, Tensor]) -> tuple[list[str], str]:
        target, named = path.with_name(names[number]), _named(tensors)
        temporary = target.with_name(f"{target.name}.tmp")
        save_file(named, temporary, metadata=metadata)
        found = check_written(temporary, named)
        digest = file_digest(temporary)
        os.replace(temporary, target)
        return sorted(found), digest

    from_rank_0(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    written = of_all_ranks(in_waves(engine, shards, torch.float32, write))
    if engine.rank:
        return None
    for name, (_, digest) in zip(names, written, strict=True):
        note_unit(path.with_name(name), digest)
    return Unsealed(path, step, {}, {name: tensors for name, (tensors, _) in zip(names, written, strict=True)})


def find_state(path: Path) -> Path | None:
    """What there is of the state that is `path` where it is one file: its index, or that file."""
    return next((each for each in (_index_of(path), path) if each.exists()), None)


def write_checkpoint(engine: Engine, path: Path, facts: Mapping[str, Any]) -> None:
    """A state to go on from after a kill, in the place of the one before, which counts until this one is whole."""
    unsealed = write_state(engine, path, f"{path.stem}-{engine.steps}")
    if unsealed is not None:
        unsealed.seal(facts)


def read_checkpoint(path: Path) -> Stored | None:
    """That of an interrupted run, where it is whole: damaged files have been removed by now.

    The index of others goes too. Shards that a run writes again must not stand for it beside those that were left.
    """
    found = find_state(path)
    if found is not None and found != path:
        names = json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()
        if not all(path.with_name(name).exists() for name in set(names)):
            found.unlink()
            found = None
    return None if found is None else Stored(found)


def parents_state(optimizer: Path, parent: Lineage, names: Collection[str]) -> Stored | None:
    """The state that the round before left with its policy; None for the base, which has none.

    `names` are those of the parameters that are to go on from it.
    """
    path = find_state(optimizer / "state.safetensors")
    if path is None:
        if not (optimizer / "state.json").exists():
            raise UserError(
                f"{optimizer}: no optimizer state; `dvc pull {optimizer}`, or set update.optimizer_state to reset"
            )
        if parent.round:
            raise UserError(
                f"{optimizer}: belongs to the base policy, the round starts from one of round {parent.round}; `dvc "
                "checkout` brings the pair back, or set update.optimizer_state to reset"
            )
        return None
    state = Stored(path)
    if state.facts.get("policy") != parent.digest:
        raise UserError(
            f"{path}: belongs to policy {str(state.facts.get('policy'))[:12]}, the round starts from "
            f"{parent.digest[:12]}; `dvc checkout` brings the pair back, or set update.optimizer_state to reset"
        )
    refuse_other_head(path, set(state.shapes.get("weight", {})), set(names))
    return state


def go_on(engine: Engine, look: Callable[[], Stored | None]) -> dict[str, Any] | None:
    """Go on from the state that `look` finds, on rank 0 alone; returns its facts, or None where there is none."""
    found: list[Stored] = []

    def facts() -> dict[str, Any] | None:
        if (read := look()) is None:
            return None
        found.append(read)
        return read.facts

    known = from_rank_0(facts)
    if known is not None:
        engine.load(found[0] if found else None)
    return known


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def _named(tensors: Mapping[Key, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{name}": tensor for (kind, name), tensor in tensors.items()}
