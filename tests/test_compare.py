"""The comparison of methods: what its plan may say, its numbers by hand, its runs against the pipeline, and DVC."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pyarrow as pa
import pytest
from ruamel.yaml import YAML
from scipy.stats import bootstrap

from gift.compare.chain import moved
from gift.compare.figures import CURVES, curve, curves, differences, rates
from gift.compare.numbers import Choice, Run, choose, difference, mean_and_error, read_choice, read_run
from gift.compare.plan import Plan, changes_of, check_content, laid_over, read_plan
from gift.compare.presets import lay_over_file, read_preset
from gift.compare.runner import phases
from gift.compare.tables import frozen_markdown, frozen_rows, markdown, rows_of, sweep_markdown
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.yaml import read_yaml
from gift.tables.parts import write_part
from gift.tables.reference import REFERENCE, check_reference
from gift.tables.rollouts import ROLLOUTS, check_rollouts

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "presets" / "methods"
PLAN: dict[str, Any] = {
    "rounds": 2,
    "run": ["grpo", "mine"],
    "seeds": [1, 2],
    "sweep": {"lrs": [1e-4, 1e-3], "seeds": [9]},
    "metric": "eval/reward",
    "baseline": "grpo",
    "more": {"run": [], "seeds": []},
    "fixed": {"run": [], "seeds": []},
    "methods": {"mine": {"preset": "gspo", "update": {"lr_schedule": "constant"}, "generate": {"group_size": 4}}},
}


# The plan.


def test_the_shipped_plan_is_lawful() -> None:
    """Every method of it lays its changes over compare/params.yaml, and the stages take what comes out."""
    plan, content = read_plan(ROOT / "compare/compare.yaml"), read_yaml(ROOT / "compare/params.yaml")
    for name in plan.names:
        changes = changes_of(name, plan, PRESETS, Path("compare.yaml"))
        check_content(laid_over(content, changes, 1e-4, 3), name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "dapo"}, "p.yaml: baseline: dapo: must be one of the methods that run; add it to run"),
        ({"seeds": [1, 9]}, "p.yaml: sweep.seeds: 9 is one of seeds, too"),
        ({"seeds": [1, 1]}, "p.yaml: seeds: .*1 stands there twice"),
        ({"more": {"run": ["dpo"], "seeds": [3]}}, "p.yaml: more.run: dpo: is not among those that run"),
        ({"more": {"run": ["grpo"], "seeds": [2]}}, "p.yaml: more.seeds: 2 is one of seeds already"),
        ({"fixed": {"run": ["mine"], "seeds": [1]}}, "p.yaml: fixed.run: mine: is among those of run"),
        ({"fixed": {"run": ["dpo"]}}, "p.yaml: fixed.seeds: must name at least one seed"),
        ({"fixed": {"run": ["dpo"], "seeds": [9]}}, "p.yaml: sweep.seeds: 9 is one of seeds, too"),
        ({"against": {"mine": "dpo"}}, "p.yaml: against: dpo: is no method that runs; add it to run, or to fixed.run"),
        ({"rounds": 0}, "p.yaml: rounds: 0: must be greater than or equal to 1"),
        ({"sweeps": {}}, "p.yaml: sweeps: unknown key; did you mean 'sweep'?"),
    ],
)
def test_a_wrong_plan_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps(PLAN | change))
    with pytest.raises(UserError, match=rf"^{tmp_path}/{message}[^\n]*$"):
        read_plan(path)


def test_keys_that_dvc_reads_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps({key: value for key, value in PLAN.items() if key != "fixed"}))
    with pytest.raises(UserError, match=r"p.yaml: fixed: missing; where there are none, write fixed: {run: \[\], .*}$"):
        read_plan(path)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"preset": "gsop"}, "methods.mine.preset: gsop: no such method; did you mean 'gspo'?"),
        ({"updat": {}}, "methods.mine.updat: must be a section of params.yaml, a map; did you mean 'update'?"),
        ({"update": 1}, "methods.mine.update: must be a section of params.yaml, a map"),
    ],
)
def test_a_wrong_method_is_one_line(method: dict[str, Any], message: str) -> None:
    plan = Plan.model_validate(PLAN | {"methods": {"mine": method}})
    with pytest.raises(UserError, match=rf"^p.yaml: {message}[^\n]*$"):
        changes_of("mine", plan, PRESETS, Path("p.yaml"))


def test_a_method_takes_the_keys_of_a_method_from_nowhere_else() -> None:
    """What the file says of select, shape, match, ... is gone; the rest of it stays; a key is replaced whole."""
    plan = Plan.model_validate(PLAN)
    content = {"seed": 0, "update": {"kl": {"coef": 0.1}, "select": [{"overlong": {}}], "lr": 1.0, "epochs": 2}}
    content["generate"] = {"group_size": 8, "max_tokens": 9}
    made = laid_over(content, changes_of("mine", plan, PRESETS, Path("p.yaml")), 1e-3, 7)
    preset = read_preset(PRESETS / "gspo.yaml")
    assert made["update"] == {"epochs": 2, "lr": 1e-3, "lr_schedule": "constant", **preset["update"]}
    assert (made["seed"], made["generate"]) == (7, {"group_size": 4, "max_tokens": 9})
    assert laid_over(content, {}, None, 7)["update"]["lr"] == 1.0


def test_every_stage_of_the_plan_is_in_the_graph() -> None:
    """The names that `gift compare` gives DVC are those that DVC makes of the file."""
    from dvc.repo import Repo

    plan = read_plan(ROOT / "compare/compare.yaml")
    with Repo(str(ROOT)) as repo:
        known = {stage.addressing.split(":")[-1] for stage in repo.stage.load_all(str(ROOT / "compare/dvc.yaml"))}
    assert {name for phase in phases(plan) for name in phase} | {"code"} == known


# A method laid over a file.


def test_a_preset_is_laid_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    before = read_yaml(path)
    assert lay_over_file(path, PRESETS / "rloo-trl.yaml")[-1].startswith("update.zero_targets")
    after, preset = read_yaml(path), read_preset(PRESETS / "rloo-trl.yaml")
    kept = {key: value for key, value in before["update"].items() if key not in ("select", "shape", "match")}
    assert after == before | {"update": {**kept, **preset["update"]}}
    assert "# Sources: arithmetic" in path.read_text()
    lay_over_file(path, PRESETS / "gift.yaml")
    assert "kl_in_reward" not in read_yaml(path)["update"]
    assert lay_over_file(path, PRESETS / "igrpo.yaml")[0] == 'generate.sample: {"refine": {"drafts": 4}}'
    assert read_yaml(path)["generate"] == before["generate"] | {"sample": {"refine": {"drafts": 4}}}
    lay_over_file(path, PRESETS / "gift.yaml")
    assert read_yaml(path)["generate"] == before["generate"]


def test_a_section_that_is_not_there_is_made_where_the_method_has_one(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 0\nupdate: {groups_per_step: 1, lr: 1.0, dtype: float32}\n")
    lay_over_file(path, PRESETS / "gift.yaml")
    assert read_yaml(path).keys() == {"seed", "update"}
    preset = tmp_path / "mine.yaml"
    preset.write_text("generate: {sample: {refine: {}}}\nupdate: {match: {gift: {}}}\n")
    path.write_text("generate: {prompts_per_round: 2, group_size: 2, max_tokens: 9}\n")
    with pytest.raises(UserError, match=r"update.groups_per_step: missing"):
        lay_over_file(path, preset)


def test_what_cannot_be_laid_over_leaves_the_file_alone(tmp_path: Path) -> None:
    path, preset = tmp_path / "params.yaml", tmp_path / "mine.yaml"
    path.write_text("update: {groups_per_step: 1, lr: 1.0, dtype: float32}\n")
    before = path.read_bytes()
    preset.write_text("update: {match: {gfit: {}}}\n")
    with pytest.raises(UserError, match=r"update.match.gfit: unknown key; did you mean 'gift'\?$"):
        lay_over_file(path, preset)
    preset.write_text("update: {lr: 1.0}\n")
    with pytest.raises(UserError, match=r"mine.yaml: update.lr: a method is update's select, shape, [^\n]*$"):
        lay_over_file(path, preset)
    preset.write_text("generate: {}\n")
    with pytest.raises(UserError, match=r"mine.yaml: update: missing; a method is update's [^\n]*$"):
        lay_over_file(path, preset)
    preset.write_text("update: {match: {gift: {}}}\nscore: {}\n")
    with pytest.raises(UserError, match=r"mine.yaml: score: a method is update's [^\n]*$"):
        lay_over_file(path, preset)
    with pytest.raises(UserError, match=r"gsop.yaml: no such method; did you mean 'gspo'\?$"):
        lay_over_file(path, PRESETS / "gsop.yaml")
    assert path.read_bytes() == before


# Numbers.


def run(method: str, seed: int, values: list[float], lr: float = 1e-4, rounds: int = 2, **more: Any) -> Run:
    """A run whose policies reached these values."""
    rows = [
        {"round": i, "completions": 8, "eval/reward": value, "eval/accuracy_greedy": value, "reward": value + 0.1}
        | {"kl": float(i), "spread": 1.0, "entropy": 2.0, "eval/mean_length": 5.0, "update/num_steps": 3}
        for i, value in enumerate(values)
    ]
    return Run(
        method, lr, seed, rows, rounds, {"r1": f"bytes of {seed}"} | more.pop("rollouts", {}), more.pop("stopped", None)
    )


def test_what_broke_keeps_its_last_policy() -> None:
    whole, broken = run("a", 1, [0.0, 0.2, 0.4]), run("a", 1, [0.0, 0.2], stopped="drift")
    assert (whole.at(2, "eval/reward"), broken.at(2, "eval/reward")) == (0.4, 0.2)
    assert (whole.area("eval/reward"), broken.area("eval/reward")) == (pytest.approx(0.3), pytest.approx(0.2))
    assert math.isnan(whole.at(2, "no such number"))


def test_a_rate_is_chosen_by_its_mean_over_seeds() -> None:
    """The best mean area wins, of equal ones the smaller rate; the neighbours say how sensitive it is."""
    runs = [
        run("a", seed, [0, value, value], lr)
        for lr, seed, value in (
            (1e-5, 9, 0.1),
            (1e-5, 8, 0.1),
            (1e-4, 9, 0.4),
            (1e-4, 8, 0.2),
            (1e-3, 9, 0.6),
            (1e-3, 8, 0.0),
            (1e-2, 9, 0.2),
        )
    ]
    choice = choose(runs, "eval/reward")
    assert (choice.lr, choice.at_the_edge) == (1e-4, False)
    assert choice.reached == pytest.approx({1e-5: 0.1, 1e-4: 0.3, 1e-3: 0.3, 1e-2: 0.2})
    assert choice.sensitivity == pytest.approx(0.2)
    edge = choose(runs[4:], "eval/reward")
    assert (edge.lr, edge.at_the_edge) == (1e-3, True)
    assert math.isnan(choose(runs[:2], "eval/reward").sensitivity)
    with pytest.raises(UserError, match=r"^eval/right: no such number in the runs"):
        choose(runs, "eval/right")


def test_a_difference_is_of_pairs() -> None:
    """Seeds that both have; the interval is scipy's BCa on the gaps; a constant gap has no width."""
    rng = np.random.default_rng(3)
    shared = rng.normal(size=12)
    theirs = {seed: float(value) for seed, value in enumerate(shared)}
    gaps = 0.3 + 0.1 * rng.normal(size=10)
    ours = {seed: theirs[seed] + float(gaps[seed]) for seed in range(10)}
    found = difference(ours, theirs)
    expected = bootstrap((gaps,), np.mean, n_resamples=9999, rng=np.random.default_rng(0)).confidence_interval
    assert found.num_seeds == 10
    assert (found.mean, found.low, found.high) == pytest.approx((gaps.mean(), expected.low, expected.high))
    assert found.is_one
    five = {seed: ours[seed] for seed in range(5)}
    assert difference(five, theirs).low > 0
    assert not difference(five, theirs).is_one, "of five seeds none is called"
    noise = {seed: theirs[seed] + (0.5 if seed % 2 else -0.5) for seed in theirs}
    assert not difference(noise, theirs).is_one
    same = difference(theirs, theirs)
    assert (same.mean, same.low, same.high, same.is_one) == (0, 0, 0, False)
    two = difference({1: 1.0, 2: 2.0}, {1: 0.0, 2: 0.0})
    assert two.mean == 1.5
    assert math.isnan(two.low)


