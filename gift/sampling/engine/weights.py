"""What vLLM multiplies by, compared with a policy's files, to the bit: after new weights were put into an old engine.

On a CPU a kernel packs its weights into memory of its own, and may go on with the old ones though the parameter is new.
So such a layer is not asked for its parameter: it is given rows of the unit matrix, and what comes out are columns of
what it multiplies by.
"""

import hashlib
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gift.policy.adapter import read_adapter_config
from gift.workers.worker import Unfit

Tensor = torch.Tensor
COLUMNS = 64
"""Of what a kernel has packed, so many columns are compared, others each time: where one stayed behind after a step of
training, thousands of these numbers are others. All of them would be the work of a long prompt."""


class Stale(Unfit):
    """An engine whose weights are not those of the policy, or cannot be compared with them."""


def check_weights(model: Any, folder: Path, num_columns: int = COLUMNS) -> None:
    """The weights of a vLLM model (on one device) against the files in `folder`; raises `Stale`.

    Each tensor of the files must be in the model, each parameter of the model in the files.
    """
    with ExitStack() as stack:
        files = {
            name: file
            for path in sorted(folder.glob("*.safetensors"))
            for file in [stack.enter_context(safe_open(path, framework="pt"))]
            for name in file.keys()  # noqa: SIM118 - it is no dict
        }
        layers = {name: _base(layer) for name, layer in model.named_modules() if not _is_below_adapter(name)}
        wanted = _places(model, list(files), layers)
        for (name, leaf), sources in wanted.items():
            expected = torch.cat([files[source].get_tensor(source) for source in sources])
            if name not in layers or leaf not in layers[name]._parameters:
                raise Stale(f"{sources[0]} has no place in the engine that it could be compared with")
            _compare(layers[name], leaf, expected, num_columns, f"{name}.{leaf}")
    for name, layer in layers.items():
        for leaf, parameter in layer._parameters.items():
            if parameter is not None and (name, leaf) not in wanted:
                raise Stale(f"{name}.{leaf} is in no file that it could be compared with")


def check_adapter(model: Any, folder: Path) -> None:
    """The low-rank matrices of the one adapter that is loaded against its files; raises `Stale`."""
    config = read_adapter_config(folder)
    scaling = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = {name.removeprefix("base_model.model."): name for name in file.keys()}  # noqa: SIM118
        used = set()
        for path, layer in model.named_modules():
            if not hasattr(layer, "lora_a_stacked"):
                continue
            for letter, stacked in (("A", layer.lora_a_stacked), ("B", layer.lora_b_stacked)):
                rooms = stacked if isinstance(stacked, tuple) else (stacked,)
                for part, room in zip(_parts(model, path), (each[0].squeeze(0) for each in rooms), strict=True):
                    key = f"{part}.lora_{letter}.weight"
                    given = file.get_tensor(names[key]) if key in names else torch.zeros(0, 0)
                    rows, columns = given.shape
                    expected = torch.zeros_like(room)
                    expected[:rows, :columns] = given.to(room.dtype) * (scaling if letter == "B" else 1)
                    if not torch.equal(room, expected):
                        raise Stale(f"{part}.lora_{letter} is another than in {folder}")
                    used.add(key)
        if missing := names.keys() - used:
            raise Stale(f"{min(missing)} has no place in the engine that it could be compared with")


def fixed(model: Any, addresses: bool) -> dict[str, str]:
    """What must stay as it is when a model gets other weights: its buffers; where kernels are recorded, addresses."""
    found = {}
    for name, buffer in model.named_buffers():
        data = buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = hashlib.sha256(data).hexdigest()
    if addresses:
        found |= {f"address of {name}": str(each.data_ptr()) for name, each in model.named_parameters()}
    return found


def _base(layer: Any) -> Any:
    """A layer without the wrapper that adds an adapter."""
    return getattr(layer, "base_layer", layer)


def _is_below_adapter(name: str) -> bool:
    return "base_layer" in name.split(".")


def _parts(model: Any, path: str) -> list[str]:
    """The names in a checkpoint of the layers that one of vLLM's is made of, in their order."""
    above, _, last = path.rpartition(".")
    return [f"{above}.{part}" if above else part for part in model.packed_modules_mapping.get(last, [last])]


def _places(model: Any, names: list[str], layers: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """For each parameter (layer, leaf) the tensors of the files that it is made of, in their order."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renamed = {(mapper.get_rename_mapper().map_name(name) or name) if mapper else name: name for name in names}
    part_of = {part: (path, index) for path in layers for index, part in enumerate(_parts(model, path))}
    found: dict[tuple[str, str], dict[int, str]] = {}
    for name, source in renamed.items():
        above, _, leaf = name.rpartition(".")
        path, index = part_of.get(above, (above, 0))
        found.setdefault((path, leaf), {})[index] = source
    ordered = {place: [parts[index] for index in sorted(parts)] for place, parts in found.items()}
    for path, layer in layers.items():  # a head that is tied stands in no file: its weights are those of the embedding
        if (path, "weight") not in ordered and type(layer).__name__ == "ParallelLMHead":
            tied = [place for place in ordered if type(layers.get(place[0])).__name__ == "VocabParallelEmbedding"]
            if len(tied) == 1:
                ordered[path, "weight"] = ordered[tied[0]]
    return ordered


def _compare(layer: Any, leaf: str, expected: Tensor, num_columns: int, name: str) -> None:
    parameter = layer._parameters[leaf]
    packed = leaf == "weight" and hasattr(layer, "cpu_linear")
    expected = expected.to(parameter.device, parameter.dtype)
    if parameter.numel() or not packed:
        _same(parameter.detach(), expected, name)
    if packed:
        size = expected.shape[1]
        columns = torch.tensor(sorted(random.Random().sample(range(size), min(num_columns, size))))
        units = torch.zeros(len(columns), size, dtype=expected.dtype)
        units[torch.arange(len(columns)), columns] = 1
        found = layer.quant_method.apply(layer, units).T
        _same(found, expected[:, columns], f"{name}, as its kernel has it,")


def _same(found: Tensor, expected: Tensor, name: str) -> None:
    """Rows that vLLM adds, for a vocabulary of a round size, are zeros."""
    rows = len(expected)
    equal = found.shape[1:] == expected.shape[1:] and torch.equal(found[:rows].float(), expected.float())
    if not equal or found[rows:].any():
        raise Stale(f"{name} is another than in the policy's files")
