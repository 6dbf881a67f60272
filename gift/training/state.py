"""Training state on disk, as safetensors only: the optimizer state of a round, and its checkpoints."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gift.project.errors import UserError
from gift.training.engine import Engine, FullState
from gift.training.learned import refuse_other_head
from gift.training.ranks import from_rank_0


def save_state(path: Path, state: FullState, facts: Mapping[str, Any]) -> None:
    """One safetensors file with `<kind>/<parameter>` tensors and `facts` (JSON) in its header, by tmp and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {
        f"{kind}/{name}": tensor.contiguous() for kind in state.tensors for name, tensor in state.tensors[kind].items()
    }
    header = json.dumps({"optimizer_step": state.step, **facts}, sort_keys=True)
    save_file(tensors, temporary, metadata={"gift": header})
    os.replace(temporary, path)


def load_state(path: Path) -> tuple[FullState, dict[str, Any]]:
    """The state and facts that `save_state` wrote; a damaged file is refused by name."""
    kinds: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["gift"])
            for key in file.keys():  # noqa: SIM118 - a safe_open file is no dict
                kind, name = key.split("/", 1)
                kinds.setdefault(kind, {})[name] = file.get_tensor(key)
        return FullState(facts["optimizer_step"], kinds), facts
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: not a readable training state ({first}); remove its folder, then `dvc checkout`"
        ) from None


def parents_state(optimizer: Path, policy: str, names: set[str]) -> tuple[FullState, dict[str, Any]] | None:
    """The state that the round before left with its policy (a digest); None for the base, which has none.

    `names` are those of the parameters that are to go on from it.
    """
    path = optimizer / "state.safetensors"
    if not path.exists():
        if not (optimizer / "state.json").exists():
            raise UserError(
                f"{optimizer}: no optimizer state; `dvc pull {optimizer}`, or set update.optimizer_state to reset"
            )
        return None
    state, facts = load_state(path)
    if facts["policy"] != policy:
        raise UserError(
            f"{path}: belongs to policy {facts['policy'][:12]}, the round starts from {policy[:12]}; `dvc "
            "checkout` brings the pair back, or set update.optimizer_state to reset"
        )
    refuse_other_head(path, set(state.tensors["weight"]), names)
    return state, facts


def go_on(engine: Engine, look: Callable[[], tuple[FullState, dict[str, Any]] | None]) -> dict[str, Any] | None:
    """Go on from the state that `look` finds, on rank 0 alone; returns its facts, or None where there is none."""
    found: list[FullState] = []

    def facts() -> dict[str, Any] | None:
        if (read := look()) is None:
            return None
        found.append(read[0])
        return read[1]

    known = from_rank_0(facts)
    if known is not None:
        engine.load_full_state(found[0] if found else None)
    return known
