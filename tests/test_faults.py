"""What a machine does to a stage: a full disk, few handles, little memory. A line says it; the next run ends well.

Run as a script, in a finished project: each fault has a copy of it, in which one stage runs with the fault and then
without it. What was said, and what lies there then, is noted in said.json.
"""

import ctypes
import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mini
import pytest

NOTES = Path("said.json")
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
YEAR = 365 * 86400
# Letters of several scripts, and spaces.
ELSEWHERE = "a path with späces и 字"

libc = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> None:
    """From here on what this process mounts is its own."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "no mounts of one's own here")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def mount(source: str, target: Path | str, kind: str, flags: int = 0, data: str = "") -> None:
    words = [os.fsencode(str(each)) for each in (source, Path(target).absolute(), kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None):
        raise OSError(ctypes.get_errno(), f"{target}: not mounted")


def full_disk(size: str) -> Callable[[], None]:
    """The work folders lie on a disk of this size."""

    def small() -> None:
        own_mounts()
        Path("data/.work").mkdir(exist_ok=True)
        mount("tmpfs", "data/.work", "tmpfs", 0, f"size={size}")

    return small


def read_only() -> None:
    own_mounts()
    mount("data", "data", "", MS_BIND)
    mount("data", "data", "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def few_handles() -> None:
    there = {int(each.name) for each in Path("/proc/self/fd").iterdir()}
    limit = [number for number in range(1024) if number not in there][1]  # one more, whatever is open
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def small_memory() -> None:
    """None is left when the model is to compute, and it wants a GB; all libraries and their threads are there."""
    import torch

    from gift.logprobs.tokens import TokenLogprobs

    compute = TokenLogprobs.forward

    def without(*arguments: Any) -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        torch.empty(1 << 28)
        return compute(*arguments)

    TokenLogprobs.forward = without  # type: ignore[method-assign]


def no_temporary_folder() -> None:
    os.environ["TMPDIR"] = "/no/such/folder"


def closed_stdout() -> None:
    os.close(1)


def full_stdout() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def clock_set_back() -> None:
    now = time.time
    time.time = lambda: now() - YEAR  # type: ignore[assignment]


class Fault(NamedTuple):
    """A stage, what happens to its process before it begins, and what it says; no words: it ends well all the same."""

    address: str
    happens: Callable[[], None]
    says: str = ""
    folder: str = ""


FULL = "no room left on its disk"
FAULTS = {
    "disk full in prepare": Fault("prepare", full_disk("12k"), FULL),
    "disk full in base": Fault("base", full_disk("100k"), FULL),
    "disk full in generate": Fault("generate@r1", full_disk("12k"), FULL),
    "disk full in score": Fault("score@r1", full_disk("12k"), FULL),
    "disk full in reference": Fault("reference@r1", full_disk("12k"), FULL),
    "disk full in update": Fault("update@r1", full_disk("300k"), FULL),
    "disk full in update, at its first file": Fault("update@r1", full_disk("4k"), FULL),
    "disk full in generate_eval": Fault("generate_eval@r1", full_disk("12k"), FULL),
    "disk full in evaluate": Fault("evaluate@r1", full_disk("12k"), FULL),
    "a folder that cannot be written": Fault("score@r1", read_only, "Read-only file system"),
    "few file handles": Fault("score@r1", few_handles, "too many files are open"),
    "small memory": Fault("reference@r1", small_memory, "out of memory"),
    "no folder for temporary files": Fault("score@r1", no_temporary_folder),
    "stdout closed": Fault("generate@r1", closed_stdout),
    "stdout full": Fault("score@r1", full_stdout),
    "a clock set back": Fault("generate@r1", clock_set_back),
    "a path with spaces and letters of other scripts": Fault("generate@r1", lambda: None, folder=ELSEWHERE),
    "such a path, in update": Fault("update@r1", lambda: None, folder=ELSEWHERE),
    "such a path, in score": Fault("score@r1", lambda: None, folder=ELSEWHERE),
}


def run(address: str, happens: Callable[[], None], log: Path) -> int:
    """The exit code of a stage; both of its streams go to a file."""

    def begin() -> None:
        for stream in (1, 2):
            os.dup2(os.open(log.absolute(), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        happens()

    return os.waitstatus_to_exitcode(os.waitpid(mini.fork_stage(address, begin), 0)[1])


def main(names: list[str]) -> None:
    mini.share_imports()
    whole = Path.cwd()
    said: dict[str, Any] = {}
    for number, name in enumerate(names):
        fault = FAULTS[name]
        folder = whole.parent / f"{number}" / (fault.folder or "project")
        shutil.copytree(whole, folder, symlinks=True, ignore=shutil.ignore_patterns("said.json"))
        os.chdir(folder)
        mini.share_imports()
        mini.remove_outputs(Path(), fault.address)
        log = folder.with_name("log")
        code = run(fault.address, fault.happens, log)
        first, published = log.read_text(), [path.exists() for path in mini.outputs(Path(), fault.address)]
        again = 0 if all(published) else run(fault.address, lambda: None, log)
        outs = [path.relative_to(folder) for path in mini.outputs(folder, fault.address)]
        same = all(mini.content(path) == mini.content(whole / path) for path in outs if path.is_dir())
        left = sorted(path.name for path in Path("data/.work").iterdir())
        said[name] = {"code": code, "said": first, "published": published, "again": again, "same": same, "left": left}
        os.chdir(whole)
        shutil.rmtree(folder.parent)
        NOTES.write_text(json.dumps(said, indent=1))


QUICK = ("prepare", "score@r1", "evaluate@r1")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if FAULTS[name].address in QUICK else pytest.mark.slow) for name in FAULTS]
)
def test_a_fault_is_a_line_and_costs_nothing_that_was_finished(world: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(world, tmp_path / "whole", symlinks=True)
    mini.run_stages(folder, [name], script=__file__)
    fault, found = FAULTS[name], json.loads((folder / NOTES).read_text())[name]
    assert "Traceback" not in found["said"], found["said"]
    if fault.says:
        errors = [line for line in found["said"].splitlines() if line.startswith("error: ")]
        assert found["code"] == 1, found
        assert len(errors) == 1, found["said"]
        assert fault.says in errors[0]
        assert not any(found["published"])
    else:
        assert found["code"] == 0, found
        assert all(found["published"])
    assert found["again"] == 0, "the next run does not end well"
    assert found["same"], "the next run made other bytes"
    assert found["left"] == []


def test_every_row_of_the_docs_names_a_test_that_is_there() -> None:
    rows = re.findall(r"^\| .* \| `(test_\w+\.py)`, (.+) \|$", (mini.ROOT / "docs/faults.md").read_text(), re.MULTILINE)
    assert len(rows) >= 30
    for file, name in rows:
        text = (mini.ROOT / "tests" / file).read_text()
        assert f"def {name}(" in text or re.search(rf'^    "{re.escape(name)}', text, re.MULTILINE), (file, name)


if __name__ == "__main__":
    main(sys.argv[1:])
