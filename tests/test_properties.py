"""Laws that hold for whatever comes: the prompt stream, the arithmetic of groups, settings, rounds.yaml, dvc.lock."""

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from gift.doctor.whole import Launch, Params
from gift.logprobs.batches import num_tokens
from gift.logprobs.settings import Layout
from gift.methods.sample.epochs import take_prompts
from gift.project import yaml
from gift.project.errors import UserError
from gift.project.rounds import Round, branches, round_problems
from gift.project.sections import check
from gift.tables.parquet import part_name
from gift.tables.parts import keys_of, read_table, write_part
from gift.tables.places import Places
from gift.tables.scores import STATUSES, check_scores, scores_schema
from gift.training.steps import micro_batches, share_groups, steps_of_groups

settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
NAMES = st.text("abcdefgh_-0123456789", min_size=1, max_size=6)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)


@given(st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 200), st.integers(0, 9))
def test_the_stream_of_prompts_is_one_permutation_after_another(
    size: int, takes: list[int], start: int, seed: int
) -> None:
    """However rounds cut it: nothing is left out but what a round has already, and a round has nothing twice."""
    ids = [f"p{index}" for index in range(size)]
    order = [take_prompts(ids, epoch * size, size, seed)[0] for epoch in range(start // size + sum(takes) // size + 3)]
    assert all(sorted(epoch) == sorted(ids) for epoch in order)
    stream = [prompt for epoch in order for prompt in epoch]
    position = start
    for count in (min(take, size) for take in takes):
        taken, after = take_prompts(ids, position, count, seed)
        assert taken == list(dict.fromkeys(stream[position:after]))
        assert len(taken) == count
        position = after


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 3), st.integers(0, 9))
def test_the_steps_of_an_epoch_hold_every_group_once(num: int, per_step: int, epochs: int, seed: int) -> None:
    steps = steps_of_groups(range(num), per_step, epochs, seed)
    assert sorted(group for step in steps for group in step) == sorted([*range(num)] * epochs)
    sizes = [len(step) for step in steps]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@given(st.lists(st.integers(1, 999), max_size=30), st.integers(1, 5))
def test_the_shares_of_ranks_hold_every_group_once_and_none_is_far_ahead(tokens: list[int], world: int) -> None:
    shares = share_groups(tokens, world)
    assert sorted(index for share in shares for index in share) == list(range(len(tokens)))
    loads = [sum(tokens[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(tokens, default=0)


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.lists(st.integers(2, 40), min_size=1, max_size=5)), min_size=1, max_size=6
    ),
    st.integers(60, 300),
    st.sampled_from(["padded", "packed", "shared"]),
)
def test_every_row_is_in_one_micro_batch_and_none_is_above_the_budget(
    made: list[tuple[int, list[int]]], budget: int, layout: Layout
) -> None:
    lengths, groups = [], []
    for prompt, completions in made:
        groups.append([len(lengths) + index for index in range(len(completions))])
        lengths += [[prompt, each] for each in completions]
    array = np.array(lengths, np.int64)
    if any(num_tokens([[row]], array, layout) > budget for row in range(len(lengths))):
        with pytest.raises(UserError, match="less than one sequence"):
            micro_batches(groups, array, budget, layout)
        return
    found = micro_batches(groups, array, budget, layout)
    rows = [row for batch in found.whole for group in batch for row in group]
    assert sorted([*rows, *(row for part in found.parts for row in part)]) == list(range(len(lengths)))
    assert all(num_tokens(batch, array, layout) <= budget for batch in found.whole)
    assert all(group in groups for batch in found.whole for group in batch), "a group was cut that fits"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_rows_stand_in_places_of_groups_and_come_back(sizes: list[int]) -> None:
    key = [(f"p{group:02d}", sample) for group, size in enumerate(sizes) for sample in range(size)]
    table = pa.table(
        {"prompt_id": [name for name, _ in key], "sample": pa.array([each for _, each in key], pa.int32())}
    )
    places, values = Places.of(table), np.arange(1, len(key) + 1)
    spread = places.spread(values, 0)
    assert spread.shape == (len(sizes), max(sizes))
    assert spread[spread > 0].tolist() == values.tolist()
    assert [(spread[group] > 0).sum() for group in range(len(sizes))] == sizes


def contents() -> tuple[dict[str, Any], dict[str, Any]]:
    return mini.read_yaml(mini.ROOT / "params.yaml"), mini.read_yaml(mini.ROOT / "launch.yaml") or {}


