"""Runs one stage of the pipeline and writes where its time went: `python timed_stage.py stages.score ...`.

Functions of the project are wrapped from outside, where they stand; a second belongs to the innermost of them. Used by
benchmarks/overhead.py, which puts it into dvc.yaml in place of `python -m`.
"""

import time

BEGUN = time.time()  # before anything else is imported

import atexit  # noqa: E402
import importlib  # noqa: E402
import importlib._bootstrap  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import runpy  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import ExitStack, contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

NAMED = {
    "log-probs": ("gift.logprobs.tokens:completion_logprobs",),
    "optimizer steps": ("gift.training.trainer:Trainer.train_step",),
    "rewards and their workers": ("gift.scoring.score:score_parts",),
    "engine start": ("gift.training.engine:Engine.__init__",),
    "models and tokenizers": ("gift.policy.open:open_policy", "gift.policy.folder:load_tokenizer"),
    "hashing": ("gift.project.work:tree_digest", "gift.project.work:file_digest"),
    "tables, policies and states": (
        "gift.tables.parts:read_part",
        "gift.tables.parts:read_table",
        "gift.tables.parts:write_part",
        "gift.tables.prompts:read_prompts",
        "gift.training.saving.state:write_state",
        "gift.training.saving.state:Unsealed.seal",
        "gift.training.saving.state:Stored.__init__",
        "gift.training.saving.policy:write_policy",
        "gift.project.work:Work.publish",
        "gift.project.work:write_json",
    ),
    "check of the saved policy": ("gift.training.saving.policy:check_saved",),
}


class Spans:
    """Seconds by name. Spans stand inside one another; each gets its time without that of the spans inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.open: list[str] = []
        self.since = time.perf_counter()
        self.thread = threading.get_ident()

    def _turn(self) -> None:
        """Credit the time since the last turn to the innermost open span."""
        now = time.perf_counter()
        name = self.open[-1] if self.open else "rest of the stages"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since
        self.since = now

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self.thread:
            yield
            return
        self._turn()
        self.open.append(name)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            with self.span(name):
                return function(*arguments, **more)

        return timed


def replace(ours: list[Any], module: str, path: str, make: Callable[[Any], Any]) -> None:
    """Put `make(original)` in the place of a function or method, wherever a module of the project has its name."""
    if module not in sys.modules:
        return  # this stage does not use it
    owner: Any = sys.modules[module]
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    made = make(original)
    setattr(owner, name, made)
    for other in ours:
        if vars(other).get(name) is original:
            setattr(other, name, made)


def wrap_all(spans: Spans) -> None:
    ours = [each for name, each in sys.modules.items() if name.startswith("gift.")]
    for name, places in NAMED.items():
        for place in places:
            module, path = place.split(":")
            replace(ours, module, path, lambda original, name=name: spans.wrap(name, original))

    def sampler(start: Callable[..., Any]) -> Callable[..., Any]:
        def started(*arguments: Any) -> Any:
            with spans.span("engine start"):
                sample, engine = start(*arguments)
            return spans.wrap("sampling", sample), engine

        return started

    def group(distributed: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def joined(*arguments: Any) -> Iterator[Any]:
            with ExitStack() as stack:
                with spans.span("engine start"):
                    device = stack.enter_context(distributed(*arguments))
                yield device

        return joined

    def step(hear: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Of a stage that waits for its workers: they start, or sample."""

        def timed(pool: Any) -> Any:
            with spans.span("sampling" if any(link.part for link in pool.links) else "engine start"):
                return hear(pool)

        return timed

    replace(ours, "gift.sampling.engine.start", "start_sampler", sampler)
    replace(ours, "gift.workers.pool", "Pool._step", step)
    replace(ours, "gift.training.ranks", "distributed", group)


def main() -> None:
    arguments = sys.argv[1:]
    sys.path[0] = str(Path.cwd())
    spans = Spans()
    # Every first import passes here, whoever asks for it.
    importlib._bootstrap._find_and_load = spans.wrap("imports", importlib._bootstrap._find_and_load)
    stage = next(word for word in arguments if word.startswith("stages."))
    importlib.import_module(stage)
    wrap_all(spans)
    sys.argv = arguments

    def write() -> None:
        spans._turn()
        line = {
            "stage": stage.removeprefix("stages."),
            "seconds": {"start of Python": BEGUN - float(os.environ["STAGE_BEGUN"]), **spans.seconds},
            "begun": float(os.environ["STAGE_BEGUN"]),
            "ended": time.time(),
        }
        with Path(os.environ["STAGE_TIMES"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    atexit.register(write)  # the stage ends its process itself
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
