"""The shape of the project: the graph is short and names no module, imports point down, every setting loads."""

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

from gift.doctor.whole import Params, read_launch, read_params
from gift.methods.names import MATCH, SELECT, SHAPE
from gift.project import code
from gift.project.code import imported_files, imported_names, imports_of
from gift.project.rounds import lay_over
from gift.project.sections import check

ROOT = Path(__file__).parents[1]

# A package may import itself and the floors below it; those of one floor do not know each other.
FLOORS = {
    1: {"project", "sandbox"},
    2: {"workers", "methods", "rewards", "policy", "logprobs", "tables", "embedded"},
    3: {"prompts", "sampling", "scoring", "training", "evaluation", "upkeep"},
    4: {"doctor", "report", "compare"},
    5: {"cli", "launch", "worker"},
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
    for level, _, _ in imports_of(MODULES[module]):
        assert not level, f"{module}: a relative import; write it in full"
    names = imported_names(MODULES[module], [ROOT])
    # Importing a.b.c runs a and a.b too.
    above = {".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts) + 1)}
    return frozenset((above & MODULES.keys()) - {module})


def started(cmd: str) -> str:
    """The stage that a command runs: `python -m gift.launch stages.update ...` is update."""
    python, option, *words = shlex.split(cmd)
    assert (python, option) == ("python", "-m"), cmd
    return words["gift.launch" in words[:1]].removeprefix("stages.").replace(".", "_")


def stages() -> dict[str, Any]:
    return {name: stage.get("do", stage) for name, stage in read_yaml("dvc.yaml")["stages"].items()}


def runs(name: str, module: str) -> bool:
    """Whether a stage of dvc.yaml imports a module, however far."""
    start = ROOT / "stages" / f"{started(stages()[name]['cmd'])}.py"
    return MODULES[module] in imported_files([start], [ROOT])[0]


def test_the_graph_is_short_and_names_no_module() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 250
    named = {dep for stage in stages().values() for dep in stage["deps"] if dep.startswith(("gift", "stages"))}
    assert named == {"gift", "stages"}, "of the stage `code` alone"
    assert re.search(r"\.py\b", text) is None


def test_every_stage_depends_on_the_number_of_its_code() -> None:
    for name, stage in stages().items():
        code = [dep for dep in stage["deps"] if dep.startswith("data/code/")]
        beside = ["data/code/score.txt"] if name == "doctor" else []  # for data/sampling_rewards.txt
        assert code == ([] if name == "code" else [f"data/code/{started(stage['cmd'])}.txt", *beside]), name


def test_the_stage_code_writes_a_file_for_every_stage() -> None:
    listed = []
    for file in ("dvc.yaml", "compare/dvc.yaml"):
        of_file = {name: stage.get("do", stage) for name, stage in read_yaml(file)["stages"].items()}
        made = [next(iter(entry)) for entry in of_file["code"]["outs"]]
        names = sorted({started(stage["cmd"]) for stage in of_file.values()} - {"code"})
        assert made == [f"data/code/{name}.txt" for name in names], file
        listed += names
    assert sorted(listed) == code.stages()


def test_the_results_of_the_code_as_it_is_shipped_have_numbers() -> None:
    wrong = [name for name in code.stages() if name not in code.UNNUMBERED and code.code_of(name).startswith("edited")]
    names = " ".join(wrong)
    assert not wrong, (
        f"edited: {names}. Where the code makes the same bytes: `gift code --same {names}`; where it makes others: "
        f"`gift code --other {names}`, and say so in CHANGELOG.md, for rounds are made again"
    )


def test_long_stages_start_through_the_launcher_and_give_their_paths_names() -> None:
    short = {"code", "doctor", "overrides", "prepare", "check_rewards", "report"}
    for name, stage in stages().items():
        words = shlex.split(stage["cmd"])[2:]
        assert ("gift.launch" in words) == (name not in short), name
        places = [word for word, before in zip(words[1:], words, strict=False) if "/" in word and before[:2] != "--"]
        assert len(places) <= 3, f"{name}: more than three paths need names"


def test_stages_that_call_rewards_depend_on_the_users_own() -> None:
    for name, stage in stages().items():
        depends = "rewards" in stage["deps"] or stage.get("always_changed", False)
        assert runs(name, "gift.scoring.pool") == depends, name


def test_stages_that_sample_wait_for_the_check_of_the_rewards() -> None:
    for name, stage in stages().items():
        assert runs(name, "gift.sampling.engine.start") == ("data/check_rewards.txt" in stage["deps"]), name


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


def test_packages_are_small() -> None:
    """Nineteen packages, two loose files, and no folder above thirteen modules."""
    loose = {path.name for path in (ROOT / "gift").glob("*.py")} - {"__init__.py"}
    assert loose == {"launch.py", "worker.py"}
    assert FLOOR.keys() - {"launch", "worker"} == {path.parent.name for path in (ROOT / "gift").glob("*/__init__.py")}
    for folder in {path.parent for path in MODULES.values()}:
        names = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(names) <= 13, f"{folder}: {len(names)} modules"


def test_training_names_no_method() -> None:
    """The methods come from update's settings; only the default of a setting is a name."""
    names = MATCH.keys() | SHAPE.keys() | SELECT.keys()
    for module, path in MODULES.items():
        if not module.startswith("gift.training."):
            continue
        kinds = [other for other in imported(module) if re.match(r"gift\.methods\.(match|shape|select)\b", other)]
        assert not kinds, f"{module} imports {kinds}"
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        allowed = {"gift", "zscore"} if module == "gift.training.settings" else {"gift"}  # the project's own name, too
        assert not texts & names - allowed, f"{module} names {texts & names - allowed}"


def test_nothing_imports_a_stage() -> None:
    """But for those of a comparison, each of which runs several of them."""
    found = [(module, other) for module in MODULES for other in imported(module) if other[:7] == "stages."]
    wrong = [f"{module} imports {other}" for module, other in found if not module.startswith("stages.compare.")]
    assert not wrong, "\n".join(wrong)


def test_two_files_know_deepspeed_and_one_knows_vllm() -> None:
    """The promise of exact steps and of one signature for sampling is kept in one place each."""
    pattern = re.compile(r"^\s*(?:import|from)\s+(deepspeed|vllm)\b", re.MULTILINE)
    found = {(name, module) for module, path in MODULES.items() for name in pattern.findall(path.read_text())}
    assert found - {("deepspeed", "gift.cli"), ("vllm", "gift.cli")} == {
        ("deepspeed", "gift.training.engine"),
        ("deepspeed", "gift.training.ranks"),
        ("vllm", "gift.sampling.engine.by_vllm"),
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
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} is too long to be read at once"


def test_every_setting_that_is_shipped_loads() -> None:
    whole = [ROOT / "params.yaml", ROOT / "compare" / "params.yaml"]
    for path in [*whole, ROOT / "launch.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]:
        if "launch" in path.relative_to(ROOT).as_posix():
            read_launch(path)
        else:
            read_params(path)


def test_the_harder_task_has_the_keys_of_the_shipped_one_and_takes_graded_rewards() -> None:
    shipped, hard = read_yaml("params.yaml"), read_yaml("compare/params.yaml")
    assert list(hard) == list(shipped)
    graded = read_yaml("compare/dense.yaml")
    assert list(graded) == ["score"]
    params = check(Params, {**hard, "score": lay_over(hard["score"], graded["score"])}, "compare/dense.yaml")
    assert set(params.score.rewards) >= set(params.evaluate.judges)


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
