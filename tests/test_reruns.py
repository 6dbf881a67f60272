"""What reruns when something changes: the real dvc.yaml under real DVC, with stages that only hash their inputs.

One project goes through the whole table, row after row, as its user would take it. Run as a script in that project,
one process does so with DVC as a library; a function stands in for the stages' commands, and `code` is the real one.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mini
import pytest

from gift.doctor.again import same_scores, stages_of_run
from gift.doctor.rewards import counting_rewards, deciding_rewards
from gift.project import code as ours
from gift.project.graph import read_lock
from gift.project.params import overrides_text
from gift.project.rounds import read_rounds
from gift.project.work import MADE, write_json
from gift.upkeep.dvc import read_only
from gift.upkeep.guard import work_again
from gift.upkeep.keep import keep, stages_to_keep
from gift.upkeep.look import dvc_cache, quick_texts, read_world
from gift.upkeep.plan import World, plan
from gift.upkeep.prune import prune, pruned, states_to_prune

Change = Callable[[], Any]
WEIGHTED = {"answer": {"function": "arithmetic_answer", "weight": 0.7}}
WATCH = {"function": "rewards/watch.py:watch", "weight": 0.0}
PER_ROUND = ("overrides", "generate", "score", "reference", "update", "generate_eval", "evaluate")


def round_(name: str, begin: str = "overrides") -> set[str]:
    """The stages of a round from one of them on, in the order of their work."""
    return {f"{stage}@{name}" for stage in PER_ROUND[PER_ROUND.index(begin) :]}


def setting(**changes: Any) -> Change:
    return lambda: mini.write_params(Path(), changes)


def write(name: str, text: str = "\n# a comment\n") -> Change:
    """Append to a file of the project, or begin it."""

    def append() -> None:
        Path(name).parent.mkdir(exist_ok=True)
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(text)

    return append


def word(name: str, pattern: str) -> Change:
    """Put a word behind the first match of `pattern`."""

    def insert() -> None:
        text, count = re.subn(pattern, r"\g<0>Another word. ", Path(name).read_text(encoding="utf-8"), count=1)
        assert count, f"{name}: no {pattern}"
        Path(name).write_text(text, encoding="utf-8")

    return insert


def release() -> None:
    """Other code of sampling, listed as code that makes the same bytes."""
    write("gift/sampling/engine/start.py", "NEUTRAL = 1\n")()
    for stage in ("generate", "generate_eval"):
        code().record(stage, same=True)


def nothing() -> None:
    """Run it once more."""


def lose(name: str, forever: bool = False) -> Change:
    """Remove an output, `forever` out of DVC's cache too."""

    def remove() -> None:
        digest = next(record.outs[name] for record in read_lock().values() if name in record.outs)
        shutil.rmtree(name)
        if forever:
            (dvc_cache() / "files/md5" / digest[:2] / digest[2:]).unlink()

    return remove


def prune_states() -> None:
    going = states_to_prune(read_rounds(), read_lock(), dvc_cache(), keep=1)
    assert {state.round for state in going} == {each.parent for each in read_rounds().values()} - {"base"}
    prune(going)
    assert not any(path.exists() for state in going for path in (state.folder, *state.cached))


def watch() -> None:
    """Watch a reward that is a file of its own."""
    write("rewards/watch.py", "def watch(*_, **__):\n    return [0.0]\n")()
    setting(score={"rewards": WEIGHTED | {"watch": WATCH}})()


def kept(change: Change, settings: bool = False) -> None:
    """Make a change, and keep all rounds as they are."""
    change()
    keep(stages_to_keep(world(), list(read_rounds()), settings), list(read_rounds()))


