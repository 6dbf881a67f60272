"""The stage `update` on two ranks: rank 0 alone looks, says what is refused, and publishes when the other is gone.

Run as a script it is one rank of the stage, with something that befalls it.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini
import pytest
from safetensors.torch import load_file

from gift.project.errors import UserError
from tests.ranks import run_two_ranks
from tests.test_launch import gap, same_steps

OUTPUTS = ("policy/gift.json", "optimizer/state.safetensors", "metrics/update.json", "metrics/steps.csv")


def never(*_: object, **__: object) -> Any:
    raise AssertionError("a rank other than 0 looked at a file")


def blind() -> None:
    """What this rank hashes or looks for is an error: on a shared file system it may see another file than rank 0."""
    from gift.policy import folder
    from gift.project import work
    from gift.training import inputs
    from gift.training.saving import state

    exists = Path.exists
    Path.exists = lambda path, **more: never() if str(path).startswith("data") else exists(path, **more)  # type: ignore
    for module, name in (
        (folder, "tree_digest"),
        (inputs, "tree_digest"),
        (work, "file_digest"),
        (state, "safe_open"),
    ):
        setattr(module, name, never)


def after(function: Callable[..., Any], message: str) -> Callable[..., Any]:
    """`function`, and then an error, as of a full disk."""

    def failing(*arguments: Any) -> Any:
        function(*arguments)
        raise UserError(message)

    return failing


def padded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A rank whose processor rounds so that packed rows did not stand its trial."""

    def other(*arguments: Any) -> Any:
        model = function(*arguments)
        model.layout = "padded"
        return model

    return other


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waited for by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def look_alone(look: Callable[..., Any]) -> Callable[..., Any]:
    """A look at the saved policy that waits until rank 1 has ended."""

    def patient(*arguments: Any) -> Any:
        other, start = int(Path("pid1").read_text()), time.monotonic()
        while not ended(other):
            assert time.monotonic() - start < 60, "rank 1 waits for rank 0 to publish"
            time.sleep(0.05)
        return look(*arguments)

    return patient


def run_rank(folder: Path) -> None:
    os.chdir(folder)
    from gift.project import console
    from gift.training import round as training
    from stages import update

    fate, rank = os.environ["FATE"], os.environ["RANK"]
    Path(f"pid{rank}").write_text(str(os.getpid()))
    if rank == "1":
        blind()
    if fate == "a full disk at the first checkpoint" and rank == "0":
        training.write_checkpoint = after(training.write_checkpoint, "no space left")
    if fate == "another layout" and rank == "1":
        training.policy_module = padded(training.policy_module)
    training.check_saved = look_alone(training.check_saved)
    if fate == "a full disk when it publishes":
        training.check_saved = after(training.check_saved, "no space left")
    _, module, *arguments = mini.command(Path(), "update@r1")
    sys.argv = arguments if module == "gift.launch" else [module, *arguments]
    console.run(update.main)


@pytest.mark.slow
def test_rank_0_looks_refuses_and_publishes_alone(copied: Path) -> None:
    """A rank that is blind, killed rounds that go on, and failures that end both ranks: in one project, in turn."""
    one = Path(shutil.copytree(copied / "data/rounds/r1", copied / "one"))
    mini.remove_outputs(copied, "update@r1")

    def run(fate: str) -> list[tuple[int, str]]:
        return run_two_ranks(__file__, copied, FATE=fate)

    for code, said in run("another layout"):
        assert (code, said.partition(" (")[0]) == (
            1,
            "error: launch.yaml: update.packing: auto: ranks came to different layouts",
        )
        assert "(shared, padded)" in said

    (code, said), (other, why) = run("a full disk at the first checkpoint")
    assert (code, said) == (1, "error: no space left\n")
    assert (other, why) == (1, "error: rank 1: another rank ended; its own message says why\n")
    assert (copied / "data/.work/update@r1/checkpoint.safetensors").exists()

    (code, said), alone = run("a full disk when it publishes")
    assert code == 1
    assert "steps were finished before; going on" in said
    assert said.endswith("error: no space left\n")
    assert alone == (0, "")
    assert not any(path.exists() for path in mini.outputs(copied, "update@r1"))

    (code, said), alone = run("none")
    assert code == 0, said
    assert "update@r1: num steps" in said
    assert alone == (0, "")
    two = copied / "data/rounds/r1"
    same_steps(one, two)
    for file in ("policy/model.safetensors", "optimizer/state.safetensors"):
        assert gap(load_file(one / file), load_file(two / file)) < 1e-4

    before = mini.content(two)
    (code, said), alone = run("none")
    assert code == 1
    assert said.startswith("error: data/rounds/r1/policy: exists already; nothing was changed")
    assert alone == (1, "")
    assert mini.content(two) == before


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]))
