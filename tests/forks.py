"""Scripts in forks of a Python that has loaded the heavy libraries: to load them takes longer than most tests.

Run as a script, with names of libraries, it is that Python: requests (JSON) from stdin, numbers to stdout, one a line.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torch",
    "deepspeed",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen3.modeling_qwen3",
    "pyarrow.parquet",
)
VLLM = ("vllm", "vllm.lora.request", "vllm.v1.engine.llm_engine", "vllm.entrypoints.launchers.api_server.entry")
LIMIT_SECONDS = 280  # what runs longer is killed, before pytest gives its test up


@functools.cache
def forks(*libraries: str) -> "Forks":
    """The Python with these libraries that all tests of this process share."""
    return Forks(libraries or LIBRARIES)


class Forks:
    """A Python that waits for scripts to run."""

    def __init__(self, libraries: tuple[str, ...]) -> None:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # vLLM is silent; asking for a GPU leaves it to the forks. No PATH: DeepSpeed finds no compiler while it loads.
        env |= {"VLLM_LOGGING_LEVEL": "ERROR", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PATH": ""}
        command = [sys.executable, __file__, *libraries]
        self.python = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self.python.communicate)  # the end of its stdin is its own
        self.answer()

    def start(self, arguments: list[str], env: dict[str, str], out: Path, **more: Any) -> int:
        """Start `python <arguments>`, both streams to the file `out`; returns the number of the process and its group.

        arguments: a script and its own, or -m and a module. more: `errors` and `stdin` (files), `cwd`, `strict` (as
        under -W error).
        """
        return self.ask({"arguments": arguments, "env": env, "out": out, "cwd": Path.cwd(), **more})

    def wait(self, pid: int) -> int:
        """The exit code of a process that was started, when it has ended."""
        return self.ask({"wait": pid})

    def ask(self, request: dict[str, Any]) -> int:
        print(json.dumps(request, default=str), file=self.python.stdin, flush=True)
        try:
            return self.answer()
        except BaseException:  # the answer to a test that was given up is not the answer to the next one
            self.python.kill()
            forks.cache_clear()
            raise

    def answer(self) -> int:
        line = self.python.stdout.readline()
        assert line, f"{self.python.args}: ended; its last words are on stderr"
        return int(line)


def run(arguments: list[str], env: dict[str, str], **more: Any) -> str:
    """`Forks.start` to its end, which must be a good one; returns what was said."""
    with tempfile.NamedTemporaryFile("r") as out:
        code = forks().wait(forks().start(arguments, env, Path(out.name), **more))
        said = out.read()
    assert code == 0, said
    return said


def start(request: dict[str, Any]) -> int:
    """Fork, and in the new process become what is asked for."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.alarm(LIMIT_SECONDS)
    read, write = os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    os.dup2(os.open(request.get("stdin", os.devnull), read), 0)
    os.dup2(os.open(request["out"], write), 1)
    os.dup2(os.open(request.get("errors", request["out"]), write), 2)

    def become() -> None:
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        if request.get("strict"):
            warnings.simplefilter("error")
        flag, *rest = request["arguments"]
        sys.argv = rest if flag == "-m" else [flag, *rest]
        if flag == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(flag, run_name="__main__")

    run_and_end(become)


def run_and_end(work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked process and end it, with the exit code that Python would give."""
    code: Any = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def end_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(libraries: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the libraries' own words are no answers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch", DeprecationWarning)  # vLLM's, as in pyproject.toml
        for name in libraries:
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    print(0, file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(end_of(request["wait"]) if "wait" in request else start(request), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