# The stage `code`, with the guard in it, runs every time and makes nothing stale; nor does the doctor.
DOCTOR, CODE = {"doctor"}, {"code"}
BEGIN = {"prepare", "check_rewards", "base", "generate_eval_base", "evaluate_base"}
ALL = CODE | DOCTOR | BEGIN | {"report"} | round_("r1") | round_("r2")
SAMPLED = {"report"} | round_("r1", "generate") | round_("r2", "generate")
UPDATED = SAMPLED - {"generate@r1", "score@r1", "reference@r1"}
WATCHED = {"check_rewards", "evaluate_base", "report"} | {
    f"{stage}@{name}" for stage in ("score", "evaluate") for name in ("r1", "r2", "r3", "r2b")
}
REWARDED = UPDATED | {"check_rewards", "score@r1", "evaluate_base"}
# An output that DVC tracks but does not keep (the history, in git) takes its stage out of the run cache: it runs again,
# in a second. Nothing is sampled or trained again.
UNCACHED = {"evaluate@r1", "evaluate@r2", "report"}
RATE = mini.read_yaml(mini.ROOT / "params.yaml")["update"]["lr"]

ROWS: dict[str, tuple[Change, set[str], set[str]]] = {
    # What changes: how, the stages that run, and those that come back from the run cache.
    "the first time": (nothing, ALL, set()),
    "nothing": (nothing, set(), set()),
    "launch.yaml": (write("launch.yaml", "reference: {tokens_per_batch: 4096}\n"), set(), set()),
    "a comment": (write("gift/project/work.py"), CODE, set()),
    "a docstring": (word("gift/training/round.py", '^"""'), CODE, set()),
    "an error's words": (word("gift/project/sections.py", r'UserError\(f?"'), CODE, set()),
    "a file of the report": (write("gift/report/more.py", '"""What no stage reads."""\nMORE = 1\n'), CODE, set()),
    "the console": (write("gift/project/console.py", "MORE = 1\n"), CODE, set()),
    "a release that keeps its numbers": (release, CODE, set()),
    "a check of the doctor": (write("gift/doctor/machine.py", "MORE = 1\n"), CODE | DOCTOR, set()),
    "the loss": (write("gift/methods/match/regression/gift.py", "MORE = 1\n"), CODE | DOCTOR | UPDATED, set()),
    "a reward": (write("gift/rewards/form.py", "MORE = 1\n"), CODE | DOCTOR | REWARDED, set()),
    # Weights of tokens (reference.token_weights) look for the answer by the code of the rewards.
    "where an answer is": (
        write("gift/rewards/answers.py", "MORE = 1\n"),
        CODE | DOCTOR | REWARDED | {"reference@r1"},
        set(),
    ),
    "a reward of the user": (write("rewards/example.py"), DOCTOR | REWARDED, set()),
    "a reward's weight": (setting(score={"rewards": WEIGHTED}), DOCTOR | REWARDED, set()),
    "the learning rate": (setting(update={"lr": RATE / 2}), DOCTOR | UPDATED, set()),
    "the old learning rate": (setting(update={"lr": RATE}), DOCTOR | UNCACHED, UPDATED - UNCACHED),
    "the temperature": (setting(generate={"temperature": 0.9}), DOCTOR | SAMPLED, set()),
    "another round": (write("rounds.yaml", "  r3: {from: r2}\n"), DOCTOR | round_("r3") | {"report"}, set()),
    "a branch": (write("rounds.yaml", "  r2b: {from: r1}\n"), DOCTOR | round_("r2b") | {"report"}, set()),
    "what a round changes for itself": (
        lambda: Path("rounds.yaml").write_text(Path("rounds.yaml").read_text()[:-2] + ", update: {lr: 1.0e-6}}\n"),
        DOCTOR | {"overrides@r2b", "report"} | round_("r2b", "update"),
        set(),
    ),
    "rewards decide what is sampled": (
        setting(generate={"sample": {"retry": {"tries": 1}}}),
        DOCTOR | SAMPLED | round_("r3", "generate") | round_("r2b", "generate"),
        set(),
    ),
    "a reward that is watched, of a file of its own": (watch, DOCTOR | WATCHED, set()),
    "a limit of calls": (setting(score={"timeout_seconds": 9.0}), DOCTOR | WATCHED, set()),
    "a reward that decides": (
        setting(score={"max_failed_share": 0.02, "rewards": {"answer": WEIGHTED["answer"] | {"weight": 0.5}}}),
        DOCTOR | SAMPLED | REWARDED | round_("r3", "generate") | round_("r2b", "generate"),
        set(),
    ),
    "a lost table": (lose("data/rounds/r1/rollouts"), set(), {"generate@r1"}),
    "a lost state": (lose("data/rounds/r1/optimizer", forever=True), {"update@r1"}, set()),
    "another base": (write("data/rounds/base/policy/part", "x"), {"base"}, set()),
    "states that were pruned": (prune_states, set(), set()),
    "a release with other numbers, kept": (lambda: kept(write("gift/training/engine.py", "MORE = 1\n")), set(), set()),
    "other settings, kept": (lambda: kept(setting(update={"lr": RATE / 4}), settings=True), DOCTOR, set()),
}

