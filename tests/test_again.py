"""What is said before finished work runs again, with the way out that fits its cause; and of what was kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gift.doctor import again
from gift.doctor.again import base_is_lost, stages_of_run
from gift.project.errors import UserError
from gift.project.graph import Record, Stage
from gift.project.work import MADE
from gift.upkeep.guard import VARIABLE
from gift.upkeep.keep import kept_lines
from gift.upkeep.plan import Step, World

BASE = "data/rounds/base/policy is missing"
STATE = "data/rounds/r1/optimizer is missing"
SETTING = "update.lr changed (params.yaml)"


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose finished work always asks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    Path("launch.yaml").write_text('{"repro": {"ask_from_minutes": 0}}')


def step(address: str, *reasons: str, made: bool = True) -> Step:
    stage = Stage(address, "true", (), {}, {f"data/{address}": False}, restores=False, always=address == "code")
    return Step(stage, again=made, restored=False, reasons=reasons)


def project(*addresses: str) -> World:
    stages = {address: step(address).stage for address in addresses}
    lock = {address: Record("true", {}, {}, {}) for address in addresses}
    return World(stages, lock, lambda _: None, lambda *_: None, Path(), lambda _: "2\n", lambda _: None)


@pytest.mark.parametrize(
    ("planned", "cause", "way"),
    [
        ([step("base", BASE), step("update@r1")], BASE, "`make repro` makes the base policy first, and looks again"),
        ([step("update@r1", STATE)], STATE, "`make repro ARGS=--allow-missing` goes on without it where no stage"),
        ([step("update@r1", SETTING)], SETTING, "`gift keep` leaves finished rounds as they are where code alone"),
        ([step("update@r1", STATE), step("update@r2", SETTING)], SETTING, "`gift keep` leaves finished rounds"),
    ],
    ids=["the base", "a state", "a setting", "two causes"],
)
def test_the_way_out_fits_the_cause(planned: list[Step], cause: str, way: str) -> None:
    (finding,) = again._findings(project("base", "update@r1", "update@r2"), planned)
    assert finding.level == "error"
    assert cause in finding.text
    assert way in finding.text
    assert f"`{VARIABLE}=1 make repro` runs it again" in finding.text


def test_the_base_is_lost_where_nothing_else_about_it_changed() -> None:
    assert base_is_lost([step("base", BASE), step("update@r1")])
    assert not base_is_lost([step("base", BASE, "base.model changed (params.yaml)")])
    assert not base_is_lost([step("base", "not made yet", made=False)])
    assert not base_is_lost([step("base")]), "it follows another stage"
    assert not base_is_lost([step("update@r1", STATE)])


def test_a_base_that_is_missing_is_made_before_anything_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = iter([[step("base", BASE), step("update@r1")], [step("code")]])
    calls: list[str] = []
    monkeypatch.setattr(again, "world", lambda **_: project("code", "base", "update@r1"))
    monkeypatch.setattr(again, "plan", lambda *_: next(plans))
    monkeypatch.setattr(again, "make_base", lambda: calls.append("base") or 0)
    assert stages_of_run([]) == []
    assert calls == ["base"]
    said = capsys.readouterr().out
    assert said.startswith("the base policy is missing, and DVC keeps no copy: it is made first;")
    assert said.endswith("nothing that is finished would run again\n")


def test_where_the_base_cannot_be_made_nothing_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "world", lambda **_: project("base"))
    monkeypatch.setattr(again, "plan", lambda *_: [step("base", BASE)])
    monkeypatch.setattr(again, "make_base", lambda: 7)
    with pytest.raises(SystemExit) as ended:
        stages_of_run([])
    assert ended.value.code == 7


def test_a_base_that_came_out_otherwise_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another kind of machine."""
    changed = "data/rounds/base/policy changed"
    plans = iter([[step("base", BASE), step("update@r1")], [step("update@r1", changed)]])
    monkeypatch.setattr(again, "world", lambda **_: project("base", "update@r1"))
    monkeypatch.setattr(again, "plan", lambda *_: next(plans))
    monkeypatch.setattr(again, "make_base", lambda: 0)
    with pytest.raises(UserError, match=f"1 finished round .r1. would run again because {changed}"):
        stages_of_run([])


def test_what_was_kept_is_said_by_every_run() -> None:
    MADE.mkdir(parents=True)
    for name, code in (("r1", "1"), ("r2", "2")):
        made = {"code": {"results": code}, "kept": [SETTING] if name == "r2" else []}
        (MADE / f"update@{name}.json").write_text(json.dumps(made))
    found = list(kept_lines(project("update@r1", "update@r2", "update@r3")))
    assert found == ["r1: made by update 1, now 2", f"r2: kept, though {SETTING}"]


def test_the_base_is_named_once_whatever_many_of_its_stages_were_kept() -> None:
    MADE.mkdir(parents=True)
    for label in ("base", "evaluate@base"):
        (MADE / f"{label}.json").write_text(json.dumps({"kept": [SETTING]}))
    assert list(kept_lines(project("base", "evaluate_base"))) == [f"base: kept, though {SETTING}"]


def test_keep_notes_what_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from gift.upkeep import keep

    MADE.mkdir(parents=True)
    (MADE / "update@r1.json").write_text('{"code": {"results": "2"}}')
    lock = {"schema": "2.0", "stages": {"update@r1": {"cmd": "false", "deps": [], "params": {}}}}
    Path("dvc.lock").write_text(json.dumps(lock))
    monkeypatch.setattr(keep.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    keep.keep([step("update@r1", SETTING, "data/code/update.txt changed")], ["r1"])
    made = json.loads((MADE / "update@r1.json").read_text())
    assert made == {"code": {"results": "2"}, "kept": [SETTING]}