def places_of(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a map of maps."""
    if not isinstance(content, dict):
        return []
    return [found for key, each in content.items() for found in ((*path, key), *places_of(each, (*path, key)))]


@settings(max_examples=200)
@given(st.data())
def test_whatever_stands_at_a_key_is_taken_or_refused_with_that_key(data: st.DataObject) -> None:
    params, launch = contents()
    for content, model, file in ((params, Params, "params.yaml"), (launch, Launch, "launch.yaml")):
        content = json.loads(json.dumps(content))
        path = data.draw(st.sampled_from(places_of(content) or [("update",)]))
        place = content
        for key in path[:-1]:
            place = place[key]
        unknown = data.draw(st.booleans())
        name = "a_key_that_nothing_has" if unknown else path[-1]
        place[name] = data.draw(VALUES)
        try:
            check(model, content, file)
        except UserError as error:
            lines = error.message.split("\n       ")
            assert all(line.startswith(f"{file}: ") for line in lines), lines
            assert any(path[0] in line or name in line for line in lines), lines
        else:
            assert not unknown or path[:-1] in FREE, path


FREE = {("score", "rewards", "answer", "settings"), ("prepare", "columns"), ("score", "rewards")}


@given(st.dictionaries(st.one_of(NAMES, st.integers()), VALUES, max_size=4) | VALUES)
def test_any_content_of_rounds_yaml_is_taken_or_named(rounds: Any) -> None:
    problems = round_problems({"rounds": rounds}, Path("rounds.yaml"))
    assert all(line.startswith("rounds.yaml: rounds") for line in problems)
    if not problems:
        known = {name: Round(name, each["from"], {}) for name, each in rounds.items()}
        lines = branches(known)
        assert sorted(name for line in lines.values() for name in line[1:]) == sorted(known)
        assert all(known[after].parent == before for line in lines.values() for before, after in pairwise(line))


@given(st.lists(st.lists(st.tuples(st.floats(-9, 9), st.sampled_from(STATUSES)), min_size=1, max_size=4), min_size=1))
def test_any_valid_scores_come_back_and_one_wrong_cell_is_refused(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[float, str]]]
) -> None:
    folder = tmp_path_factory.mktemp("scores")
    rows = [
        {
            "prompt_id": f"p{number:03d}",
            "sample": sample,
            "reward": value if status == "ok" else None,
            "right": value if status == "ok" else None,
            "right_status": status,
        }
        for number, group in enumerate(groups)
        for sample, (value, status) in enumerate(group)
    ]
    schema = scores_schema(["right"])
    table = pa.Table.from_pylist(rows, schema)
    write_part(folder, 0, table, schema, check_scores, {"rewards": {"right": {"weight": 1.0}}})
    found, _ = read_table(folder, schema, check_scores)
    assert found.replace_schema_metadata().equals(table)
    assert keys_of(found) == [(row["prompt_id"], row["sample"]) for row in rows]
    for wrong in ({"right_status": "fine"}, {"reward": float("inf")}, {"right": None, "right_status": "ok"}):
        with pytest.raises(UserError, match=r"row 0 \(prompt_id=p000, sample=0\)"):
            write_part(folder, 1, pa.Table.from_pylist([rows[0] | wrong], schema), schema, check_scores, {})
    assert not (folder / part_name(1)).exists()


LOCKED = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}(@r[0-9]{1,3})?", fullmatch=True),
    st.fixed_dictionaries(
        {
            "cmd": st.text("abc -/'\"#:", min_size=1, max_size=200),
            "params": st.dictionaries(NAMES, VALUES, max_size=3),
            "outs": st.lists(st.fixed_dictionaries({"path": NAMES, "md5": NAMES, "size": st.integers(0)}), max_size=3),
        }
    ),
    max_size=4,
)


def written(stages: dict[str, Any]) -> str:
    """As DVC writes dvc.lock."""
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = False
    yaml.dump({"schema": "2.0", "stages": stages}, text)
    return text.getvalue()


@given(LOCKED, LOCKED)
def test_a_lock_in_blocks_says_what_yaml_reads_and_takes_other_blocks_as_dvc_would_write_them(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("lock"))
        text = written(before)
        for _ in range(2):  # as it is read, and as it was kept
            assert repr(yaml.load_lock(text, Path("dvc.lock"))) == repr(YAML(typ="safe").load(text))
        if yaml.blocks_of(text) is None:
            return
        new = yaml.blocks_of(written(changes)) or {}
        assert yaml.with_stages(text, new) == (written(before | changes) if before | changes else text)