# The rows with more than two rounds are slow proofs.
FIRST, LAST_FAST = "the first time", "the temperature"
FAST = list(ROWS)[: list(ROWS).index(LAST_FAST) + 1]
each_row = pytest.mark.parametrize(
    "change", [pytest.param(row, marks=() if row in FAST else pytest.mark.slow) for row in ROWS]
)

# What a run makes again that turns out as it was: nothing after it runs, which no plan can know.
UNFORESEEN = ("a lost state", "another base")
ROUNDS_2 = r"2 finished rounds \(r1, r2\) would run again because "
ROUNDS_4 = r"4 finished rounds \(r1, r2, r3, r2b\) would run again because "
NEW_CODE = r" changed \(results \d+, now edited \w+\)"
AGAIN = {
    "the loss": f"^{ROUNDS_2}the code of update{NEW_CODE}$",
    "a reward": f"{ROUNDS_2}the code of evaluate{NEW_CODE}; the code of score{NEW_CODE}",
    "where an answer is": "the code of reference",
    "a reward of the user": f"{ROUNDS_2}a file of rewards/ changed$",
    "a reward's weight": f"{ROUNDS_2}score.rewards.* changed \\(params.yaml\\)",
    "the learning rate": f"^{ROUNDS_2}update.lr changed \\(params.yaml\\)$",
    "the old learning rate": f"^{ROUNDS_2}data/rounds/r1/answers changed",  # what cannot be restored is evaluated again
    "the temperature": f"^{ROUNDS_2}generate.temperature changed \\(params.yaml\\)$",
    "what a round changes for itself": r"^1 finished round \(r2b\) .* what r2b changes in update changed",
    "rewards decide what is sampled": f"^{ROUNDS_4}generate.sample changed .*; the rewards changed",
    "a reward that is watched, of a file of its own": f"{ROUNDS_4}score.rewards.watch changed.*; a file of rewards/",
    "a limit of calls": f"{ROUNDS_4}score.timeout_seconds changed \\(params.yaml\\)$",
    "a reward that decides": f"{ROUNDS_4}.*the rewards changed, which generate.sample reads",
    "a lost state": f"^{ROUNDS_4}data/rounds/r1/optimizer is missing$",
    "another base": f"^the base policy.* and {ROUNDS_4}data/rounds/base/policy changed$",
}


