"""Code in README and docs works as it stands: Python runs, commands run or are understood, settings are valid."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML

from gift.cli import main
from gift.doctor.whole import Launch, Params
from gift.methods.groups import Outputs, Targets
from gift.methods.making import groups_of
from gift.methods.match.regression.gvpo import Gvpo, gvpo
from gift.project.rounds import round_problems

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("python", "console", "yaml", "bash", "sh")
OTHER = ("text", "mermaid", "json", "")
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    file: str
    line: int
    kind: str
    note: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text[: match.start("kind")].count("\n") + 1
            body = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            found.append(Block(path.name, line, match["kind"], match["note"] or "", body))
    return found


BLOCKS = blocks()
UNMARKED = [each for each in BLOCKS if not each.note]


def of(kind: str, found: list[Block]) -> list[pytest.ParameterSet]:
    return [pytest.param(each, id=each.name) for each in found if each.kind == kind]


def test_every_block_is_of_a_known_kind_and_a_note_gives_its_reason() -> None:
    assert len(BLOCKS) > 20
    for each in BLOCKS:
        assert each.kind in (*RUN, *OTHER), each.name
        assert re.fullmatch(r"|not run: .{10,}|run by tests/\w+\.\w+|in [\w.]+", each.note), (each.name, each.note)


@pytest.mark.parametrize("block", of("python", UNMARKED))
def test_python_runs(block: Block, world: Path, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.text, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=world, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def commands(block: Block) -> list[str]:
    lines = [line.partition("  #")[0].strip() for line in block.text.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


@pytest.mark.parametrize("block", of("console", UNMARKED))
def test_commands_run(block: Block, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a project with a round: r4 and others are called r1 there."""
    monkeypatch.chdir(world)
    for command in commands(block):
        program, *words = shlex.split(re.sub(r"\br\d+\b", "r1", command))
        assert program == "gift", f"{block.name}: {command}: mark the block, or run it"
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, f"{command}: {done.output}"


@pytest.mark.parametrize("block", of("console", BLOCKS))
def test_commands_of_gift_have_the_options_that_are_typed(block: Block) -> None:
    for command in commands(block):
        words = shlex.split(command)
        if words[0] == "gift" and words[1:]:
            name, *rest = words[1:]
            found = main.commands[name]
            with click.Context(main) as context:
                found.make_context(name, rest, parent=context, resilient_parsing=name == "repro")


@pytest.mark.parametrize("block", of("yaml", BLOCKS))
def test_settings_are_known(block: Block) -> None:
    content = YAML(typ="safe").load(textwrap.dedent(block.text))
    if block.note.startswith("in "):  # a part of a section
        for name in reversed(block.note.removeprefix("in ").split(".")):
            content = {name: content}
    if "rounds" in content and isinstance(content["rounds"], dict):
        assert not round_problems(content)
        return
    if {"preset", "methods"} & content.keys():  # of compare.yaml
        return
    for name, section in content.items():
        keys = {**Launch.model_fields, **Params.model_fields}
        assert name in keys, f"{block.name}: {name}"
        if isinstance(section, dict):
            fields = {
                field
                for model in (Params, Launch)
                if name in model.model_fields
                for field in getattr(model.model_fields[name].annotation, "model_fields", {})
            }
            assert section.keys() <= fields, f"{block.name}: {name}: {section.keys() - fields}"


def test_the_first_method_is_gvpo_near_its_targets() -> None:
    """Huber's loss with a large delta is the square; a small one bounds the force, and the gradient is right."""
    (block,) = (each for each in BLOCKS if each.file == "first-method.md" and each.kind == "python")
    names: dict[str, Any] = {"__name__": "huber_gvpo"}
    exec(compile(block.text, block.name, "exec"), names)
    made = names["METHOD"]
    torch.manual_seed(0)
    rewards, mask = torch.rand(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool)
    old = torch.randn(24, dtype=torch.float64)
    groups = groups_of(rewards, mask, torch.full((2, 4), 3), 3, old_logprobs=old, ref_logprobs=old)
    targets = Targets(rewards - rewards.mean(-1, keepdim=True))
    now = (old + torch.randn(24, dtype=torch.float64)).requires_grad_()
    wide = made.loss(groups, targets, Outputs(now), made.settings(delta=1e6)).value
    assert wide.item() == pytest.approx(gvpo(groups, targets, Outputs(now), Gvpo()).value.item(), abs=1e-12)
    narrow = made.settings(delta=0.1)
    assert torch.autograd.gradcheck(lambda values: made.loss(groups, targets, Outputs(values), narrow).value, now)
