"""Kills the Python that it is loaded into at a chosen file operation; benchmarks/kills.py puts it on PYTHONPATH.

GIFT_KILL is JSON: `who` (the address of a stage, or `dvc`), `at` (the number of the operation), `name` (a piece of the
paths that alone count; "" for all), `signal`, and `delay`, the seconds from the operation to the signal. `worker` is a
file: then one worker of the stage is killed, which makes it; without it none.
"""

import json
import os
import sys
import threading
import time

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


def _is(who):
    if who == "dvc":
        return "gift.upkeep.dvc" in sys.orig_argv
    is_worker = any(word in ("gift.worker", "worker") for word in sys.orig_argv)
    return os.environ.get("DVC_STAGE") == who and is_worker == bool(_plan.get("worker"))


def _install(plan):
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in WRITES:
            path = arguments[0]
        else:
            return
        if plan["name"] not in str(path) or str(path).startswith(("/dev", "/proc")):
            return
        count += 1
        if count == plan["at"] and _is_first(plan):
            if plan["delay"]:
                threading.Thread(target=_later, args=(plan,), daemon=True).start()
            else:
                os.kill(os.getpid(), plan["signal"])

    sys.addaudithook(hook)


def _is_first(plan):
    if not (mark := plan.get("worker")):
        return True
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _later(plan):
    time.sleep(plan["delay"])
    os.kill(os.getpid(), plan["signal"])


if _plan := os.environ.get("GIFT_KILL"):
    _plan = json.loads(_plan)
    if _is(_plan["who"]):
        _install(_plan)