def make_project(folder: Path) -> None:
    """The project in `folder`, under git and DVC, with rounds r1 and r2; nothing was run yet."""
    for name in (*mini.code_folders(), ".dvc"):
        leave = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
        shutil.copytree(mini.ROOT / name, folder / name, ignore=leave)
    for name in (*mini.FILES, ".dvcignore", ".gitignore"):
        shutil.copyfile(mini.ROOT / name, folder / name)
    (folder / "rounds.yaml").write_text("rounds:\n  r1: {from: base}\n  r2: {from: r1}\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


def environment(home: Path) -> dict[str, str]:
    """Nothing of this machine's DVC or git in it."""
    places = {f"DVC_{name}_DIR": str(home / name.lower()) for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}
    path = os.pathsep.join([str(mini.ROOT), str(mini.ROOT / "tests")])
    return {**inherited, **places, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PYTHONPATH": path}


@cache
def code() -> Any:
    """gift/project/code.py of the project in the working folder, which speaks of the files beside it."""
    spec = importlib.util.spec_from_file_location("code_of_the_project", Path("gift/project/code.py").absolute())
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(stage: Any) -> None:
    """Write every output of a stage from the content of its dependencies and the values of its parameters.

    But those of the checks always say the same, so that they make nothing stale.
    """
    if stage.addressing == "code":
        Path("data/code").mkdir(parents=True, exist_ok=True)
        for name, made in code().codes_of(code().stages()).items():
            Path(f"data/code/{name}.txt").write_text(f"{made}\n")
        return
    if stage.addressing.startswith("overrides@"):
        content = read_rounds()[stage.addressing.split("@")[1]]
        for out in stage.outs:
            Path(out.def_path).parent.mkdir(parents=True, exist_ok=True)
            Path(out.def_path).write_text(overrides_text(content, Path(out.def_path).stem))
        return
    if stage.addressing == "doctor":
        Path("data/doctor.txt").write_text("ok\n")
        Path("data/sampling_rewards.txt").write_text(deciding_rewards() + "\n")
        return
    seen: list[Any] = [stage.addressing]
    for dep in stage.deps if stage.addressing != "check_rewards" else []:
        if dep.def_path == "params.yaml":
            seen += sorted(dep.read_params().items())
        else:
            seen += [[str(path), path.read_text()] for path in mini.files(Path(dep.def_path))]
    digest = hashlib.sha256(json.dumps(seen, default=str).encode()).hexdigest()
    counting = ""
    if stage.addressing.startswith("score@"):  # what is watched, and limits of calls, are in the other outputs alone
        counting = counting_rewards(stage.addressing.split("@")[1])
        write_json(MADE / f"{stage.addressing}.json", {"inputs": {"counting": counting}})
    for out in stage.outs:
        own = digest
        if out.def_path.endswith("/scores"):
            read = [dep.def_path for dep in stage.deps if dep.def_path not in ("rewards", "params.yaml")]
            texts = [path.read_text() for name in read if "/overrides/" not in name for path in mini.files(Path(name))]
            own = hashlib.sha256(json.dumps([counting, *texts]).encode()).hexdigest()
        path = Path(out.def_path) if Path(out.def_path).suffix else Path(out.def_path) / "part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([own, str(path)]))


def world() -> World:
    """The project in the working folder, for `plan`; of the stages that take no time what they will write."""
    codes = {f"data/code/{name}.txt": f"{made}\n" for name, made in code().codes_of(code().stages()).items()}
    checks = {"data/doctor.txt": "ok\n", "data/sampling_rewards.txt": deciding_rewards() + "\n"}
    said = Path("data/check_rewards.txt")  # always the same
    texts = quick_texts() | codes | checks | ({str(said): said.read_text()} if said.exists() else {})
    return read_world(texts.get, same_scores)


def read_code_here() -> None:
    """Let the guard, which runs in this process, look at the code of the project in the working folder."""
    found = Path.cwd()
    ours.UNSEEN = frozenset(found / path.relative_to(ours.ROOT) for path in ours.UNSEEN)
    ours.ROOT, ours.RESULTS = found, found / "stages/results.yaml"


def main() -> None:
    """Go through the table up to a row; print for each the stages that ran, in order, and those that were restored.

    With the word `only` behind the row's name DVC reads of dvc.yaml no more than `gift repro` has it read.
    """
    last, *words = sys.argv[1:]
    import dvc.stage.run
    from dvc.repo import Repo
    from dvc.utils.serialize import _yaml

    read_code_here()
    ran: list[str] = []
    restored: list[str] = []

    class Restored(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is cached - skipping run" in record.msg:
                restored.append(str(record.args[0]))  # type: ignore[index]

    def run(stage: Any, **_: Any) -> None:
        ran.append(stage.addressing)
        stand_in(stage)

    logging.getLogger("dvc.stage.cache").setLevel(logging.INFO)
    logging.getLogger("dvc.stage.cache").addHandler(Restored())
    dvc.stage.run.cmd_run = run
    # dvc.lock without comments and as JSON, which is YAML too: DVC's way to keep comments took two thirds of the time.
    _yaml.parse_yaml_for_update, _yaml._dump = _yaml.parse_yaml, json.dump
    for name, (change, _, _) in ROWS.items():
        change()
        ran.clear()
        restored.clear()
        here = world()
        steps = plan(here)
        planned = [[step.stage.address for step in steps if step.restored == kept] for kept in (False, True)]
        again = work_again(steps, here.lock)
        if words == ["only"]:
            read_only([step.stage.address for step in steps])
        with Repo() as repo:
            repo.reproduce(allow_missing=bool(pruned()))
        print(json.dumps([name, ran, restored, *planned, again and again.line]), flush=True)
        if name == last:
            break


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The table up to the last row that a chosen test looks at."""
    own = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    chosen = {item.callspec.params.get("change") for item in own}
    return go_through(tmp_path_factory.mktemp("reruns"), next((row for row in reversed(ROWS) if row in chosen), FIRST))


def go_through(home: Path, last: str, *words: str) -> dict[str, list[Any]]:
    """The table up to a row, in a project of its own; what it printed."""
    (home / "project").mkdir()
    make_project(home / "project")
    said = mini.run([sys.executable, __file__, last, *words], home / "project", environment(home))
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("[")]
    return {name: rest for name, *rest in lines}


@each_row
def test_exactly_what_is_stale_reruns(rows: dict[str, list[Any]], change: str) -> None:
    ran, restored, *_ = rows[change]
    _, stale, kept = ROWS[change]
    stale = stale | CODE
    assert set(ran) == stale, f"ran {sorted(set(ran) - stale)}, did not run {sorted(stale - set(ran))}"
    assert len(ran) == len(stale), "a stage ran twice"
    assert set(restored) == kept


@each_row
def test_the_plan_says_before_what_dvc_then_does(rows: dict[str, list[Any]], change: str) -> None:
    ran, restored, to_run, to_restore, _ = rows[change]
    if change in UNFORESEEN:
        assert set(ran) < set(to_run)
    else:
        assert (to_run, to_restore) == (ran, restored)


@each_row
def test_finished_work_that_would_run_again_is_said_with_its_cause(rows: dict[str, list[Any]], change: str) -> None:
    line = rows[change][-1]
    if change in AGAIN:
        assert re.search(AGAIN[change], line), line
    else:
        assert line is None


@pytest.mark.slow
def test_dvc_does_the_same_where_it_reads_only_what_the_plan_names(rows: dict[str, list[Any]], tmp_path: Path) -> None:
    assert go_through(tmp_path, list(rows)[-1], "only") == rows


def test_a_project_begins_with_its_checks_and_takes_round_after_round(
    rows: dict[str, list[Any]],
) -> None:
    ran, *_ = rows[FIRST]
    assert ran[:4] == ["code", "doctor", "prepare", "check_rewards"], "a base was made, or prompts answered, unchecked"
    assert ran.index("evaluate@r1") < ran.index("generate@r2"), "r2 was sampled before r1 was evaluated"


@pytest.mark.parametrize("words", [["--force"], ["--dry", "update@r1"], ["data/rounds"], ["--downstream", "base"]])
def test_what_is_more_than_stages_by_name_is_dvcs_to_find_out(noted: Path, words: list[str]) -> None:
    assert stages_of_run(words) is None


def test_the_first_run_is_planned_too(noted: Path) -> None:
    """DVC by itself takes another order each time, where base may come before check_rewards."""
    Path("dvc.lock").unlink()
    planned = stages_of_run([])
    assert planned is not None
    assert planned[:4] == ["code", "doctor", "prepare", "check_rewards"]


if __name__ == "__main__":
    main()
