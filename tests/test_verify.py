"""`gift verify` finds what is wrong in finished rounds and says where; `gift prune` removes states and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_damage import flip

from gift.cli import main
from gift.project import door
from gift.project.graph import read_lock
from gift.upkeep import verify

R1 = Path("data/rounds/r1")


def run(*words: str) -> tuple[int, list[str]]:
    verify._rollouts.cache_clear()
    done = CliRunner().invoke(main, ["verify", *words])
    return done.exit_code, done.output.splitlines()


def note_again() -> None:
    """As if DVC had made what lies there: its digests no longer tell."""
    lock = json.loads(Path("dvc.lock").read_text())
    for stage in lock["stages"].values():
        for out in stage["outs"]:
            out["md5"] = door.md5_of(Path(out["path"]))
    Path("dvc.lock").write_text(json.dumps(lock))


def test_a_whole_project_passes_and_each_look_says_what_it_saw(noted: Path) -> None:
    code, lines = run("--rows", "4")
    assert code == 0, lines
    assert [line.split(":")[0] for line in lines] == ["ok     digests", "ok     prompts", *["ok     r1"] * 4]
    outs = sum(len(record.outs) for record in read_lock().values())
    assert lines[0] == f"ok     digests: {outs} outputs have the MD5 of dvc.lock"
    assert "tables: 64 completions, 48 answers" in lines[2]
    assert "round 1 of base " in lines[3]
    assert "log-probs: 4 completions, within " in lines[5]
    assert run("r1", "--rows", "0")[1] == lines[:-1]


def other_answers() -> None:
    shutil.rmtree(R1 / "answers")
    shutil.copytree("data/rounds/base/answers", R1 / "answers")


def other_sums() -> None:
    path = R1 / "metrics/score.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_failed": 1}))


def other_log_probs() -> None:
    """The table of another policy: whole in itself, each number within the laws."""
    for path in (R1 / "reference").glob("*.parquet"):
        table = pq.read_table(path)
        place = table.schema.get_field_index("old_logprobs")
        field = table.schema.field(place)
        changed = [[number - 0.01 for number in row] for row in table["old_logprobs"].to_pylist()]
        pq.write_table(table.set_column(place, field, pa.array(changed, type=field.type)), path)


def cut_metrics() -> None:
    (R1 / "metrics/update.json").write_text("{")


WRONG: dict[str, tuple[Callable[[], None], str, str]] = {
    "answers of the base": (other_answers, "r1: lineage", "the policy of its answers is "),
    "sums that do not add up": (other_sums, "r1: ledger", "num_scored + num_failed + num_abstained: 65, must be 64"),
    "log-probs of another policy": (other_log_probs, "r1: log-probs", "old_logprobs differ by up to 0.01 nats"),
    "metrics that are cut": (cut_metrics, "r1: ledger", "update.json: damaged"),
    "no scores": (lambda: shutil.rmtree(R1 / "scores"), "r1: tables", "data/rounds/r1/scores"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_digests_cannot_tell_is_found(noted: Path, name: str) -> None:
    damage, what, message = WRONG[name]
    damage()
    if (R1 / "scores").exists():
        note_again()
    code, lines = run("--rows", "4")
    assert code == 1
    wrong = [line for line in lines if line.startswith("wrong")]
    found = next((line for line in wrong if line.startswith(f"wrong  {what}: ")), "")
    assert message in found, wrong
    also = {"answers of the base": 2, "no scores": len(wrong)}  # what was made of them is wrong, too
    assert len(wrong) == also.get(name, 1), wrong


def test_a_flipped_bit_and_a_lost_output_are_counted(noted: Path) -> None:
    flip(R1 / "optimizer/state.safetensors")
    Path("data/prompts/prepare.json").unlink()
    code, lines = run("--rows", "0")
    assert code == 1
    assert "2 of " in lines[0]
    assert "data/prompts/prepare.json (missing)" in lines[0]
    assert "data/rounds/r1/optimizer (other bytes)" in lines[0]


def test_prune_says_what_goes_and_takes_no_more(noted: Path) -> None:
    """Of three rounds in a line, and one that branches off the first and has not been made."""
    lock = json.loads(Path("dvc.lock").read_text())
    for number in (2, 3):
        path = Path(f"data/rounds/r{number}/optimizer")
        path.mkdir(parents=True)
        (path / "state.safetensors").write_text(f"state {number}")
        out = {"path": str(path), "md5": door.md5_of(path)}
        lock["stages"][f"update@r{number}"] = {"cmd": "x", "outs": [out]}
    Path("dvc.lock").write_text(json.dumps(lock))
    Path("rounds.yaml").write_text("rounds:\n  r1: {from: base}\n  r2: {from: r1}\n  r3: {from: r2}\n")
    runner = CliRunner()
    done = runner.invoke(main, ["prune", "--states", "2"], input="n\n")
    assert done.output.startswith("data/rounds/r1/optimizer: "), done.output
    assert "Remove 1 states, " in done.output
    assert (R1 / "optimizer").exists()
    done = runner.invoke(main, ["prune", "--states", "1", "--yes"])
    assert [line.split(":")[0] for line in done.output.splitlines()] == [
        "data/rounds/r1/optimizer",
        "data/rounds/r2/optimizer",
    ]
    assert not (R1 / "optimizer").exists()
    assert Path("data/rounds/r3/optimizer/state.safetensors").read_text() == "state 3"
    assert (R1 / "policy/model.safetensors").exists()
    assert runner.invoke(main, ["prune", "--states", "1", "--yes"]).output == "nothing to prune\n"


def test_prune_leaves_what_a_round_waits_for(noted: Path) -> None:
    Path("rounds.yaml").write_text("rounds:\n  r1: {from: base}\n  r2: {from: r1}\n")
    assert CliRunner().invoke(main, ["prune", "--states", "1", "--yes"]).output == "nothing to prune\n"
    assert (R1 / "optimizer").exists()