def test_mean_and_error_by_hand() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / math.sqrt(3)))
    assert math.isnan(mean_and_error([1.0])[1])


def test_moved_by_hand(tmp_path: Path) -> None:
    """Two groups of two samples, log-ratios 1 and 3, then 0 and -2; an answer that was given does not count."""
    old = [[-1.0, -1.0], [-2.0], [-9.0], [-1.0], [-3.0], [-9.0]]
    ref = [[-1.5, -1.5], [-5.0], [-2.0], [-1.0], [-1.0], [-2.0]]
    key, why = [["a"] * 3 + ["b"] * 3, [0, 1, 2] * 2], ["stop", "stop", "given"] * 2
    columns = [*key, *(Ragged.of(each, np.float32).to_arrow() for each in (ref, old))]
    metadata = {"policy": "p"}
    write_part(tmp_path / "reference", 0, pa.table(columns, schema=REFERENCE), REFERENCE, check_reference, metadata)
    tokens = Ragged.of([[1] * len(each) for each in old], np.int32).to_arrow()
    drawn = Ragged.of([[] if said == "given" else each for each, said in zip(old, why, strict=True)], np.float32)
    seeds = [-1 if said == "given" else 0 for said in why]
    rows = [*key, tokens, tokens, ["x"] * 6, drawn.to_arrow(), why, seeds]
    write_part(tmp_path / "rollouts", 0, pa.table(rows, schema=ROLLOUTS), ROLLOUTS, check_rollouts, metadata)
    assert moved(tmp_path) == pytest.approx({"kl": 0.5, "spread": math.sqrt(2), "entropy": 8 / 5})


