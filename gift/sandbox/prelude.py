"""The first program inside the sandbox: it becomes the sandbox's own user, sets its limits, and runs the real program.

run.py hands this file over as text, and has it started with <program> <uid or -> <limit>=<number>...
"""

import os
import resource
import sys


def main() -> None:
    path, uid, *limits = sys.argv[1:]
    os.closerange(3, 65536)
    if uid != "-":
        number = int(uid)
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)  # from root to another user: every capability goes too
    for limit in limits:
        name, _, value = limit.partition("=")
        kind = {"AS": resource.RLIMIT_AS, "CORE": resource.RLIMIT_CORE, "CPU": resource.RLIMIT_CPU}
        kind |= {"FSIZE": resource.RLIMIT_FSIZE, "NOFILE": resource.RLIMIT_NOFILE, "NPROC": resource.RLIMIT_NPROC}
        _, hard = resource.getrlimit(kind[name])
        lowest = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(kind[name], (lowest, lowest))
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 (pathlib takes as long to import as all the rest)
        text = file.read()
    sys.argv = [path]
    sys.path[:0] = [os.path.dirname(path)]  # noqa: PTH120
    exec(compile(text, path, "exec"), {"__name__": "__main__", "__file__": path})


if __name__ == "__main__":
    main()
