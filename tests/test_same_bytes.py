"""Same inputs, same bytes: a project made twice is the same to the last bit, and another seed makes another one."""

from pathlib import Path

import mini
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mini.make_project(tmp_path_factory.mktemp("again"))
    mini.run_stages(folder)
    return folder


def test_a_project_made_twice_is_the_same_bytes(world: Path, again: Path) -> None:
    first, second = mini.content(world / "data"), mini.content(again / "data")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    made = {Path(name).name for name in first}
    must = {"part-00000.parquet", "model.safetensors", "state.safetensors", "steps.csv", "update.json", "gift.json"}
    assert must <= made


def test_nothing_made_tells_where_or_when(world: Path) -> None:
    """Paths, host names and clocks would make equal results differ on another machine."""
    for name, data in mini.content(world / "data").items():
        assert str(world).encode() not in data, name


def test_another_seed_draws_other_completions(copied: Path, world: Path) -> None:
    """From the same policy and the same prompts, so that nothing but the draws can differ."""
    mini.write_params(copied, {"seed": 1, "generate": {"prompts_per_round": 64}})
    mini.remove_outputs(copied, "generate@r1")
    mini.run_stages(copied, ["generate@r1"])
    drawn = {folder: completions(folder) for folder in (world, copied)}
    same = [drawn[copied][key] == text for key, text in drawn[world].items()]
    assert len(same) == 64
    assert sum(same) < 32


def completions(folder: Path) -> dict[tuple[str, int], str]:
    table = pq.read_table(folder / "data/rounds/r1/rollouts").select(["prompt_id", "sample", "completion"])
    return {(row["prompt_id"], row["sample"]): row["completion"] for row in table.to_pylist()}
