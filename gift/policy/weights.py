"""The weights of a model folder by name and shape, from the headers of its files: whole files only."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gift.project.errors import UserError

_LFS = b"version https://git-lfs"


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight; a missing file, one that is cut off and a Git LFS pointer are a `UserError`."""
    paths, index = sorted(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        paths = [folder / name for name in names]
        if missing := [path.name for path in paths if not path.is_file()]:
            text = f"{len(missing)} of {len(names)} weight files are missing, {missing[0]} first; fetch it again"
            raise UserError(f"{folder}: {text}")
    return {name: shape for path in paths for name, shape in _shapes(path)}


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with path.open("rb") as start:
        if start.read(len(_LFS)) == _LFS:
            raise UserError(f"{path}: a Git LFS pointer, not weights; run `git lfs pull` there")
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                yield name, tuple(file.get_slice(name).get_shape())
    except SafetensorError as error:
        raise UserError(f"{path}: cut off, or no safetensors file ({error}); fetch it again") from None
