"""What reruns when something changes: the real dvc.yaml under real DVC, with stages that only hash their inputs.

One project goes through the whole table, row after row, as its user would take it.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini
import pytest

from gift.doctor.whole import read_params

# Writes every output of its stage (DVC_STAGE) from the content of its dependencies and the values of its parameters;
# but that of the checks, which always says the same, so that it makes nothing stale.
STUB = """
import hashlib, json, os
from pathlib import Path
import mini

params = mini.read_yaml(Path("params.yaml"))
stage = mini.stage_of(Path(), os.environ["DVC_STAGE"])
seen = [[str(path), path.read_text()] for name in stage["deps"] for path in mini.files(Path(name))]
for key in stage.get("params", []):
    value = params
    for part in key.split("."):
        value = value[part]
    seen.append([key, value])
seen = seen if os.environ["DVC_STAGE"] not in ("doctor", "check_rewards") else []
digest = hashlib.sha256(json.dumps([os.environ["DVC_STAGE"], seen]).encode()).hexdigest()
for path in mini.outputs(Path(), os.environ["DVC_STAGE"]):
    folder = not path.suffix
    path = path / "part" if folder else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"digest": digest, "path": str(path)}))
"""
WEIGHTED = {"answer": {"function": "arithmetic_answer", "weight": 0.7}}
PER_ROUND = ("generate", "score", "reference", "update", "generate_eval", "evaluate")


def round_(name: str, begin: str = "generate") -> set[str]:
    """The stages of a round from one of them on, in the order of their work."""
    return {f"{stage}@{name}" for stage in PER_ROUND[PER_ROUND.index(begin) :]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project under git and DVC with rounds r1 and r2, its stages replaced by stubs; nothing was run yet."""
    folder = tmp_path_factory.mktemp("reruns") / "project"
    folder.mkdir()
    for name in (*mini.code_folders(), ".dvc"):
        leave = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
        shutil.copytree(mini.ROOT / name, folder / name, ignore=leave)
    for name in (*mini.FILES, ".dvcignore", ".gitignore"):
        shutil.copyfile(mini.ROOT / name, folder / name)
    (folder / "rounds.yaml").write_text("rounds:\n  r1: {from: base}\n  r2: {from: r1}\n")
    for path in (folder / "stages").glob("*.py"):
        if path.name != "__init__.py":
            path.write_text(STUB)
    (folder / "gift/launch.py").write_text("import runpy, sys\nrunpy.run_module(sys.argv[1], run_name='__main__')\n")
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "Project")
    return folder


def run(folder: Path, *command: str) -> str:
    """A command in the project, with nothing of this machine's DVC or git in it."""
    home = folder.parent
    places = {f"DVC_{name}_DIR": str(home / name.lower()) for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")}
    more = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parent),  # mini.py, for the stubs
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    return mini.run(command, folder, {**inherited, **places, **more})


def repro(folder: Path) -> tuple[list[str], set[str]]:
    """Names of the stages that ran, in their order, and of those that came back from the run cache."""
    said = run(folder, "dvc", "--wait-for-lock", "repro")
    return re.findall(r"Running stage '([^']+)'", said), set(re.findall(r"Stage '([^']+)' is cached", said))


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: mini.write_params(folder, changes)


def append(name: str, line: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + line) and None


def nothing(folder: Path) -> None:
    """Run it once more."""


# Runs, in a second, whenever a setting, a round or code that it checks with has changed, and makes nothing else stale.
DOCTOR = {"doctor"}
BEGIN = {"prepare", "check_rewards", "base", "generate_eval_base", "evaluate_base"}
ALL = DOCTOR | BEGIN | {"report"} | round_("r1") | round_("r2")
SAMPLED = ALL - DOCTOR - BEGIN
UPDATED = SAMPLED - {"generate@r1", "score@r1", "reference@r1"}
REWARDED = UPDATED | {"check_rewards", "score@r1", "evaluate_base"}
# An output that DVC tracks but does not keep (the history, in git) takes its stage out of the run cache: it runs again,
# in a second. Nothing is sampled or trained again.
UNCACHED = {"evaluate@r1", "evaluate@r2", "report"}
RATE = read_params(mini.ROOT / "params.yaml").update.lr

Row = tuple[str, Callable[[Path], None], set[str], set[str]]
"""What changes, how, the stages that run, and those that come back from the run cache."""
ROWS: list[Row] = [
    ("the first time", nothing, ALL, set()),
    ("nothing", nothing, set(), set()),
    ("launch.yaml", append("launch.yaml", "reference: {tokens_per_batch: 4096}\n"), set(), set()),
    ("a comment where no stage looks", append("gift/cli.py", "# a comment\n"), set(), set()),
    ("a check of the doctor", append("gift/doctor/machine.py", "# a comment\n"), DOCTOR, set()),
    (
        "a reward of the project's own",
        append("gift/rewards/answers/gsm8k.py", "# a comment\n"),
        DOCTOR | REWARDED,
        set(),
    ),
    ("a reward of the user", append("rewards/example.py", "# a comment\n"), DOCTOR | REWARDED, set()),
    ("a reward's weight", setting(score={"rewards": WEIGHTED}), DOCTOR | REWARDED, set()),
    ("the learning rate", setting(update={"lr": RATE / 2}), DOCTOR | UPDATED, set()),
    ("the old learning rate", setting(update={"lr": RATE}), DOCTOR | UNCACHED, UPDATED - UNCACHED),
    ("the temperature", setting(generate={"temperature": 0.9}), DOCTOR | SAMPLED, set()),
    ("another round", append("rounds.yaml", "  r3: {from: r2}\n"), DOCTOR | round_("r3") | {"report"}, set()),
    ("a branch", append("rounds.yaml", "  r2b: {from: r1}\n"), DOCTOR | round_("r2b") | {"report"}, set()),
]


def test_exactly_what_is_stale_reruns(project: Path) -> None:
    for change, make, stale, kept in ROWS:
        make(project)
        ran, restored = repro(project)
        assert set(ran) == stale, f"{change}: ran {sorted(set(ran) - stale)}, did not run {sorted(stale - set(ran))}"
        assert len(ran) == len(stale), f"{change}: a stage ran twice"
        assert restored == kept, change
        if change == "the first time":
            checks = ["doctor", "prepare", "check_rewards"]
            assert ran[:3] == checks, "a base was made, or prompts were answered, before it was checked what can be"
            assert ran.index("evaluate@r1") < ran.index("generate@r2"), "r2 was sampled before r1 was evaluated"
