"""A flipped byte in anything that a stage reads is seen by that stage, though size and time stay the same."""

import os
from pathlib import Path

import mini
import pytest

from gift.project import door
from gift.project.errors import UserError
from gift.project.graph import read_graph


def flip(path: Path) -> None:
    """One bit in the middle of a file, whose size and times stay."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("address", mini.ORDER)
def test_a_flipped_bit_is_seen_by_whoever_reads_it(noted: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read_graph()
    made = [out for stage in graph.values() for out in stage.outs if Path(out).exists()]
    monkeypatch.setenv("DVC_STAGE", address)
    for out in [out for dep in graph[address].deps for out in made if out == dep or Path(dep) in Path(out).parents]:
        for path in mini.files(Path(out)):
            flip(path)
            with pytest.raises(UserError, match="is not what its stage made") as refused:
                door.enter()
            assert refused.value.message.startswith(f"{out}: "), path
            assert f"`dvc checkout {out}`" in refused.value.message
            flip(path)
    door.enter()


def test_exchanged_and_missing_files_of_a_folder_are_seen_too(noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "update@r1")
    one, other = sorted(Path("data/rounds/r1/rollouts").iterdir())[:2]
    between = one.with_suffix(".between")
    for way in ("exchanged", "back", "missing"):
        if way == "missing":
            one.unlink()
        else:
            for source, target in ((one, between), (other, one), (between, other)):
                source.rename(target)
        if way == "back":
            door.enter()
            door._seen.clear()
            continue
        with pytest.raises(UserError, match=r"^data/rounds/r1/rollouts: is not what its stage made"):
            door.enter()