# Tables and figures.


def some_runs() -> dict[str, list[Run]]:
    runs = {"grpo": [run("grpo", seed, [0.1, 0.2 + seed / 100, 0.3]) for seed in range(10)]}
    runs["mine"] = [run("mine", seed, [0.1, 0.3 + seed / 100, 0.5 + seed / 1000]) for seed in range(10)]
    runs["other"] = [run("other", seed, [0.1], stopped="drift", rollouts={"r1": "others"}) for seed in (0, 1)]
    return runs


def some_choices() -> dict[str, Choice]:
    return {name: Choice(1e-4, "eval/reward", {1e-4: 0.3, 1e-3: 0.2}, {1e-4: 0, 1e-3: 1}) for name in some_runs()}


def test_the_table_says_what_the_runs_say() -> None:
    rows = {row["method"]: row for row in rows_of(some_runs(), some_choices(), "grpo", "eval/reward")}
    assert rows["mine"]["last"] == pytest.approx(0.5045)
    assert rows["mine"]["last_mean"] == pytest.approx(0.2045)
    assert rows["mine"]["last_is_one"]
    assert rows["mine"]["area_mean"] == pytest.approx((0.1 + 0.2045) / 2)
    assert (rows["mine"]["sensitivity"], rows["mine"]["lr_at_the_edge"]) == (pytest.approx(0.1), True)
    assert rows["mine"]["gap"] == pytest.approx(0.1)
    assert rows["mine"]["gap_low"] <= rows["mine"]["gap_mean"] <= rows["mine"]["gap_high"]
    assert (rows["other"]["stopped"], rows["other"]["last"]) == (2, pytest.approx(0.1))
    assert rows["other"]["last_low"] is None
    text = markdown(list(rows.values()), "grpo", "eval/reward", 2)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:5]] == ["| mine", "| grpo", "| other"]
    assert "**+0.20" in text
    assert "2 (2 stopped)" in text
    json.dumps(list(rows.values()), allow_nan=False)


