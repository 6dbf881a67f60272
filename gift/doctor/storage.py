"""Whether git and DVC can keep what the rounds make, and whether it fits: rough sizes against the free space."""

import configparser
import os
import shutil
import sys
from pathlib import Path

from gift.doctor.findings import Finding, amount, refusal
from gift.doctor.model import Model
from gift.doctor.settings import Project
from gift.project.errors import UserError
from gift.project.yaml import read_yaml

THEME = "storage"
STATE_BYTES = 12  # of a parameter that trains: float32 weight and the two moments of Adam (docs/pipeline.md)
TOKEN_BYTES = 20  # of a completion's token, at most about: id, text, and three log-probs
NUM_COPIES = 2  # in the workspace and in DVC's cache, where the file system can neither link nor share them


def keeping_findings() -> list[Finding]:
    """git, DVC's folder and cache, and a dvc.yaml whose code is all there."""
    findings = []
    here = Path().absolute()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        findings.append(Finding("error", THEME, "no git repository; run `git init` in the project's folder"))
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if root is None:
        findings.append(
            Finding("error", THEME, "no .dvc folder; run `dvc init` in the project's folder, or clone it whole")
        )
    else:
        findings += _cache_findings(root / ".dvc")
    if not shutil.which("dvc") and not (Path(sys.executable).parent / "dvc").exists():
        findings.append(Finding("error", THEME, "`dvc` is not on this machine's PATH; `source .venv/bin/activate`"))
    findings += _graph_findings()
    return findings or [Finding("ok", THEME, "git, DVC, its cache and dvc.yaml are there")]


def _cache_findings(dvc: Path) -> list[Finding]:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        config.read([dvc / "config", dvc / "config.local"], encoding="utf-8")
    except configparser.Error as error:
        return [Finding("error", THEME, f"not readable: {str(error).splitlines()[0]}", str(dvc / "config"))]
    cache = dvc / config.get("cache", "dir", fallback="cache")
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return []
    text = f"DVC's cache {cache} cannot be written; free it, or `dvc cache dir --local FOLDER`"
    return [Finding("error", THEME, text, ".dvc/config: cache.dir")]


def _graph_findings() -> list[Finding]:
    """dvc.yaml is a map of stages, and no file of code that they list is missing."""
    path = Path("dvc.yaml")
    try:
        stages = read_yaml(path).get("stages")
    except UserError as error:
        return [refusal(THEME, error)]
    if not isinstance(stages, dict):
        return [Finding("error", THEME, "has no map `stages`; take it back from git", str(path))]
    listed = {
        str(dep)
        for stage in stages.values()
        if isinstance(stage, dict)
        for dep in (stage.get("do") or stage).get("deps", [])
    }
    missing = sorted(
        dep for dep in listed if not dep.startswith("data/") and "${" not in dep and not Path(dep).exists()
    )
    if not missing:
        return []
    text = f"{len(missing)} dependencies are missing: {', '.join(missing[:5])}; take them back from git"
    return [Finding("error", THEME, text, f"{path}: stages")]


def disk_findings(project: Project, model: Model, free: int) -> list[Finding]:
    """Room for the policies, optimizer states and tables of the rounds that are not made yet; `free` in bytes."""
    left = [name for name in project.rounds if not Path(f"data/rounds/{name}/policy").exists()]
    if not left:
        return [Finding("ok", THEME, f"every round is made; {amount(free)} free on the disk")]
    policy, tables = round_bytes(project, model)
    need = NUM_COPIES * (policy + tables) * len(left)
    text = (
        f"{len(left)} rounds need up to {amount(need)} ({amount(policy)} of policy and optimizer and up to "
        f"{amount(tables)} of tables each, twice where DVC copies), and {amount(free)} are free"
    )
    if free < policy:
        return [Finding("error", THEME, f"{text}: not even one round fits; make room, or use update.lora", "data")]
    if free < need:
        remedy = "make room, or let DVC link (`dvc config cache.type reflink,hardlink,copy`), or use update.lora"
        return [Finding("warning", THEME, f"{text}; {remedy}", "data")]
    return [Finding("ok", THEME, text)]


def round_bytes(project: Project, model: Model) -> tuple[int, int]:
    """Bytes that a round leaves: policy and optimizer state; and its tables, if every completion were the longest."""
    params = project.params
    trained = model.num_trained(project)
    width = 2 if params.update.dtype == "bfloat16" else 4
    generate, evaluate = params.generate, params.evaluate
    tokens = generate.prompts_per_round * generate.group_size * generate.max_tokens
    tokens += params.prepare.num_eval * (1 + evaluate.num_samples) * evaluate.max_tokens
    return trained * (width + STATE_BYTES), tokens * TOKEN_BYTES


def free_bytes() -> int:
    """Of the disk that holds the project."""
    return shutil.disk_usage(Path()).free
