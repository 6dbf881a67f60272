"""A miniature of the project that runs for real: a copy of the code with tiny settings, and its stages one by one."""

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forks
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
FILES = ("dvc.yaml", "params.yaml", "rounds.yaml", "launch.yaml")
ORDER = (
    "code",
    "overrides@r1",
    "prepare",
    "check_rewards",
    "base",
    "generate_eval_base",
    "evaluate_base",
    "generate@r1",
    "score@r1",
    "reference@r1",
    "update@r1",
    "generate_eval@r1",
    "evaluate@r1",
    "report",
)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
}
LAUNCH = {"score": {"workers": 1}, "update": {"checkpoint_every_steps": 1}}


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


TINY: dict[str, Any] = read_yaml(ROOT / "benchmarks/tiny.yaml")


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`settings` with `changes` laid over them, section by section; the map of rewards is replaced whole."""
    out = dict(settings)
    for key, value in changes.items():
        whole = not isinstance(value, dict) or not isinstance(out.get(key), dict) or key == "rewards"
        out[key] = value if whole else merge(out[key], value)
    return out


def code_folders() -> list[str]:
    """The folders of the project, data aside, that its stages depend on."""
    stages = read_yaml(ROOT / "dvc.yaml")["stages"].values()
    return sorted(
        {path.split("/")[0] for stage in stages for path in stage.get("do", stage)["deps"]} - {"data", *FILES}
    )


def make_project(folder: Path, seed: int = 0) -> Path:
    """The project's code and its own settings, made tiny, in `folder`."""
    for name in code_folders():
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    write_params(folder, {"seed": seed, **TINY})
    (folder / "launch.yaml").write_text(json.dumps(LAUNCH), encoding="utf-8")
    return folder


def write_params(folder: Path, changes: dict[str, Any]) -> None:
    """Lay changes over the folder's params.yaml (JSON is YAML)."""
    params = merge(read_yaml(folder / "params.yaml"), changes)
    (folder / "params.yaml").write_text(json.dumps(params, indent=1), encoding="utf-8")


def stage_of(folder: Path, address: str) -> dict[str, Any]:
    """One stage of dvc.yaml as DVC sees it: `update@r1` with its templates filled in."""
    name, _, key = address.partition("@")
    stage = read_yaml(folder / "dvc.yaml")["stages"][name]
    if key:
        parent = read_yaml(folder / "rounds.yaml")["rounds"][key]["from"]
        stage = json.loads(json.dumps(stage["do"]).replace("${key}", key).replace("${item.from}", parent))
    return dict(stage)


def command(folder: Path, address: str) -> list[str]:
    """The arguments after `python` of a stage's command."""
    return shlex.split(stage_of(folder, address)["cmd"])[1:]


def named(name: str = "r1", **paths: object) -> list[str]:
    """The arguments of a stage for the round `name`: `rollouts="x"` is --rollouts x."""
    return ["--round", name, *(str(word) for key, path in paths.items() for word in (f"--{key}", path))]


def outputs(folder: Path, address: str) -> list[Path]:
    stage = stage_of(folder, address)
    listed = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [folder / (entry if isinstance(entry, str) else next(iter(entry))) for entry in listed]


def remove_outputs(folder: Path, address: str) -> None:
    """As DVC does before it runs a stage."""
    for path in outputs(folder, address):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """No network, no other copy of the project in reach, and one thread."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, **QUIET}


def run_stages(folder: Path, addresses: Sequence[str] = ORDER, script: str = __file__) -> str:
    """Run stages in turn, each in a process of its own, all sharing the start of Python; returns what they said.

    Before the first stage of a round comes `overrides` of it, where that has not run.
    """
    rounds = dict.fromkeys(address.partition("@")[2] for address in addresses)
    new = [f"overrides@{key}" for key in rounds if key and not (folder / f"data/rounds/{key}/overrides").exists()]
    return forks.run([script, *(name for name in new if name not in addresses), *addresses], environment(), cwd=folder)


def run(command: Sequence[str], folder: Path, env: dict[str, str]) -> str:
    """Run a command in `folder`; it must end well; returns what it said on both streams."""
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def files(path: Path) -> list[Path]:
    """A file, or all files below a folder, sorted."""
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def content(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def made(folder: Path) -> dict[str, Any]:
    """Every file below a folder of data; of what made a stage's outputs, which says the hour, what is no clock's.

    Of the syntax trees that were kept it counts that there are some: which ones depends on what a process read before.
    """
    found: dict[str, Any] = dict(content(folder))
    for name in found:
        if name == ".cache/code.json":
            found[name] = bool(found[name])
        if name.startswith("made/"):
            facts = json.loads(found[name])
            found[name] = {key: value for key, value in facts.items() if key not in ("begun", "seconds")}
    return found


def share_imports() -> None:
    """Find the code of the project in the working folder; what most stages need besides is loaded (forks.py)."""
    sys.path[0] = str(Path.cwd())


def fork_stage(address: str, first: Callable[[], None] = lambda: None) -> int:
    """Start a stage of the project in the working folder as a process (and group) of its own; returns its number."""
    _, module, *arguments = command(Path(), address)
    pid = os.fork()
    if pid:
        return pid
    os.setsid()

    def stage() -> None:
        first()
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    forks.run_and_end(stage)


def finish(pid: int, address: str) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"{address}: exit code {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    share_imports()
    for name in sys.argv[1:]:
        finish(fork_stage(name), name)
