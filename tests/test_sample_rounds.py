"""Rounds that rewards decide, by the real stages: what is kept, what it cost, what is called again, kill and resume."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import mini
import pyarrow as pa
import pytest

from gift.policy.folder import find_policy
from gift.project.ragged import Ragged
from gift.project.work import tree_digest
from gift.scoring.looks import NUM_ROWS
from gift.tables.parts import keys_of, read_table
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import read_scores

pytestmark = pytest.mark.slow
COUNTED = """
from pathlib import Path

def sixth(prompts, completions, **columns):
    with Path("calls.txt").open("a") as file:
        file.writelines(f"{completion!r}\\n" for completion in completions)
    return [float(sum(map(ord, completion)) % 6 == 0) for completion in completions]
"""
WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {"max_passes": 3},
    "retry": {"tries": 2},
    "refine": {"drafts": 2, "suffix": "{draft}+"},
    "posterior": {"pool": 2, "quotas": True},
}
ROUNDS: dict[str, Any] = {"plain": {}, **{name: {"generate": {"sample": {name: each}}} for name, each in WAYS.items()}}
ROUNDS["posterior"]["generate"]["group_size"] = 8  # of 4 the quotas round to 4
STAGES = ("generate", "score", "reference", "update")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mini.make_project(tmp_path_factory.mktemp("sample"))
    (folder / "rewards/counted.py").write_text(COUNTED, encoding="utf-8")
    rewards = {"counted": {"function": "rewards/counted.py:sixth"}}
    mini.write_params(folder, {"score": {"rewards": rewards}, "evaluate": {"correct": None}})
    rounds = {name: {"from": "base", **own} for name, own in ROUNDS.items()}
    (folder / "rounds.yaml").write_text(json.dumps({"rounds": rounds}), encoding="utf-8")
    every = [f"{stage}@{name}" for name in ROUNDS for stage in ("overrides", *STAGES)]
    mini.run_stages(folder, ["code", "prepare", "base", *every])
    return folder


def numbers(project: Path, name: str, stage: str) -> dict[str, Any]:
    return dict(json.loads((project / f"data/rounds/{name}/metrics/{stage}.json").read_text(encoding="utf-8")))


def rollouts(project: Path, name: str) -> tuple[pa.Table, dict[str, Any]]:
    return read_table(project / f"data/rounds/{name}/rollouts", ROLLOUTS, check_rollouts)


def rewards(project: Path, name: str) -> dict[str, list[float]]:
    table, _ = read_scores(project / f"data/rounds/{name}/scores")
    found: dict[str, list[float]] = {}
    for (prompt, _), reward in zip(keys_of(table), table["reward"].to_pylist(), strict=True):
        found.setdefault(prompt, []).append(reward)
    return found


@pytest.mark.parametrize("name", WAYS)
def test_the_ledger_says_what_was_sampled_and_thrown_away(project: Path, name: str) -> None:
    made, plain = numbers(project, name, "generate"), numbers(project, "plain", "generate")
    table, source = rollouts(project, name)
    assert "num_completions_sampled" not in plain
    assert made["num_completions"] == table.num_rows <= (128 if name == "posterior" else 64)
    assert made["num_completions_sampled"] == made["num_completions"] + made["num_completions_thrown_away"]
    assert made["num_tokens_sampled"] >= made["num_tokens"]
    assert made["num_passes"] >= 1 + (name in ("refine", "posterior"))
    ledger = {key: made[key] for key in source["sampled"]}
    assert ledger == source["sampled"]
    assert source["settings"]["sample"] == {name: WAYS[name]}


def test_rewards_are_called_once_for_a_completion(project: Path) -> None:
    """The plain round calls for its 64; what a pass was scored with is not called again for the round.

    A second look at eight of a pass is no more than that.
    """
    calls = len((project / "calls.txt").read_text(encoding="utf-8").splitlines())
    made = [numbers(project, name, "generate") for name in WAYS]
    looks = NUM_ROWS * (1 + sum(each["num_passes"] for each in made))
    assert calls <= 64 + looks + sum(each["num_completions_sampled"] for each in made)


def test_the_first_pass_is_the_plain_round(project: Path) -> None:
    """Of a way that begins with groups of the next prompts."""
    plain, _ = rollouts(project, "plain")
    texts = dict(zip(keys_of(plain), plain["completion"].to_pylist(), strict=True))
    for name in ("dynamic", "retry"):
        table, _ = rollouts(project, name)
        common = [key for key in keys_of(table) if key in texts]
        own = dict(zip(keys_of(table), table["completion"].to_pylist(), strict=True))
        assert len(common) >= 32
        same = sum(own[key] == texts[key] for key in common)
        assert same == len(common) if name == "dynamic" else same >= 8


def test_dynamic_keeps_groups_whose_rewards_differ(project: Path) -> None:
    found = rewards(project, "dynamic")
    assert len(found) == 16
    assert all(min(each) < max(each) for each in found.values())
    assert any(min(each) == max(each) for each in rewards(project, "plain").values())


def test_retry_leaves_fewer_groups_without_a_right_completion(project: Path) -> None:
    plain, again = (rewards(project, name) for name in ("plain", "retry"))
    assert plain.keys() == again.keys()
    failed = [{prompt for prompt, each in found.items() if max(each) < 0.5} for found in (plain, again)]
    assert failed[1] < failed[0]
    assert all(again[prompt] == plain[prompt] for prompt in plain.keys() - failed[0])


def test_refine_samples_with_the_draft_behind_the_prompt(project: Path) -> None:
    plain, refined = rollouts(project, "plain")[0], rollouts(project, "refine")[0]
    assert keys_of(plain) == keys_of(refined)
    lengths = [Ragged.from_arrow(table["prompt_ids"]).lengths for table in (plain, refined)]
    assert (lengths[1] > lengths[0]).all()


def test_quotas_make_groups_of_unequal_size_that_train(project: Path) -> None:
    table, source = rollouts(project, "posterior")
    sizes = Counter(table["prompt_id"].to_pylist())
    assert sizes == source["group_sizes"]
    assert sum(sizes.values()) == 128
    assert len({*sizes.values()}) > 1
    trained = numbers(project, "posterior", "update")
    assert (trained["num_groups"], trained["num_completions"]) == (16, 128)
    assert trained["num_groups_selected"] > 0
    assert numbers(project, "posterior", "score")["num_rollouts"] == 128


def test_the_stream_goes_on_behind_all_that_was_taken(project: Path) -> None:
    """A policy has consumed what its round took, thrown away or not."""
    base = project / "data/rounds/base/policy"
    consumed = {}
    for name in ROUNDS:
        _, lineage = find_policy(project / f"data/rounds/{name}/policy", base)
        consumed[name] = lineage.prompts_consumed
    assert consumed["plain"] == consumed["retry"] == consumed["refine"] == 16
    assert consumed["posterior"] == 32
    assert consumed["dynamic"] == (16 * numbers(project, "dynamic", "generate")["num_passes"])


KILLED = """
import os, runpy, sys
from gift.sampling import by_rewards
score_pass = by_rewards.score_pass

def dies(rollouts, name, *rest):
    found = score_pass(rollouts, name, *rest)
    os._exit(9)

by_rewards.score_pass = dies
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def test_a_killed_round_goes_on_to_the_same_bytes(project: Path) -> None:
    """Killed when its first pass was sampled and scored: nothing of that is made again."""
    whole, calls = tree_digest(project / "data/rounds/dynamic/rollouts"), project / "calls.txt"
    mini.remove_outputs(project, "generate@dynamic")
    before = calls.read_text(encoding="utf-8")
    words = mini.command(project, "generate@dynamic")[3:]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "stages.generate", *words], cwd=project, env=mini.environment()
    )
    work = project / "data/.work/generate@dynamic"
    assert done.returncode == 9
    assert sorted(path.name for path in (work / "pass-0").iterdir()) == ["notes", "rollouts", "score.json", "scores"]
    (work / "pass-0/score.json").unlink()  # as if it had been killed while it published
    told = mini.run_stages(project, ["generate@dynamic"])
    assert "score@dynamic.0: num scored 64" in told
    assert "values reused 64" in told
    assert tree_digest(project / "data/rounds/dynamic/rollouts") == whole
    assert calls.read_text(encoding="utf-8") == before, "all values are kept"
    assert not work.exists()
