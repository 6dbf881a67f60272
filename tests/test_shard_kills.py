"""A round that is killed between two shards goes on from its last whole checkpoint, and ends with the same bytes.

Run as a script, in a project: the stage is started with small shards, stopped by itself before one of them gets its
name, and killed, as often as stops.json says; then it runs to its end. With a RANK it is one rank of the stage.
"""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import mini
import pytest

STOPS = Path("stops.json")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
BYTES = 150_000


def watch(stop: int, number: int = signal.SIGSTOP) -> None:
    """Cut small, and send this process a signal when its shard number `stop` has been written, but not renamed."""
    from gift.training.saving import shards

    shards.SHARD_BYTES = BYTES
    replace, count = os.replace, 0

    def counting(source: Path, target: Path) -> None:
        nonlocal count
        count += bool(SHARD.search(str(target)))
        if stop and count == stop and SHARD.search(str(target)):
            os.kill(os.getpid(), number)
        replace(source, target)

    os.replace = counting


def main(address: str) -> None:
    mini.share_imports()
    for stop in json.loads(STOPS.read_text()):
        pid = mini.fork_stage(address, lambda stop=stop: watch(stop))
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"ended with {status} before shard {stop}"
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not any(path.exists() for path in mini.outputs(Path(), address))
        kept = sorted(path.name for path in Path(f"data/.work/{address}").iterdir() if path.name.startswith("checkp"))
        print("killed", json.dumps(kept))
    mini.finish(mini.fork_stage(address, lambda: watch(0)), address)


def run(folder: Path, stops: list[int]) -> str:
    mini.remove_outputs(folder, "update@r1")
    (folder / STOPS).write_text(json.dumps(stops))
    return mini.run_stages(folder, ["update@r1"], script=__file__)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The round in shards, undisturbed."""
    folder = Path(shutil.copytree(world, tmp_path_factory.mktemp("whole") / "project"))
    run(folder, [])
    return folder


def shard_counts(folder: Path) -> tuple[int, int, int]:
    """Shards of a state, shards of the policy, and optimizer steps."""
    r1 = folder / "data/rounds/r1"
    steps = json.loads((r1 / "metrics/update.json").read_text())["num_steps"]
    return len(list((r1 / "optimizer").glob("state-*"))), len(list((r1 / "policy").glob("model-*"))), steps


def same(folder: Path, whole: Path) -> None:
    made, expected = (mini.made(each / "data/rounds/r1") for each in (folder, whole))
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []
    assert not list((folder / "data/.work").iterdir())


def test_a_round_in_shards_is_the_round_in_one_file(whole: Path, world: Path) -> None:
    from safetensors.torch import load_file

    for part, stem in (("policy", "model"), ("optimizer", "state")):
        found: dict = {}
        for path in sorted((whole / "data/rounds/r1" / part).glob(f"{stem}-*.safetensors")):
            found |= load_file(path)
        one = load_file(world / "data/rounds/r1" / part / f"{stem}.safetensors")
        assert found.keys() == one.keys()
        assert all(found[name].equal(one[name]) for name in one)


def test_killed_between_two_shards_it_goes_on_from_the_checkpoint_before(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    """In the first checkpoint, then in the second, then in the policy, then in its state."""
    state, policy, steps = shard_counts(whole)
    assert min(state, policy, steps) > 2
    folder = Path(shutil.copytree(world, tmp_path / "project"))
    said = run(folder, [2, state + 2, (steps - 2) * state + 2, policy + 2])
    kept = [json.loads(line.removeprefix("killed ")) for line in said.splitlines() if line.startswith("killed ")]
    first = [f"checkpoint-1-{number:05d}-of-{state:05d}.safetensors" for number in range(1, state + 1)]
    assert kept[0] == [first[0], f"{first[1]}.tmp"]
    second = [name.replace("checkpoint-1", "checkpoint-2") for name in first]
    assert kept[1] == [*first, second[0], f"{second[1]}.tmp", "checkpoint.safetensors.index.json"]
    last = [name.replace("checkpoint-1", f"checkpoint-{steps - 1}") for name in first]
    assert kept[2] == kept[3] == [*last, "checkpoint.safetensors.index.json"]
    went_on = [line.split()[1] for line in said.splitlines() if "going on" in line]
    assert went_on == [f"1/{steps}", f"{steps - 1}/{steps}", f"{steps - 1}/{steps}"], "after the first kill from none"
    same(folder, whole)


@pytest.mark.slow
def test_wherever_it_is_killed_it_ends_with_the_same_bytes(world: Path, whole: Path, tmp_path: Path) -> None:
    state, policy, steps = shard_counts(whole)
    folder = Path(shutil.copytree(world, tmp_path / "project"))
    for stop in range(1, (steps - 1) * state + policy + state + 1, 3):
        run(folder, [stop])
        same(folder, whole)


def run_rank(folder: Path) -> None:
    """One of two ranks of the stage, which dies where the test says."""
    os.chdir(folder)
    from gift.project import console
    from stages import update

    watch(int(os.environ["STOP"]) if os.environ["RANK"] == os.environ["DIES"] else 0, signal.SIGKILL)
    _, module, *arguments = mini.command(Path(), "update@r1")
    sys.argv = arguments if module == "gift.launch" else [module, *arguments]
    console.run(update.main)


@pytest.mark.slow
def test_of_two_ranks_one_is_killed_among_its_shards(world: Path, tmp_path: Path) -> None:
    """Rank 0 or rank 1, in the second checkpoint, or among the shards of the policy; then both run again."""
    from tests.ranks import run_two_ranks

    def run_both(folder: Path, dies: int, stop: int) -> list[int]:
        return [code for code, _ in run_two_ranks(__file__, folder, DIES=str(dies), STOP=str(stop), **mini.QUIET)]

    projects = [Path(shutil.copytree(world, tmp_path / name)) for name in ("whole", "disturbed")]
    for folder in projects:
        mini.remove_outputs(folder, "update@r1")
    assert run_both(projects[0], 0, 0) == [0, 0]
    state, policy, steps = shard_counts(projects[0])
    for dies in (0, 1):
        for stop in (state // 2 + 2, (steps - 1) * (state // 2) + policy // 2):
            mini.remove_outputs(projects[1], "update@r1")
            codes = run_both(projects[1], dies, stop)
            assert codes[dies] == -signal.SIGKILL
            assert codes[1 - dies] == 1
            assert run_both(projects[1], 0, 0) == [0, 0]
            same(projects[1], projects[0])


if __name__ == "__main__":
    run_rank(Path(sys.argv[1])) if "RANK" in os.environ else main(sys.argv[1])
