"""Whether git and DVC can keep what the rounds make, and whether it fits: rough sizes against the free space."""

import configparser
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from gift.doctor.findings import Finding, Theme, amount
from gift.doctor.model import Model
from gift.doctor.whole import Params, Project
from gift.project.code import missing_modules
from gift.project.errors import UserError
from gift.project.sections import read_yaml

say = Theme("storage")
STATE_BYTES = 12  # of a parameter that trains: float32 weight and the two moments of Adam (docs/pipeline.md)
TOKEN_BYTES = 20  # of a completion's token, at most about: id, text, and three log-probs
NUM_COPIES = 2  # in the workspace and in DVC's cache, where the file system can neither link nor share them


def keeping_findings() -> list[Finding]:
    """git, DVC's folder and cache, and a dvc.yaml whose dependencies are all there."""
    return list(_missing()) or [say.ok("git, DVC, its cache and dvc.yaml are there")]


def _missing() -> Iterator[Finding]:
    folders = (Path.cwd(), *Path.cwd().parents)
    if not any((folder / ".git").exists() for folder in folders):
        yield say.error("no git repository; run `git init` in the project's folder")
    dvc = next((folder / ".dvc" for folder in folders if (folder / ".dvc").is_dir()), None)
    if dvc is None:
        yield say.error("no .dvc folder; run `dvc init` in the project's folder, or clone it whole")
    else:
        yield from _cache_findings(dvc)
    if not shutil.which("dvc") and not (Path(sys.executable).parent / "dvc").exists():
        yield say.error("`dvc` is not on this machine's PATH; `source .venv/bin/activate`")
    try:
        stages = read_yaml(Path("dvc.yaml")).get("stages")
    except UserError as error:
        yield from say.refused(error)
        return
    if not isinstance(stages, dict):
        yield say.error("dvc.yaml: has no map `stages`; take it back from git")
        return
    bodies = [stage.get("do") or stage for stage in stages.values() if isinstance(stage, dict)]
    listed = {str(dep) for body in bodies for dep in body.get("deps", [])}
    own = sorted(dep for dep in listed if not dep.startswith("data/") and "${" not in dep)
    if missing := [dep for dep in own if not Path(dep).exists()] + missing_modules(Path.cwd()):
        text = f"{len(missing)} dependencies are missing: {', '.join(missing[:5])}; take them back from git"
        yield say.error(f"dvc.yaml: stages: {text}")


def _cache_findings(dvc: Path) -> Iterator[Finding]:
    config = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        config.read([dvc / "config", dvc / "config.local"], encoding="utf-8")
    except configparser.Error as error:
        yield say.error(f"not readable: {str(error).splitlines()[0]}", str(dvc / "config"))
        return
    cache = dvc / config.get("cache", "dir", fallback="cache")
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        text = f"DVC's cache {cache} cannot be written; free it, or `dvc cache dir --local FOLDER`"
        yield say.error(text, ".dvc/config: cache.dir")


def disk_findings(project: Project, model: Model, free: int) -> Iterator[Finding]:
    """Room for the policies, optimizer states and tables of the rounds that are not made yet; `free` in bytes."""
    left = [name for name in project.rounds if not Path(f"data/rounds/{name}/policy").exists()]
    if not left:
        yield say.ok(f"every round is made; {amount(free)} free on the disk")
        return
    sizes = [round_bytes(project.of(name), model) for name in left]
    (policy, tables), need = sizes[0], NUM_COPIES * sum(map(sum, sizes))
    text = (
        f"{len(left)} rounds need up to {amount(need)} ({amount(policy)} of policy and optimizer and up to "
        f"{amount(tables)} of tables each, twice where DVC copies), and {amount(free)} are free"
    )
    if free < policy:
        yield say.error(f"{text}: not even one round fits; make room, or use update.lora", "data")
    elif free < need:
        remedy = "make room, or let DVC link (`dvc config cache.type reflink,hardlink,copy`), or use update.lora"
        yield say.warning(f"{text}; {remedy}", "data")
    else:
        yield say.ok(text)


def round_bytes(params: Params, model: Model) -> tuple[int, int]:
    """Bytes that a round leaves: policy and optimizer state; and its tables, if every completion were the longest."""
    width = 2 if params.update.dtype == "bfloat16" else 4
    generate, evaluate = params.generate, params.evaluate
    tokens = generate.prompts_per_round * generate.group_size * generate.max_tokens
    tokens += params.prepare.num_eval * (1 + evaluate.num_samples) * evaluate.max_tokens
    return model.num_trained(params) * (width + STATE_BYTES), tokens * TOKEN_BYTES
