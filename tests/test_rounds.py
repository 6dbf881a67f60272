"""The laws of rounds.yaml: names, parents, circles, what a round may change, and its branches."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gift.project.errors import UserError
from gift.project.params import overrides_text, read_section
from gift.project.rounds import Round, branches, lay_over, read_rounds, round_problems
from gift.project.work import write_text
from gift.training.reference.settings import Reference


def rounds_of(**parents: str) -> dict[str, Round]:
    return {name: Round(name, parent, {}) for name, parent in parents.items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "rounds: must be a map with a line a round"),
        ({"rounds": []}, "rounds: must be a map with a line a round"),
        ({"rounds": {1: {"from": "base"}}}, "rounds.1: 1: the name of a round must be a text; write r1"),
        ({"rounds": {"a.b": {"from": "base"}}}, "rounds.a.b: the name of a round is letters, digits"),
        ({"rounds": {"base": {"from": "base"}}}, "rounds.base: the name of a round is"),
        ({"rounds": {"r1": {}}}, "rounds.r1: must say the round that it starts from"),
        ({"rounds": {"r1": {"from": "r0"}}}, "rounds.r1.from: 'r0': there is no such round; there are base, r1"),
        (
            {"rounds": {"r1": {"from": "base", "updat": {}}}},
            "rounds.r1.updat: a round cannot change this; did you mean 'update'?",
        ),
        ({"rounds": {"r1": {"from": "base", "prepare": {}}}}, "rounds.r1.prepare: a round cannot change this; known:"),
        ({"rounds": {"r1": {"from": "base", "update": 3}}}, "rounds.r1.update: must be a map"),
        (
            {"rounds": {"r1": {"from": "base", "update": {"dtype": "bfloat16"}}}},
            "rounds.r1.update.dtype: a round cannot",
        ),
        ({"rounds": {"a": {"from": "b"}, "b": {"from": "a"}}}, "rounds.a: `from` leads in a circle (a, b)"),
    ],
)
def test_a_fault_is_one_line(content: dict[str, Any], words: str) -> None:
    (line,) = round_problems(content)
    assert line.startswith("rounds.yaml: ")
    assert words in line


def test_every_fault_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rounds.yaml"
    file.write_text("rounds:\n  r1: {from: base}\n  r2: {from: r9}\n  r3: {from: r1, upd: {}, score: 1}\n")
    with pytest.raises(UserError) as caught:
        read_rounds(file)
    assert caught.value.message.count("rounds.yaml: rounds.") == 3


def test_overrides_are_what_stands_beside_from(tmp_path: Path) -> None:
    file = tmp_path / "rounds.yaml"
    file.write_text("rounds:\n  r1: {from: base}\n  r1b: {from: base, update: {lr: 1.0e-5}}\n")
    assert read_rounds(file) == {
        "r1": Round("r1", "base", {}),
        "r1b": Round("r1b", "base", {"update": {"lr": 1e-5}}),
    }


def test_a_key_of_a_round_replaces_that_key_whole() -> None:
    section = {"lr": 1.0, "match": {"gift": {"anchor": "old"}}}
    assert lay_over(section, {"match": {"gvpo": {}}}) == {"lr": 1.0, "match": {"gvpo": {}}}
    assert section["match"] == {"gift": {"anchor": "old"}}


def test_branches_go_on_with_the_first_child() -> None:
    rounds = rounds_of(r1="base", r2="r1", r2b="r1", r3="r2", r3b="r2b", s1="base")
    assert branches(rounds) == {
        "r1": ["base", "r1", "r2", "r3"],
        "r2b": ["r1", "r2b", "r3b"],
        "s1": ["base", "s1"],
    }


@given(st.lists(st.integers(0, 10), min_size=1, max_size=12), st.randoms())
def test_every_round_is_in_one_line_after_its_parent(picks: list[int], random: Any) -> None:
    names = [f"r{index}" for index in range(len(picks))]
    entries = [
        (name, ["base", *names[:index]][pick % (index + 1)])
        for index, (name, pick) in enumerate(zip(names, picks, strict=True))
    ]
    random.shuffle(entries)
    rounds = rounds_of(**dict(entries))
    lines = branches(rounds)
    assert sorted(name for line in lines.values() for name in line[1:]) == sorted(names)
    assert all(rounds[later].parent == earlier for line in lines.values() for earlier, later in pairwise(line))


def test_a_round_changes_keys_of_its_sections_alone_and_is_checked_as_strictly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("reference: {policy: previous, max_mean_gap: 0.5}\n")
    file = Path("made/reference.json")

    def read(changes: dict[str, Any]) -> Reference:
        write_text(file, overrides_text(Round("r3b", "r2", {"reference": changes}), "reference"))
        return read_section("reference", Reference, file.parent)

    assert read({}) == Reference(policy="previous", max_mean_gap=0.5)
    assert read({"max_mean_gap": 0.25}) == Reference(policy="previous", max_mean_gap=0.25)
    for changes in ({"max_mean_gap": -1.0}, {"max_gap": 1.0}):
        with pytest.raises(UserError, match=rf"^rounds.yaml: rounds.r3b.reference.{next(iter(changes))}: "):
            read(changes)
    file.write_text("{")
    with pytest.raises(UserError, match="dvc repro overrides"):
        read_section("reference", Reference, file.parent)
