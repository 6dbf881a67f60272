"""`gift keep`: finished rounds stay as they are where code or settings changed since; what made them stays noted."""

import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

from gift.project.code import code_file
from gift.project.door import md5_of
from gift.project.errors import UserError
from gift.project.graph import LOCK, value_at
from gift.project.sections import did_you_mean
from gift.project.work import whole_file, write_json
from gift.project.yaml import read_yaml
from gift.upkeep.command import dvc, environment
from gift.upkeep.guard import QUICK, in_words, made_by, made_file
from gift.upkeep.plan import Step, World, plan

_CODE = re.compile(r"data/code/\w+\.txt changed")
_SETTINGS = re.compile(r".* changed \([\w./]+\.yaml\)|data/rounds/[\w-]+/overrides/\w+\.json changed")


def stages_to_keep(world: World, rounds: Collection[str], settings: bool) -> list[Step]:
    """The stages of `rounds`, and of what they come from, that a run would make again for reasons that may be kept.

    A change of code may be, a change of settings where `settings` says so; of anything else a `UserError` says what.
    """
    known = {stage.round for stage in world.stages.values()} - {""}
    for name in rounds:
        if name not in known:
            raise UserError(f"{name}: no such round in rounds.yaml; {did_you_mean(name, sorted(known))}")
    wanted = world.wanted([address for address, stage in world.stages.items() if stage.round in rounds])
    steps = [step for step in plan(world) if step.stage.address in wanted and step.stage.name not in QUICK]
    for step in steps:
        if not step.again:
            raise UserError(f"{step.stage.address}: has not been made yet; keep rounds that are finished")
        for reason in step.reasons:
            if not _CODE.fullmatch(reason) and not (settings and _SETTINGS.fullmatch(reason)):
                said = in_words(reason, step, world.lock)
                remedy = " (--settings keeps it all the same)" if _SETTINGS.fullmatch(reason) else ""
                raise UserError(f"{step.stage.address}: {said}: that is more than code{remedy}; nothing was changed")
    return [step for step in steps if step.reasons]


def keep(steps: Collection[Step], rounds: Collection[str]) -> None:
    """Have dvc.lock say that the code and settings of now made these stages; nothing runs, and no output changes."""
    quick = ["code", *(f"overrides@{name}" for name in rounds)]
    if subprocess.run(dvc("repro", "--quiet", *quick), env=environment(), check=False).returncode:
        raise UserError("`dvc repro code` failed (above); nothing was kept, and nothing that was made is lost")
    with whole_file(LOCK) as temporary:
        shutil.copyfile(LOCK, temporary)
        _note(temporary, steps)
    for step in steps:
        made = made_by(step.stage.address)
        words = [in_words(reason, step, {}) for reason in step.reasons if _SETTINGS.fullmatch(reason)]
        if words and made:
            write_json(made_file(step.stage.address), made | {"kept": sorted({*made.get("kept", []), *words})})


def _note(lock: Path, steps: Collection[Step]) -> None:
    from dvc.utils.serialize import modify_yaml  # as DVC writes this file

    with modify_yaml(str(lock)) as content:
        for step in steps:
            entry = content["stages"][step.stage.address]
            entry["cmd"] = step.stage.cmd
            for dep in entry["deps"]:
                path = Path(dep["path"])
                if path.is_file():  # code and overrides are files; a folder is as it was
                    dep.update(md5=md5_of(path), size=path.stat().st_size)
            for file, keys in step.stage.params.items():
                settings = read_yaml(Path(file))
                entry["params"][file] = {key: value_at(settings, key) for key in sorted(keys)}


def kept_lines(world: World) -> Iterator[str]:
    """Of finished stages that other code or settings made than there are now: `r1, r2: made by update 3, now 4`."""
    found: dict[str, dict[str, None]] = {}
    for address, stage in world.stages.items():
        made, now = made_by(address), (world.text(code_file(stage.code)) or "").strip()
        code = made.get("code")
        told = [f"kept, though {words}" for words in made.get("kept", ())]
        if isinstance(code, dict) and code["results"] != now:
            told.append(f"made by {stage.code} {code['results']}, now {now}")
        for text in told if address in world.lock else ():
            found.setdefault(text, {})[stage.round or "base"] = None
    yield from (f"{', '.join(names)}: {text}" for text, names in found.items())
