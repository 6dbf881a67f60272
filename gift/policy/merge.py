"""`gift merge`: a LoRA policy as one plain Hugging Face folder, for any tool, or as the base of another project."""

import os
import shutil
from pathlib import Path

from gift.policy.adapter import WEIGHTS_FILE, read_adapter_config
from gift.policy.folder import PolicyFiles, copy_companions, is_adapter, policy_digest, read_lineage
from gift.policy.open import open_policy
from gift.project.errors import UserError


def merge(policy: Path, out: Path, base: Path | None = None) -> str:
    """Write base + adapter to the new folder `out`, in the dtype that the adapter was trained in; returns that dtype.

    The sum is taken in float32. The folder has no gift.json: it is a model like any other, no policy of a round.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; nothing was changed. Name another folder, or remove it")
    trained_on = read_lineage(policy).base
    if not is_adapter(policy):
        raise UserError(f"{policy}: no adapter, but a whole model already; there is nothing to merge")
    base = base or Path(read_adapter_config(policy)["base_model_name_or_path"])
    if not base.is_dir():
        raise UserError(f"{base}: no such folder; run this in the project's folder, or name the base policy by --base")
    if (found := policy_digest(base)) != trained_on:
        raise UserError(f"{base}: is policy {found[:12]}, but the adapter is on {trained_on[:12]}; name it by --base")
    from peft import PeftModel
    from safetensors import safe_open

    with safe_open(policy / WEIGHTS_FILE, framework="pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    # Opened by PEFT alone, as anyone may open the folder.
    opened = open_policy(PolicyFiles(base), "float32")
    model = PeftModel.from_pretrained(opened, str(policy), torch_device="cpu").merge_and_unload()
    unfinished = out.with_name(out.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.to(dtype).save_pretrained(unfinished)
    copy_companions(base, unfinished)
    os.rename(unfinished, out)
    return str(dtype).removeprefix("torch.")
