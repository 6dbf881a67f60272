"""A policy's folder: what it must hold, its lineage, and where the weights lie, of a whole model or of an adapter."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from gift.policy.refusals import file_refusals, text_config
from gift.project.errors import UserError
from gift.project.work import tree_digest, write_json

LINEAGE_FILE = "gift.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's name
MODEL_CONFIGS = frozenset({"config.json", "generation_config.json"})


class Lineage(BaseModel):
    """Where a policy comes from. `base` and `parent` are digests; counts run over all rounds since the base."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1, 2] = 2
    digest: str
    base: str = Field(validation_alias=AliasChoices("base", "initial"))  # version 1, still read, called it `initial`
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
    """Take the digest of a finished policy folder and write its gift.json; without `base` it is its own base."""
    digest = policy_digest(folder)
    lineage = Lineage(**{"digest": digest, "base": digest, **fields})
    write_json(folder / LINEAGE_FILE, lineage.model_dump())
    return lineage


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
    length, key = wanted or limit, f"params.yaml: {section}.max_model_len"
    if length is None:
        raise UserError(f"{key}: the model in {folder} does not tell its context; set it")
    if limit is not None and length > limit:
        raise UserError(f"{key}: {wanted}: the policy's context is {limit} tokens; lower it")
    return length


@dataclass(frozen=True)
class PolicyFiles:
    """The folder of a whole model, and that of an adapter on top of it, if any."""

    model: Path
    adapter: Path | None = None

    @property
    def folder(self) -> Path:
        """The policy's own."""
        return self.adapter or self.model

    def as_json(self) -> dict[str, str | None]:
        return {"model": str(self.model), "adapter": str(self.adapter) if self.adapter else None}

    @classmethod
    def of_json(cls, content: Mapping[str, str | None]) -> "PolicyFiles":
        """What `as_json` gave, at the same working folder."""
        return cls(Path(content["model"] or ""), Path(content["adapter"]) if content["adapter"] else None)


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists()


def find_policy(folder: Path, base: Path) -> tuple[PolicyFiles, Lineage]:
    """The files and the lineage of a policy, each file hashed once; an adapter must have been trained on `base`."""
    lineage = read_lineage(folder)
    if not is_adapter(folder):
        return PolicyFiles(folder), lineage
    found = read_lineage(base).digest
    if found != lineage.base:
        raise UserError(
            f"{folder}: an adapter on the base policy {lineage.base[:12]}, but {base} is {found[:12]}; "
            "`dvc repro` trains it again on this one"
        )
    return PolicyFiles(base, folder), lineage


def find_reference(base: Path, policy: PolicyFiles, lineage: Lineage) -> tuple[PolicyFiles, str]:
    """The base as the reference of a round, and its digest; `policy` itself where it is the base."""
    found = read_lineage(base, verify=policy.model != base)  # hashed already, with the policy
    return (policy, lineage.digest) if found.digest == lineage.digest else (PolicyFiles(base), found.digest)
