"""The shape of the project: dvc.yaml names exactly the code a stage runs, imports point down, every setting loads."""

import ast
import graphlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gift.doctor.whole import read_launch, read_params

ROOT = Path(__file__).parents[1]

# A package may import itself and the floors below it; those of one floor do not know each other.
FLOORS = {
    1: {"project", "sandbox"},
    2: {"methods", "rewards", "policy", "logprobs", "tables", "embedded"},
    3: {"prompts", "sampling", "scoring", "training", "evaluation"},
    4: {"doctor", "report"},
    5: {"cli", "launch"},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}


def read_yaml(name: str) -> Any:
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))


def modules() -> dict[str, Path]:
    """Every module of ours that says something (an empty __init__.py does not)."""
    paths = [path for folder in ("gift", "stages") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths if path.read_text().strip()}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in found.items()}


MODULES = modules()


@cache
def imported(module: str) -> frozenset[str]:
    """Our modules that a module imports, wherever the import stands (an import inside a function counts)."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import; write it in full"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    # Importing a.b.c runs a and a.b too.
    above = {".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts) + 1)}
    return frozenset((above & MODULES.keys()) - {module})


def closure(modules: list[str]) -> set[str]:
    """The files behind modules and all that they import, as written in dvc.yaml."""
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.extend(imported(module))
    return {str(MODULES[module].relative_to(ROOT)) for module in seen}


def started(cmd: str) -> list[str]:
    """The modules that a command runs: `python -m gift.launch stages.update ...` is two."""
    python, option, *words = shlex.split(cmd)
    assert (python, option) == ("python", "-m"), cmd
    return words[:2] if words[0] == "gift.launch" else words[:1]


def stages() -> dict[str, Any]:
    return {name: stage.get("do", stage) for name, stage in read_yaml("dvc.yaml")["stages"].items()}


def test_every_stage_depends_on_exactly_the_code_it_imports() -> None:
    wrong = []
    for name, stage in stages().items():
        listed = {path for path in stage["deps"] if path.endswith(".py")}
        needed = closure(started(stage["cmd"]))
        wrong += [f"{name}: add {path}" for path in sorted(needed - listed)]
        wrong += [f"{name}: remove {path}" for path in sorted(listed - needed)]
    assert not wrong, "the deps in dvc.yaml are not what the stages import:\n" + "\n".join(wrong)


def test_the_code_of_a_stage_is_listed_once_and_sorted() -> None:
    for name, stage in stages().items():
        listed = [path for path in stage["deps"] if path.endswith(".py")]
        assert listed == sorted(set(listed)), name


def test_stages_that_call_rewards_depend_on_the_users_own() -> None:
    for name, stage in stages().items():
        assert ("gift/scoring/workers/pool.py" in stage["deps"]) == ("rewards" in stage["deps"]), name


def test_stages_that_sample_wait_for_the_check_of_the_rewards() -> None:
    for name, stage in stages().items():
        assert ("gift/sampling/engine.py" in stage["deps"]) == ("data/check_rewards.txt" in stage["deps"]), name


def test_every_import_points_down() -> None:
    wrong = []
    for module in MODULES:
        package = module.split(".")[1] if module.startswith("gift.") else None
        for other in sorted(imported(module)):
            below = other.split(".")[1] if other.startswith("gift.") else None
            if package and below and package != below and FLOOR[below] >= FLOOR[package]:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_circle() -> None:
    graphlib.TopologicalSorter({module: imported(module) for module in MODULES}).prepare()


def test_nothing_imports_a_stage() -> None:
    wrong = [f"{module} imports {other}" for module in MODULES for other in imported(module) if other[:6] == "stages"]
    assert not wrong, "\n".join(wrong)


def test_two_files_know_deepspeed_and_one_knows_vllm() -> None:
    """The promise of exact steps and of one signature for sampling is kept in one place each."""
    pattern = re.compile(r"^\s*(?:import|from)\s+(deepspeed|vllm)\b", re.MULTILINE)
    found = {(name, module) for module, path in MODULES.items() for name in pattern.findall(path.read_text())}
    assert found - {("deepspeed", "gift.cli"), ("vllm", "gift.cli")} == {
        ("deepspeed", "gift.training.engine"),
        ("deepspeed", "gift.training.ranks"),
        ("vllm", "gift.sampling.engine"),
    }


@pytest.mark.parametrize(
    "module",
    [
        "gift.doctor.whole",
        "gift.methods.names",
        "gift.launch",
        "gift.tables.parts",
        "gift.scoring.score",
        "gift.cli",
        "stages.doctor",
        "stages.check_rewards",
    ],
)
def test_heavy_libraries_are_imported_only_where_they_work(module: str) -> None:
    if module not in MODULES:
        pytest.skip(f"{module} is not here")
    script = (
        f"import sys, {module}; print(*sys.modules.keys() & {{'torch', 'vllm', 'deepspeed', 'transformers', 'dvc'}})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_every_file_opens_with_a_sentence_and_is_short(module: str) -> None:
    text = MODULES[module].read_text()
    first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    assert first.endswith("."), "a file opens with a sentence, on one line, that says what it is"
    assert len(text.splitlines()) < 300


def test_every_setting_that_is_shipped_loads() -> None:
    paths = [ROOT / "params.yaml", ROOT / "launch.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
    for path in paths:
        if "launch" in path.relative_to(ROOT).as_posix():
            read_launch(path)
        else:
            read_params(path)


def test_rounds_are_chains_that_end_at_base() -> None:
    rounds = read_yaml("rounds.yaml")["rounds"]
    for position, (name, round_) in enumerate(rounds.items()):
        # A number as a key makes DVC drop the stage without a word (treeverse/dvc#8903).
        assert isinstance(name, str), f"{name}: round names are strings"
        assert round_["from"] in ["base", *list(rounds)[:position]], f"{name}: comes from no round above it"


def test_every_foreach_stage_exists_for_each_round_and_has_a_path_of_its_own() -> None:
    seen: dict[str, str] = {}
    for name, stage in stages().items():
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind, []):
                path = entry if isinstance(entry, str) else next(iter(entry))
                assert path not in seen, f"{name} and {seen[path]} both make {path}"
                assert path.startswith("data/"), f"{name}: {path}: everything made lies in data/"
                seen[path] = name
