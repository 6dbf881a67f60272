"""The law of a policy folder: which files a model's folder must have, its tokenizer, its context, its stored dtype."""

import json
import shutil
from pathlib import Path
from typing import Any

from gift.policy.lineage import LINEAGE_FILE
from gift.policy.refusals import file_refusals, text_config
from gift.project.errors import UserError

MODEL_CONFIGS = frozenset({"config.json", "generation_config.json"})


def check_files(folder: Path) -> None:
    """Refuse a model folder that transformers or vLLM could not open, or only with pickles or remote code."""
    for reason in file_refusals(folder):
        raise UserError(f"{folder}: {reason}")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, as the refusals want it (`text_config`)."""
    path = folder / "config.json"
    try:
        return text_config(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch it again") from None


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


def stored_in_bfloat16(folder: Path) -> bool:
    """Whether all weights of a policy folder are bfloat16, so that they can be opened in it without loss."""
    from safetensors import safe_open

    check_files(folder)
    dtypes = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            dtypes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return dtypes == {"BF16"}


def max_model_len(folder: Path, wanted: int | None, section: str) -> int:
    """The context in tokens: what the model can, or less if `wanted` says so."""
    limit: int | None = read_config(folder).get("max_position_embeddings")
    length = wanted or limit
    if length is None:
        raise UserError(
            f"params.yaml: {section}.max_model_len: the model in {folder} does not tell its context; set it"
        )
    if limit is not None and length > limit:
        raise UserError(
            f"params.yaml: {section}.max_model_len: {wanted}: the policy's context is {limit} tokens; lower it"
        )
    return length
