"""Scoring again calls only what is new: the promise, counted in calls; and the same bytes with and without it."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_score import METADATA, run_stage, score_of, write_project, write_rollouts

from gift.project.code import ROOT as PROJECT
from gift.project.code import imported_files
from gift.scoring import cache as reward_digest
from gift.scoring.cache import ROOT, function_digest, project_roots, row_keys, versions
from gift.scoring.loading import Loaded
from gift.scoring.score import score_parts
from gift.scoring.settings import Score
from gift.tables.parquet import part_paths
from gift.tables.prompts import write_prompts

FUNCTION = """
from rewards.helper import BONUS

def f(prompts, completions, completion_ids, mode, **columns):
    with open("calls.txt", "a") as file:
        file.write(f"{__name__} {len(prompts)}\\n")
    if "raise" in mode:
        raise ValueError
    return [None if each == "abstain" else BONUS + len(prompts) for each in mode]
"""
ALONE = FUNCTION.replace("from rewards.helper import BONUS", "BONUS = 7")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gift.scoring.looks.NUM_ROWS", 0)  # calls are counted here, without a second look
    Path("rewards").mkdir()
    Path("rewards/one.py").write_text(FUNCTION)
    Path("rewards/two.py").write_text(ALONE)
    Path("rewards/helper.py").write_text("BONUS = 1\n")
    write_project(score_with(), ["fine", "abstain", "fine"])
    return tmp_path


def score_with(one: dict[str, Any] | None = None, two: dict[str, Any] | None = None, **keys: Any) -> Score:
    rewards = {
        "one": {"function": "rewards/one.py:f", **(one or {})},
        "two": {"function": "rewards/two.py:f", **(two or {})},
    }
    return score_of(**rewards).model_copy(update=keys)


def calls_of(score: Score, modes: tuple[str, ...] = ("fine", "abstain", "fine")) -> tuple[Counter[str], str]:
    """Run the stage on the same rollouts; the rows that each function was called for, and what the stage said."""
    for path in (Path("data/rounds"), Path("metrics"), Path("rollouts")):
        shutil.rmtree(path, ignore_errors=True)
    Path("calls.txt").unlink(missing_ok=True)
    write_project(score, list(modes))
    said = run_stage()
    assert said.exit_code == 0, said.output
    lines = Path("calls.txt").read_text().splitlines() if Path("calls.txt").exists() else []
    counts: Counter[str] = Counter()
    for line in lines:
        name, rows = line.split()
        counts[name.removeprefix("reward_file_")] += int(rows)
    return counts, said.output


def test_after_a_change_of_what_is_not_called_nothing_is_called() -> None:
    assert calls_of(score_with())[0] == {"one": 6, "two": 6}
    for score in (
        score_with(one={"weight": 0.25}),
        score_with(two={"only_if": "one"}),
        score_with(two={"timeout_seconds": 5.0}, timeout_seconds=3.0, max_failed_share=0.5),
    ):
        counts, said = calls_of(score)
        assert not counts
        assert said.endswith("slowest none called, values reused 12\n")
    rewards = pq.read_table(part_paths(Path("data/rounds/r1/scores"))[0])["reward"].to_pylist()
    assert rewards[:2] == [2.0 + 8.0] * 2


@pytest.mark.parametrize("change", ["function", "helper", "data", "setting", "batch"])
def test_after_a_change_of_one_function_only_that_one_is_called(change: str) -> None:
    calls_of(score_with())
    keys: dict[str, Any] = {}
    if change == "function":
        Path("rewards/one.py").write_text(FUNCTION + "\n# another\n")
    elif change == "helper":
        Path("rewards/helper.py").write_text("BONUS = 2\n")
    elif change == "batch":
        keys = {"batch": 2}
    elif change == "setting":
        keys = {"settings": {"scale": 1}}
        Path("rewards/one.py").write_text(FUNCTION.replace("mode, **", "mode, scale=1, **"))
        calls_of(score_with())
    else:
        Path("rewards/words.txt").write_text("a word list: any function of the user may read it")
    counts, said = calls_of(score_with(one=keys))
    assert counts == ({"one": 6, "two": 6} if change == "data" else {"one": 6})
    assert f"values reused {0 if change == 'data' else 6}" in said


def test_what_failed_is_tried_again_and_the_rest_is_not() -> None:
    modes = ("fine", "raise", "fine")
    assert calls_of(score_with(), modes)[0] == {"one": 6, "two": 6}
    assert calls_of(score_with(), modes)[0] == {"one": 2, "two": 2}


def test_of_a_group_all_rows_are_called_again_and_of_a_batch_only_what_failed() -> None:
    modes = ("raise", "fine", "fine")
    score = score_with(one={"batch": "group"}, two={"batch": 4})
    calls_of(score, modes)
    table = [path.read_bytes() for path in part_paths(Path("data/rounds/r1/scores"))]
    # Of the first part (4 rows) `two` has two rows left that fail in a call of two, then one by one.
    assert calls_of(score, modes)[0] == {"one": 2, "two": 2 + 1 + 1}
    assert [path.read_bytes() for path in part_paths(Path("data/rounds/r1/scores"))] == table


def test_another_gold_answer_calls_the_rows_that_have_it() -> None:
    calls_of(score_with())
    counts, _ = calls_of(score_with(), ("fine", "abstain", "other"))
    assert counts == {"one": 2, "two": 2}


def test_a_damaged_file_is_ignored_and_written_again() -> None:
    calls_of(score_with())
    paths = sorted(ROOT.rglob("*.parquet"))
    assert {path.name for path in paths} == {"score@r1-00000.parquet", "score@r1-00001.parquet"}
    whole = {path: path.read_bytes() for path in paths}
    foreign = pa.table({"row": ["x"], "value": [1.0]})
    for number, path in enumerate(paths):
        if number % 2:
            pq.write_table(foreign.replace_schema_metadata({"gift": '{"schema_version": 1}'}), path)
        else:
            path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
    assert calls_of(score_with())[0] == {"one": 6, "two": 6}
    assert {path: path.read_bytes() for path in paths} == whole
    shutil.rmtree(ROOT)
    assert calls_of(score_with())[0] == {"one": 6, "two": 6}


def test_what_ended_before_the_stage_failed_is_kept() -> None:
    modes = ["fine"] * 12 + ["raise"]
    write_project(score_with(max_failed_share=0.0), modes)
    shutil.rmtree("rollouts")
    _, prompts = write_rollouts(modes, groups_per_part=13)
    write_prompts(Path("prompts.parquet"), prompts, {"artifact": "prompts"})
    assert run_stage().exit_code == 1
    kept = [pq.read_metadata(path).num_rows for path in ROOT.rglob("*.parquet")]
    assert len(kept) == 2
    assert sum(kept) >= 24


def test_the_table_has_the_same_bytes_from_kept_values() -> None:
    modes = ["fine", "abstain", "raise", "fine", "fine"]
    rollouts, prompts = write_rollouts(modes)
    score = score_with(one={"batch": 3}, two={"batch": "group"})

    def table(folder: str, cache: Path | None) -> list[bytes]:
        score_parts(Path(folder), rollouts, prompts, score, 2, METADATA, "score@r1", cache=cache)
        return [path.read_bytes() for path in part_paths(Path(folder))]

    without, first, again = table("a", None), table("b", ROOT), table("c", ROOT)
    assert first == without
    assert again == without


def test_what_a_pass_of_the_round_was_scored_with_is_found_again() -> None:
    """Passes are score@r1.0, score@r1.1; those of r10, or of another round, are not its own."""
    rollouts, prompts = write_rollouts(["fine", "abstain", "fine"])

    def calls(label: str) -> int:
        Path("calls.txt").unlink(missing_ok=True)
        score_parts(Path(label), rollouts, prompts, score_with(), 1, METADATA, label, cache=ROOT)
        return len(Path("calls.txt").read_text().splitlines()) if Path("calls.txt").exists() else 0

    assert calls("score@r10.0") > 0
    assert calls("score@r1.0") > 0
    assert calls("score@r1") == 0
    assert calls("score@r2") > 0


def test_keys_tell_calls_and_places_apart() -> None:
    digests = [b"a" * 16, b"b" * 16, b"a" * 16]
    single = row_keys(digests, [[0], [1], [2]])
    assert single[:2] == digests[:2]
    assert len({*single, *row_keys(digests, [[0, 1], [2]]), *row_keys(digests, [[0, 1, 2]])}) == 3 + 2 + 3


def loaded(function: str = "f", file: str | None = "rewards/one.py", **keys: Any) -> Loaded:
    return Loaded("name", file, function, keys.pop("settings", {}), [], **keys)


def digest(reward: Loaded) -> str:
    return function_digest(reward, Path("rewards"))


def test_a_local_folder_among_the_settings_counts_by_its_content() -> None:
    Path("model").mkdir()
    Path("model/weights").write_text("1")
    reward = loaded(
        settings={"model": "model", "nested": [{"file": "model/weights"}], "pattern": ".", "long": "x" * 9999}
    )
    before = digest(reward)
    assert digest(reward) == before
    Path("unrelated").write_text("the project's own folder ('.') is no setting's content")
    assert digest(reward) == before
    Path("model/weights").write_text("2")
    assert digest(reward) != before


def test_python_and_packages_count_with_all_that_they_require(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rewards/math.py").write_text("def f():\n    from math_verify import parse\n    import os.path, yaml\n")
    files, packages = imported_files([Path("rewards/math.py")], project_roots())
    assert ({path.name for path in files}, packages) == ({"math.py"}, {"math_verify", "yaml"})
    assert {"math-verify", "sympy", "pyyaml"} <= versions(packages).keys()
    before = digest(loaded(file="rewards/math.py"))
    monkeypatch.setattr(reward_digest.platform, "python_version", lambda: "9.9.9")
    assert digest(loaded(file="rewards/math.py")) != before


def test_our_own_functions_count_their_files_and_nothing_of_the_users() -> None:
    ours = loaded("gsm8k_answer", None)
    before = digest(ours)
    Path("rewards/words.txt").write_text("x")
    assert digest(ours) == before
    assert digest(loaded("text_format", None)) != before
    files, _ = imported_files([PROJECT / "gift/rewards/answers.py"], [PROJECT])
    assert {path.name for path in files} >= {"answers.py", "text.py"}
    assert digest(loaded(signature="verl")) != digest(loaded())


def test_relative_and_dotted_imports_are_followed() -> None:
    for path, text in {
        "rewards/pack/__init__.py": "from .inner import a\n",
        "rewards/pack/inner.py": "from ..helper import BONUS\nimport rewards.deep.leaf\n",
        "rewards/deep/leaf.py": "import numpy as np\n",
        "rewards/three.py": "from rewards import pack\n",
    }.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    files, packages = imported_files([Path("rewards/three.py")], project_roots())
    assert {path.name for path in files} == {"three.py", "__init__.py", "inner.py", "helper.py", "leaf.py"}
    assert packages == {"numpy"}


def test_evaluate_keeps_its_values_beside_those_of_score(world: Path) -> None:
    """A real round has kept the values of its rollouts and of its answers, and publishes none of them."""
    names = {path.name.rpartition("-")[0] for path in (world / ROOT).rglob("*.parquet")}
    assert names == {"score@r1", "evaluate@r1", "evaluate@base"}
    assert json.loads((world / "data/rounds/r1/metrics/score.json").read_text())["num_failed"] == 0