def test_a_gap_of_other_rewards_is_none() -> None:
    """Rewards of another scale, or other ones, have no gap that could be compared."""
    rows = {row["method"]: row for row in rows_of(some_runs(), {}, "grpo", "eval/reward", own_rewards={"mine"})}
    assert [rows["mine"][key] for key in ("gap", "gap_se", "gap_mean", "gap_low")] == [None] * 4
    assert rows["mine"]["last_mean"] == pytest.approx(0.2045)
    assert rows["grpo"]["gap"] is not None
    assert " |  |  | " in markdown(list(rows.values()), "grpo", "eval/reward", 2)


def test_a_method_that_is_not_swept_is_compared_with_whom_it_says() -> None:
    runs, choices = some_runs(), some_choices()
    runs["fixed"] = [run("fixed", seed, [0.1, 0.3, 0.45 + seed / 1000]) for seed in range(10)]
    rows = {row["method"]: row for row in rows_of(runs, choices, "grpo", "eval/reward", {"fixed": "mine"})}
    assert rows["fixed"]["last_mean"] == pytest.approx(-0.05)
    assert (rows["fixed"]["lr"], rows["fixed"]["sensitivity"]) == (1e-4, None)
    assert not rows["fixed"]["lr_at_the_edge"]
    text = markdown(list(rows.values()), "grpo", "eval/reward", 2)
    assert text.count(" to mine |") == 3
    plan = Plan.model_validate(PLAN | {"fixed": {"run": ["dpo"], "seeds": [3, 4]}, "against": {"dpo": "mine"}})
    assert (plan.names, plan.seeds_of("dpo")) == (["grpo", "mine", "dpo"], [3, 4])
    assert phases(plan)[3][-2:] == ["run_fixed@dpo-3", "run_fixed@dpo-4"]
    assert not any("dpo" in name for name in phases(plan)[1] + phases(plan)[2])


