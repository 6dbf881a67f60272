"""Toy work for a real worker: `python -m tests.hands` is `python -m gift.worker` with a kind that writes a text."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gift import worker
from gift.project.console import within
from gift.project.errors import UserError
from gift.workers.worker import Unfit, Work


def open_job(setup: dict[str, Any]) -> Work:
    """What a task says is done to it: see `make`; `start` is done while loading, `again` where it has rested."""
    if broken := os.environ.get("BROKEN"):
        while not list(Path(setup["folder"], "made").iterdir()):  # another has loaded by then
            time.sleep(0.02)
        if broken == "refuses":
            raise UserError("no room on this host")
        raise SystemExit(1)
    act(setup.get("start", ""), Path(setup["folder"]))
    return work(setup, 0)


def work(setup: dict[str, Any], rests: int) -> Work:
    """Its parts say how often it has rested."""

    def make(task: dict[str, Any], folder: Path) -> dict[str, Any]:
        within(0.5, 7)
        if rests and setup.get("again") == "unfit":
            raise Unfit("a stale engine")
        act(task.get("do", ""), Path(setup["folder"]))
        (folder / f"{task['index']}.txt").write_text(task["text"])
        return {"tokens": len(task["text"]), "pid": os.getpid(), "rests": rests}

    def again(setup: dict[str, Any]) -> Work:
        act(setup.get("again", "").replace("unfit", ""), Path(setup["folder"]))
        return work(setup, rests + 1)

    def rest() -> Callable[[dict[str, Any]], Work]:
        act(setup.get("rest", ""), Path(setup["folder"]))
        return again

    return Work(make, setup.get("note"), rest)


def act(what: str, folder: Path) -> None:
    """die, break, fail, full, hang, stop, `sleep N`; behind `once ` or `N times ` only if so few did it in a folder."""
    times, what = re.fullmatch(r"(?:(once|\d+ times) )?(.*)", what).groups()  # type: ignore[union-attr]
    mark, done = folder / what, folder / f"{what} done"
    most = 1 if times == "once" else int(times.split()[0]) if times else 10**9
    if not what or len(done.read_text() if done.exists() else "") >= most:
        return
    mark.write_text(str(os.getpid()))
    with done.open("a") as file:
        file.write("x")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "full":
        raise OSError(28, "No space left on device")
    if what == "break":
        raise ValueError("a bug")
    if what == "fail":
        raise UserError("params.yaml: a mistake")
    time.sleep({"hang": 600.0}.get(what) or float(what.split()[1]))


if __name__ == "__main__":
    worker.KINDS["toy"] = "tests.hands"
    if other := os.environ.get("OTHER_VERSION"):
        from gift.workers import worker as side

        own = side.identity
        side.identity = lambda stage: {**own(stage), **json.loads(other)}
    code = worker.main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
