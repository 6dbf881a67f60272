"""`gift init`: a project of one's own, with the history of this one behind it, so that an upgrade is a merge."""

import shutil
import subprocess
from pathlib import Path

import click

from gift.project.errors import UserError
from gift.project.sections import did_you_mean

MADE = ("data", "dvc.lock", "compare/data")
REMOTE = "gift"
PRESETS = Path("presets")


@click.command()
@click.argument("folder", type=Path)
@click.option("--preset", help="A file of presets/ whose settings it begins with, such as gsm8k.")
def init(folder: Path, preset: str | None) -> None:
    """Begin a project of your own in FOLDER: a clone without what was made here; `git pull gift main` upgrades it."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; nothing was changed. Name another folder")
    found = PRESETS / f"{preset}.yaml"
    names = sorted(path.stem for path in PRESETS.glob("*.yaml") if not path.stem.startswith("launch"))
    if preset and preset not in names:
        raise UserError(f"{found}: no such file; {did_you_mean(preset, names)}")
    try:
        _git("clone", "--quiet", "--origin", REMOTE, str(Path.cwd()), str(folder))
        url = _git("config", "--default", "", "remote.origin.url")
        if url.startswith("."):  # a path that is meant from here
            url = str(Path(url).resolve())
        if url:  # where this project came from, which others have too
            _git("-C", str(folder), "remote", "set-url", REMOTE, url)
        _git("-C", str(folder), "rm", "-r", "--quiet", "--ignore-unmatch", *MADE)
        if preset:
            shutil.copyfile(found, folder / "params.yaml")
        _git("-C", str(folder), "add", "--all")
        said = f"Begin with {found}" if preset else "Begin"
        own = [(key, _git("config", "--default", "", key)) for key in ("user.name", "user.email")]
        for key, value in own:
            if value:
                _git("-C", str(folder), "config", key, value)
        _git("-C", str(folder), "commit", "--quiet", "--allow-empty", "-m", said)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if _git("status", "--porcelain"):
        click.echo("what is not committed here is not in it")
    click.echo(f"{folder}: begun; `cd {folder}`, look at params.yaml, then `make repro`")
    click.echo(f"later: `git pull {REMOTE} main` brings what is new here, `gift plan` says what that would make again")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        remedy = "; `git config --global user.email` names you" if "email" in said else ""
        raise UserError(f"git {words[0] if words[0] != '-C' else words[2]}: {said}{remedy}; nothing was left behind")
    return done.stdout.strip()