def test_the_sweep_says_what_each_rate_reached() -> None:
    choices = some_choices() | {"late": Choice(1e-3, "eval/reward", {1e-3: 0.4}, {1e-3: 0})}
    lines = sweep_markdown(choices, "eval/reward", 2).splitlines()
    assert lines[0] == "| method | 0.0001 | 0.001 |"
    assert lines[2:4] == ["| late |  | **0.400** |", "| grpo | **0.300** | 0.200 (1 stopped) |"]


def test_one_update_is_compared_on_the_same_rollouts_alone() -> None:
    rows = frozen_rows(some_runs(), "grpo", "eval/reward")
    assert [row["method"] for row in rows] == ["grpo", "mine"]
    assert rows[1]["first"] == pytest.approx(0.345)
    assert rows[1]["first_mean"] == pytest.approx(0.1)
    assert (rows[1]["kl"], rows[1]["spread"], rows[1]["steps"]) == (1.0, 0.0, 3)
    assert frozen_markdown(rows, "eval/reward").count("\n| ") == 3
    assert frozen_markdown(rows, "eval/reward", ["other"]).endswith("or given answers: other.\n")


def test_figures_have_a_panel_for_each_method() -> None:
    runs = some_runs()
    points = curve(runs["mine"], "eval/reward")
    assert [point["rollouts"] for point in points] == [0, 8, 16]
    spread = 0.01 * math.sqrt(np.var(range(10), ddof=1) / 10)
    assert [points[1][key] for key in ("mean", "low", "high")] == pytest.approx([0.345, 0.345 - spread, 0.345 + spread])
    for name in CURVES:
        drawn = curves(runs, dict.fromkeys(runs, "grpo"), name)
        assert drawn.startswith("<svg")
        assert all(f">{method}<" in drawn for method in runs)
    assert all(f">{method}<" in rates(some_choices(), "grpo") for method in some_choices())


def test_figures_name_whom_a_method_is_compared_with() -> None:
    runs = some_runs()
    drawn = curves(runs, {"grpo": "grpo", "mine": "grpo"}, "kl")
    assert ">grpo<" in drawn
    drawn = curves(runs, {"mine": "grpo", "grpo": "mine"}, "kl")
    assert all(f">{text}<" in drawn for text in ("mine (grpo)", "grpo (mine)", "the one in brackets"))
    rows = rows_of(runs, some_choices(), "grpo", "eval/reward")
    drawn = differences(rows, "eval/reward", 2)
    assert ">mine<" in drawn
    assert ">a difference<" in drawn
    assert "eval/reward less that of grpo" in drawn


def test_runs_and_choices_survive_their_files(tmp_path: Path) -> None:
    one = run("a", 1, [0.1, 0.2, 0.3])
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**vars(one), "split": "test"}))
    assert read_run(path) == one
    path.write_text("{")
    with pytest.raises(
        UserError, match=r"run.json: not readable as a run; delete it, and `gift compare` makes it again$"
    ):
        read_run(path)
    choice = some_choices()["mine"]
    path.write_text(json.dumps(vars(choice)))
    assert read_choice(path) == choice


