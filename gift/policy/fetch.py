"""The starting policy as a folder: links to a local model, or to one fetched from the hub; and its weights' shapes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gift.policy.folder import LINEAGE_FILE, check_files
from gift.policy.settings import Base
from gift.project.errors import UserError

HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_LFS = b"version https://git-lfs"


def fetch_base(base: Base, folder: Path) -> None:
    """Fill `folder` with links to the model's files: a policy that can be fetched again is not kept twice."""
    local = Path(base.model)
    source = local if local.is_dir() else _fetch(base.model, base.revision)
    folder.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in HUB_FILES) and path.name != LINEAGE_FILE:
            (folder / path.name).symlink_to(path.resolve())
    check_files(folder)
    weight_shapes(folder)


def _fetch(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if problem := name_problem(model):
        raise UserError(problem)
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"params.yaml: base.model: '{model}' could not be fetched from the hub ({type(error).__name__}); check the "
            "name and the network, or give a local model folder"
        ) from None


def name_problem(model: str) -> str | None:
    """Why a name that is no folder here cannot be one of the hub's either."""
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", model):
        return None
    return f"params.yaml: base.model: '{model}' is neither 'arithmetic', a local folder, nor a hub id (owner/name)"


def in_cache(base: Base) -> Path | None:
    """The model's folder in the hub's cache, if it was fetched before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base.model, revision=base.revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


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
