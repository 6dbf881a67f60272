"""Same inputs, same bytes: a project made twice is the same to the last bit, and another seed makes another one.

recorded.json holds what the code of every result number made of the mini project; in the project's folder
`python tests/test_same_bytes.py` records it anew.
"""

import hashlib
import json
import platform
import re
import tempfile
from pathlib import Path

import mini
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from gift.project.code import code_of

RECORDED = Path(__file__).with_name("recorded.json")
MAKERS = [address for address in mini.ORDER if address not in ("code", "overrides@r1", "check_rewards", "report")]


def machine() -> str:
    """What float results depend on beside code and settings."""
    cpu = re.search(r"^vendor_id\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {cpu[1] if cpu else 'unknown'} {kind}, torch {torch.__version__}"


def made_by(folder: Path, address: str) -> list[str]:
    """The number of a stage's results, and a digest of what they hold: values of columns, tensors, accuracies."""
    held: list[object] = []
    for path in (path for out in mini.outputs(folder, address) for path in mini.files(out)):
        if path.suffix == ".parquet":
            held.append(sorted(pq.read_table(path).to_pydict().items()))
        elif path.suffix == ".safetensors":
            tensors = sorted(load_file(path).items())
            held += [[name, value.dtype.str, value.shape, value.tobytes().hex()] for name, value in tensors]
        elif path.name == "evaluate.json":
            held.append(sorted(json.loads(path.read_text()).items()))
    return [code_of(re.split("@|_base", address)[0]), hashlib.sha256(repr(held).encode()).hexdigest()[:12]]


def test_the_same_number_makes_the_same_bytes(world: Path) -> None:
    recorded = json.loads(RECORDED.read_text())
    record = "`python tests/test_same_bytes.py` records anew"
    assert list(recorded["made"]) == MAKERS, record
    for address, (number, digest) in recorded["made"].items():
        if address != "prepare" and machine() != recorded["machine"]:
            pytest.skip(f"recorded on {recorded['machine']}; this is {machine()}, where floats round otherwise")
        now, made = made_by(world, address)
        assert now == number, f"{address}: its results have another number than those recorded: {record}"
        raised = f"`gift code --other {re.split('@|_base', address)[0]}` raises the number, then {record}"
        assert made == digest, f"{address}: the same number, other bytes: {raised}"


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mini.make_project(tmp_path_factory.mktemp("again"))
    mini.run_stages(folder)
    return folder


@pytest.mark.slow
def test_a_project_made_twice_is_the_same_bytes(world: Path, again: Path) -> None:
    first, second = mini.made(world / "data"), mini.made(again / "data")
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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        mini.run_stages(mini.make_project(Path(place)))
        made = {address: made_by(Path(place), address) for address in MAKERS}
    edited = [address for address, (number, _) in made.items() if number.startswith("edited")]
    assert not edited, f"{', '.join(edited)}: no number yet; first `gift code --same STAGE`, or `--other STAGE`"
    RECORDED.write_text(json.dumps({"machine": machine(), "made": made}, indent=1) + "\n")