# A run is the pipeline's arithmetic; and what DVC runs again.


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's code with a tiny comparison of two methods in it."""
    folder = mini.make_project(tmp_path_factory.mktemp("compare"))
    shutil.copytree(ROOT / "compare", folder / "compare", ignore=shutil.ignore_patterns("data", "dvc.lock"))
    shutil.copytree(ROOT / "presets", folder / "presets")
    params = mini.merge(mini.read_yaml(ROOT / "params.yaml"), {**mini.TINY, "update": {"groups_per_step": 4}})
    params["score"]["rewards"]["short"] = {"function": "length", "settings": {"max_tokens": 24, "target_tokens": 4}}
    params["arithmetic"]["steps"] = 60
    (folder / "compare/params.yaml").write_text(json.dumps(params))
    write_plan(folder, PLAN | {"methods": {"mine": {"update": {"match": {"gift": {"spread_floor": 0.5}}}}}})
    return folder


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    with (folder / "compare/compare.yaml").open("w") as file:
        YAML().dump(plan, file)


def python(folder: Path, *words: str) -> str:
    return mini.run([sys.executable, "-m", *words], folder, mini.environment())


RUN = ("--params", "compare/params.yaml", "--method", "m/mine.json", "--start", "start", "--seed", "5")


@pytest.fixture(scope="module")
def started(project: Path) -> Path:
    plan = ("--plan", "compare/compare.yaml", "--params", "compare/params.yaml")
    python(project, "stages.compare.methods", *plan, "m")
    python(project, "stages.compare.start", *plan[2:], "start")
    python(project, "stages.compare.run", "--name", "x", *RUN, "--split", "test", "--rounds", "2", "--out", "x.json")
    return project


@pytest.mark.slow
def test_dev_and_test_are_apart(started: Path) -> None:
    import pyarrow.parquet as pq

    ids = {
        name: pq.read_table(started / f"start/prompts/{name}.parquet")["prompt_id"].to_pylist()
        for name in ("dev", "test", "eval")
    }
    assert not {*ids["dev"]} & {*ids["test"]}
    assert sorted(ids["dev"] + ids["test"]) == ids["eval"]
    assert abs(len(ids["dev"]) - len(ids["test"])) <= 1


@pytest.mark.slow
def test_a_killed_start_is_made_again(started: Path) -> None:
    """Killed between what prepare publishes, and between policy and optimizer: the same bytes."""
    words = ("stages.compare.start", "--params", "compare/params.yaml", "again")
    killed = "import os, stages.compare.start as start\nstart.held_out = lambda *_: os._exit(9)\nstart.main()\n"
    command = [sys.executable, "-c", killed, *words[1:]]
    assert subprocess.run(command, check=False, cwd=started, env=mini.environment()).returncode == 9
    work = started / "data/.work/compare_start/project"
    (work / "prompts/prepare.json").unlink()
    made = (work / "base/policy/model.safetensors").stat().st_mtime_ns
    python(started, *words)
    assert not work.exists()
    assert mini.content(started / "again") == mini.content(started / "start")
    assert (started / "again/base/policy/model.safetensors").stat().st_mtime_ns == made, "the base was made again"


@pytest.mark.slow
def test_a_run_is_the_pipelines_rounds(started: Path, tmp_path: Path) -> None:
    """The same settings, seed and base through the stages one by one: equal numbers, rollouts of the same bytes."""
    folder = mini.make_project(tmp_path / "pipeline")
    method = json.loads((started / "m/mine.json").read_text())
    content = laid_over(read_yaml(started / "compare/params.yaml"), method, None, 5)
    (folder / "params.yaml").write_text(json.dumps(content))
    (folder / "data/rounds/base").mkdir(parents=True)
    (folder / "data/prompts").mkdir()
    shutil.copyfile(started / "start/prompts/train.parquet", folder / "data/prompts/train.parquet")
    shutil.copyfile(started / "start/prompts/test.parquet", folder / "data/prompts/eval.parquet")
    for name in ("policy", "optimizer"):
        shutil.copytree(started / "start/base" / name, folder / "data/rounds/base" / name)
    stages = ("generate", "score", "reference", "update", "generate_eval", "evaluate")
    mini.run_stages(folder, [f"{stage}@{name}" for name in ("r1", "r2") for stage in stages])
    made = read_run(started / "x.json")
    from gift.project.work import tree_digest

    for name in ("r1", "r2"):
        assert made.rollouts[name] == tree_digest(folder / f"data/rounds/{name}/rollouts")
    for number in (1, 2):
        theirs = json.loads((folder / f"data/rounds/r{number}/metrics/evaluate.json").read_text())
        assert {key: made.rows[number][key] for key in theirs if not key.endswith("_se")} == {
            key: value for key, value in theirs.items() if not key.endswith("_se")
        }
    assert moved(folder / "data/rounds/r2")["kl"] == made.rows[1]["kl"]


