"""Taking results elsewhere: trackers, a model card, a project of one's own."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from gift.cli import main
from gift.policy.folder import policy_digest
from gift.report import export
from gift.report.export import Point, points_of
from gift.report.runs import lines_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copied)
    return copied


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == code, done.output
    return done.output


class Tracker:
    """Keeps what it is sent, as a tracker does: by run, in order."""

    def __init__(self) -> None:
        self.runs: dict[str, list[Point]] = {}

    def __call__(self, project: str, name: str, run: str | None, points: Any) -> str:
        run = run or f"{project}/{name}"
        self.runs.setdefault(run, []).extend(points)
        return run


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    made = Tracker()
    monkeypatch.setitem(export.SINKS, "wandb", made)
    return made


def test_a_tracker_gets_every_row_once(project: Path, tracker: Tracker) -> None:
    (line,) = lines_of(Path())
    points = points_of(line)
    assert [each.at for each in points if each.axis == "round"] == [0, 1]
    assert [each.at for each in points if each.axis == "step"] == [step["step"] for step in line.steps]
    assert f"r1: {len(points)} rows sent" in run("export", "wandb", "--project", "mine")
    assert "r1: 0 rows sent" in run("export", "wandb", "--project", "mine")
    assert tracker.runs == {"mine/r1": points}
    run("export", "wandb", "--project", "other")
    assert tracker.runs == {"mine/r1": points, "other/r1": points}
    last = points[-1].numbers
    history = json.loads(Path("data/history/r1.json").read_text())["round"]
    assert {name: history[name] for name in last if name != "rollouts"} == {
        name: value for name, value in last.items() if name != "rollouts"
    }


def test_a_new_round_goes_behind_and_one_made_again_begins_a_run(project: Path, tracker: Tracker) -> None:
    run("export", "wandb", "--project", "mine")
    path = Path("data/history/r1.json")
    history = json.loads(path.read_text())
    second = {"round": history["round"] | {"name": "r2", "round": 2}, "steps": history["steps"]}
    Path("data/history/r2.json").write_text(json.dumps(second))
    number = len(tracker.runs["mine/r1"])
    assert f"r1: {len(history['steps']) + 1} rows sent" in run("export", "wandb", "--project", "mine")
    assert len(tracker.runs["mine/r1"]) == number + len(history["steps"]) + 1
    history["round"]["reward"] += 1
    path.write_text(json.dumps(history))
    run("export", "wandb", "--project", "mine")
    assert list(tracker.runs) == ["mine/r1", "mine/r1-2"]
    assert len(tracker.runs["mine/r1-2"]) == len(tracker.runs["mine/r1"])


def test_a_tracker_that_is_not_installed_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(export, "import_module", missing)
    for tracker in export.SINKS:
        said = run("export", tracker, code=1)
        assert said.count("\n") == 1
        assert f"{tracker}: the package is not installed; name it in a line of requirements/own.txt" in said
    assert not Path("data/.cache/export").exists()


def test_what_a_tracker_refuses_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise ConnectionError("no network\nat all")

    monkeypatch.setitem(export.SINKS, "wandb", refuse)
    said = run("export", "wandb", code=1)
    assert said == "error: wandb: ConnectionError: no network; nothing of r1 counts as sent\n"
    Path("data/.cache/export").mkdir(parents=True)
    Path("data/.cache/export/wandb.json").write_text("{")
    assert "no network" in run("export", "wandb", code=1)


def test_tensorboard_reads_what_was_written(project: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is in no lock: requirements/own.txt installs it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("export", "tensorboard")
    found = EventAccumulator(str(export.TENSORBOARD / "r1"))
    found.Reload()
    history = json.loads(Path("data/history/r1.json").read_text())
    (_, last) = found.Scalars("round/eval/accuracy_greedy")
    assert (last.step, last.value) == (1, pytest.approx(history["round"]["eval/accuracy_greedy"]))
    assert len(found.Scalars("step/loss")) == len(history["steps"])


def test_a_card_says_how_the_policy_was_made(project: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    out = tmp_path / "mine"
    assert "hf upload ACCOUNT/mine" in run("card", "data/rounds/r1/policy", str(out))
    read = ModelCard.load(out / "README.md")
    history = json.loads(Path("data/history/r1.json").read_text())["round"]
    assert read.data.eval_results[0].metric_value == history["eval/accuracy_greedy"]
    lineage = json.loads(Path("data/rounds/r1/policy/gift.json").read_text())
    assert lineage["digest"] in read.text
    assert "base -> r1" in read.text
    assert (out / "model.safetensors").read_bytes() == Path("data/rounds/r1/policy/model.safetensors").read_bytes()
    assert not (out / "gift.json").exists()
    assert "exists already; nothing was changed" in run("card", "data/rounds/r1/policy", str(out), code=1)
    shutil.copytree("data/rounds/r1/policy", tmp_path / "policy")
    said = run("card", str(tmp_path / "policy"), str(tmp_path / "other"), code=1)
    assert "no policy of a round of this project" in said
    assert not (tmp_path / "other").exists()


def test_a_card_of_an_adapter_names_the_model_on_the_hub(project: Path, tmp_path: Path) -> None:
    policy = Path("data/rounds/r1/policy")
    config = {"base_model_name_or_path": "data/rounds/base/policy", "r": 4}
    (policy / "adapter_config.json").write_text(json.dumps(config))
    (policy / "config.json").unlink()
    lineage = json.loads((policy / "gift.json").read_text()) | {"digest": policy_digest(policy)}
    (policy / "gift.json").write_text(json.dumps(lineage))
    params = json.loads(Path("params.yaml").read_text()) | {"base": {"model": "some/model"}}
    Path("params.yaml").write_text(json.dumps(params))
    run("card", str(policy), str(tmp_path / "mine"), "--name", "My model")
    written = json.loads((tmp_path / "mine/adapter_config.json").read_text())
    assert written == config | {"base_model_name_or_path": "some/model"}
    text = (tmp_path / "mine/README.md").read_text()
    assert "library_name: peft" in text
    assert "base_model: some/model" in text
    assert "# My model" in text


def test_a_project_of_ones_own_has_no_rounds_and_can_be_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, own = tmp_path / "tool", tmp_path / "own"
    for name, value in {"NAME": "x", "EMAIL": "x@example.org"}.items():
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)

    def git(*words: str, folder: Path = tool) -> str:
        return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout

    (tool / "data/history").mkdir(parents=True)
    (tool / "presets").mkdir()
    for name in ("gsm8k", "launch-7b"):
        shutil.copyfile(ROOT / f"presets/{name}.yaml", tool / f"presets/{name}.yaml")
    for name in ("params.yaml", "data/history/r1.json", "dvc.lock", "code.py"):
        (tool / name).write_text("{}\n")
    git("init", "--quiet", "--initial-branch", "main")
    git("add", "--all")
    git("commit", "--quiet", "-m", "tool")
    monkeypatch.chdir(tool)
    assert "presets/gsm.yaml: no such file; did you mean" in run("init", str(own), "--preset", "gsm", code=1)
    assert "no such file" in run("init", str(own), "--preset", "launch-7b", code=1)
    assert not own.exists()
    assert "`git pull gift main`" in run("init", str(own), "--preset", "gsm8k")
    assert sorted(path.name for path in own.iterdir()) == [".git", "code.py", "params.yaml", "presets"]
    assert YAML(typ="safe").load((own / "params.yaml").read_text())["prepare"]["source"] == "hub:openai/gsm8k"
    assert not git("status", "--short", folder=own)
    assert "exists already; nothing was changed" in run("init", str(own), code=1)
    (tool / "code.py").write_text("new\n")
    git("commit", "--quiet", "--all", "-m", "better")
    git("pull", "--quiet", "--no-rebase", "--no-edit", "gift", "main", folder=own)
    assert (own / "code.py").read_text() == "new\n"
    assert not (own / "dvc.lock").exists()
    monkeypatch.chdir(tmp_path)
    assert "nothing was left behind" in run("init", "another", code=1)
    assert not (tmp_path / "another").exists()
