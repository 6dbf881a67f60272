"""A policy folder: a Hugging Face model (safetensors, tokenizer) and gift.json, its digest and lineage."""

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gift.project.errors import UserError
from gift.project.work import tree_digest, write_json

LINEAGE_FILE = "gift.json"
MODEL_CONFIGS = frozenset({"config.json", "generation_config.json"})


class Lineage(BaseModel):
    """Where a policy comes from. `initial` and `parent` are digests; counts run over all rounds since the base."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    digest: str
    initial: str
    parent: str | None = None
    round: int = 0
    prompts_consumed: int = 0
    optimizer_steps: int = 0
    completion_tokens: int = 0


def policy_digest(folder: Path) -> str:
    """sha256 over every file of the folder but gift.json."""
    return tree_digest(folder, exclude=frozenset({LINEAGE_FILE}))


def read_lineage(folder: Path, verify: bool = True) -> Lineage:
    """gift.json of a policy folder; with `verify` the files must still be those that the digest was taken of."""
    path = folder / LINEAGE_FILE
    try:
        lineage = Lineage.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no policy here ({LINEAGE_FILE} is missing); `dvc repro` makes it, `dvc pull` fetches it"
        ) from None
    except (json.JSONDecodeError, ValidationError):
        raise UserError(
            f"{path}: is damaged; remove the folder, then `dvc checkout` or `dvc repro` brings it back"
        ) from None
    if verify and policy_digest(folder) != lineage.digest:
        raise UserError(
            f"{folder}: its files are not those of digest {lineage.digest[:12]} in {LINEAGE_FILE}: they were "
            "changed after the stage that made them; `dvc checkout` (base: `dvc repro -f -s base`) brings them back"
        )
    return lineage


def write_lineage(folder: Path, **fields: Any) -> Lineage:
    """Take the digest of a finished policy folder and write its gift.json; without `initial` it is its own initial."""
    digest = policy_digest(folder)
    lineage = Lineage(**{"digest": digest, "initial": digest, **fields})
    write_json(folder / LINEAGE_FILE, lineage.model_dump())
    return lineage


def check_files(folder: Path) -> None:
    """Refuse a model folder that transformers or vLLM could not open, or only with pickles or remote code."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no model (config.json is missing); base.model must be a hub id or a transformers folder"
        )
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: no *.safetensors weights (pickled weights are not read); save the model with save_pretrained"
        )
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"{folder}: no tokenizer beside the model; save one there with tokenizer.save_pretrained")


def copy_companions(source: Path, folder: Path, leave: frozenset[str] = frozenset()) -> None:
    """Copy what stands beside a policy's weights (tokenizer, templates) and is not in `folder` yet."""
    for path in sorted(source.iterdir()):
        is_weight = path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")
        left = is_weight or path.name in leave | {LINEAGE_FILE} or (folder / path.name).exists()
        if path.is_file() and not left:
            shutil.copyfile(path, folder / path.name)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a policy folder."""
    from transformers import AutoTokenizer

    check_files(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_model(folder: Path, dtype: str, device: str = "cpu") -> Any:
    """The causal LM of a policy folder in evaluation mode, on `device`, in 'float32' or 'bfloat16'."""
    import torch
    from transformers import AutoModelForCausalLM

    check_files(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="sdpa",
    )
    return model.to(device).eval()


def stored_in_bfloat16(folder: Path) -> bool:
    """Whether all weights of a policy folder are bfloat16, so that `load_model` reads them so without loss."""
    from safetensors import safe_open

    check_files(folder)
    dtypes = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return dtypes == {"BF16"}


def max_model_len(folder: Path, wanted: int | None, section: str) -> int:
    """The context in tokens: what the model can, or less if `wanted` says so."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    limit = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    if limit is None and wanted is None:
        raise UserError(
            f"params.yaml: {section}.max_model_len: the model in {folder} does not tell its context; set it"
        )
    if wanted is not None and limit is not None and wanted > limit:
        raise UserError(
            f"params.yaml: {section}.max_model_len: {wanted}: the policy's context is {limit} tokens; lower it"
        )
    return int(wanted or limit)