@pytest.mark.slow
def test_a_killed_run_goes_on(started: Path, tmp_path: Path) -> None:
    """Killed while its first round was published, then run again: the same bytes, and nothing is sampled again."""
    words = ["stages.compare.run", "--name", "y", *RUN, "--split", "test", "--rounds", "2", "--out", "y.json"]
    work = started / "data/.work/compare_run@y/project/data/rounds"
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=started, env=mini.environment(), start_new_session=True
    )
    while not (work / "r1/policy").exists():
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()
    (work / "r1/metrics/update.json").unlink(missing_ok=True)  # the last of a round to be published
    part = work / "r1/rollouts/part-00000.parquet"
    os.utime(part, ns=(1, 1))
    seen = threading.Event()
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=started, env=mini.environment())
    while process.poll() is None and not seen.is_set():
        if (work / "r1/metrics/update.json").exists():
            assert part.stat().st_mtime_ns == 1
            seen.set()
    assert process.wait() == 0
    assert seen.is_set()
    assert (started / "y.json").read_bytes() == (started / "x.json").read_bytes()
    assert not work.exists()


@pytest.mark.slow
def test_a_run_that_drifts_away_is_a_result(started: Path) -> None:
    words = [word.replace("m/mine.json", "far.json") for word in RUN]
    (started / "far.json").write_text(json.dumps({"update": {"max_drift": 1e-9}}))
    python(started, "stages.compare.run", "--name", "z", *words, "--split", "dev", "--rounds", "2", "--out", "z.json")
    made = read_run(started / "z.json")
    assert len(made.rows) == 1
    assert "the mean log-ratio to the anchor" in str(made.stopped)


@pytest.mark.slow
def test_adding_a_seed_runs_that_seed_alone(project: Path) -> None:
    """Under DVC: all of it; nothing; a further seed of both methods; a method; and the tables have them."""
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=project, check=True, env=mini.environment())

    def compared(*words: str) -> list[str]:
        said = python(project, "gift.cli", "compare", *words)
        return sorted(line.split(":")[0] for line in said.splitlines() if line.startswith("compare_"))

    plan = {
        **PLAN,
        "rounds": 1,
        "seeds": [1],
        "sweep": {"lrs": [1e-4], "seeds": [9]},
        "methods": {"mine": {"preset": "gift"}},
    }
    write_plan(project, plan)
    first = compared("--jobs", "2")
    assert [line for line in first if line.startswith("compare_run")] == [
        "compare_run@grpo-0.0001-9-dev",
        "compare_run@grpo-1",
        "compare_run@mine-0.0001-9-dev",
        "compare_run@mine-1",
    ]
    assert compared() == []
    write_plan(project, {**plan, "seeds": [1, 2]})
    assert [line for line in compared() if line.startswith("compare_run")] == [
        "compare_run@grpo-2",
        "compare_run@mine-2",
    ]
    write_plan(
        project, {**plan, "seeds": [1, 2], "run": [*plan["run"], "gspo"], "more": {"run": ["gspo"], "seeds": [3]}}
    )
    assert [line for line in compared() if line.startswith("compare_run")] == [
        "compare_run@gspo-0.0001-9-dev",
        "compare_run@gspo-1",
        "compare_run@gspo-2",
        "compare_run@gspo-3",
    ]
    table = (project / "compare/data/report/table.md").read_text()
    assert all(f"| {name} | " in table for name in ("grpo", "mine", "gspo"))
    rows = json.loads((project / "compare/data/report/table.json").read_text())
    assert [row["seeds"] for row in rows["rows"]] == [2, 2, 3]
