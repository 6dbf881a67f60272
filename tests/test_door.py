"""What a stage reads cannot change under it: every dependency of every stage, edited while it runs, is refused.

Run as a script, in a project: each stage runs once; when it is about to publish, one thing after the other that
says it depends on is changed, the stage is asked, and the change is taken back. What it said is noted in said.json.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mini
import pytest

from gift.project import door
from gift.project.errors import UserError
from gift.project.graph import read_graph

ROOT = Path(__file__).parents[1]
NOTES = Path("said.json")
CASES = [(address, cause) for address in mini.ORDER for cause in ("settings", "files")]


def edits(address: str) -> list[tuple[str, Path, Callable[[str], str]]]:
    """Of each thing that a stage depends on how it is called, its file, and a change."""
    stage = read_graph()[address]
    found: list[tuple[str, Path, Callable[[str], str]]] = []
    for file, keys in stage.params.items():
        for key in keys:
            found.append((f"{file}: {key}", Path(file), lambda text, key=key: other_value(text, key)))
    for dep in map(Path, stage.deps):
        path = dep if dep.is_file() else next(each for each in mini.files(dep) if each.suffix != ".pyc")
        found.append((str(path), path, lambda text: text[:-1] + chr(ord(text[-1]) ^ 1) if text else "x"))
    return found


def other_value(text: str, key: str) -> str:
    """params.yaml (as JSON) with another value at or below a key."""
    content = json.loads(text)
    *above, last = key.split(".")
    place = content
    for word in above:
        place = place.setdefault(word, {})
    value = place.get(last)
    place[last] = {**value, "a_new_key": 1} if isinstance(value, dict) else [value, "other"]
    return json.dumps(content)


@contextlib.contextmanager
def changed(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    """A file with other content, or one that was not there (the mini project runs no doctor), for a while."""
    before, times = (path.read_bytes(), path.stat()) if path.exists() else (None, None)
    path.write_bytes(change((before or b"").decode("latin-1")).encode("latin-1"))
    yield
    if before is None or times is None:
        path.unlink()
        return
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def edited_at_the_end(address: str) -> None:
    """Make the stage of this process meet every edit when it publishes, and then publish."""
    os.environ["DVC_STAGE"] = address
    look = door.check_inputs

    def with_edits() -> None:
        said = json.loads(NOTES.read_text()) if NOTES.exists() else {}
        for name, path, change in edits(address):
            with changed(path, change):
                try:
                    look()
                    said.setdefault(address, {})[name] = "published"
                except UserError as error:
                    said.setdefault(address, {})[name] = error.message
        NOTES.write_text(json.dumps(said))
        look()

    door.check_inputs = with_edits


def main(addresses: list[str]) -> None:
    mini.share_imports()
    params = Path("rounds.yaml")  # as JSON, like the project's other settings
    params.write_text(json.dumps(mini.read_yaml(params)))
    for address in addresses:
        mini.finish(mini.fork_stage(address, lambda address=address: edited_at_the_end(address)), address)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = mini.make_project(tmp_path_factory.mktemp("edited"))
    mini.run_stages(folder, script=__file__)
    return json.loads((folder / NOTES).read_text())


@pytest.mark.parametrize("address", mini.ORDER)
def test_what_is_edited_while_a_stage_runs_is_refused_when_it_publishes(
    said: dict[str, dict[str, str]], address: str
) -> None:
    stage = read_graph(ROOT / "dvc.yaml")[address]
    assert len(said[address]) == len({*stage.deps}) + sum(map(len, stage.params.values()))
    for name, message in said[address].items():
        assert message.startswith(name), message
        assert f"changed while {address} ran, so nothing is published" in message


if __name__ == "__main__":
    main(sys.argv[1:])
