"""The commands that keep, free and verify what was made, merge an adapter, and share a policy."""

from pathlib import Path

import click

from gift.project.errors import amount
from gift.project.rounds import read_rounds


@click.command()
@click.argument("names", metavar="ROUND...", nargs=-1, required=True)
@click.option("--settings", is_flag=True, help="Also where settings changed, and not code alone.")
def keep(names: tuple[str, ...], settings: bool) -> None:
    """Keep finished rounds as they are although the code of their stages changed; data/made says what made them."""
    from gift.doctor.again import world
    from gift.upkeep.keep import keep as keep_stages
    from gift.upkeep.keep import stages_to_keep

    steps = stages_to_keep(world(), names, settings)
    if steps:
        keep_stages(steps, names)
    click.echo(f"kept: {', '.join(step.stage.address for step in steps) or 'nothing would run again'}")


@click.command()
@click.option(
    "--states", type=click.IntRange(min=1), required=True, help="Optimizer states to keep of a line of rounds."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(states: int, yes: bool) -> None:
    """Remove old optimizer states from data/ and DVC's cache; no round is trained again for want of one."""
    from gift.project.graph import read_lock
    from gift.upkeep.look import dvc_cache
    from gift.upkeep.prune import prune as remove
    from gift.upkeep.prune import states_to_prune

    going = states_to_prune(read_rounds(), read_lock(), dvc_cache(), states)
    for state in going:
        click.echo(f"{state.folder}: {amount(state.size)}")
    if not going:
        click.echo("nothing to prune")
        return
    size = amount(sum(state.size for state in going))
    if yes or click.confirm(f"Remove {len(going)} states, {size}, for good?"):
        remove(going)


@click.command()
@click.option("--project", "projects", type=Path, multiple=True, help="Another project that shares the cache.")
@click.option("--workspace", is_flag=True, help="Also what branches, tags or experiments alone need.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def gc(projects: tuple[Path, ...], workspace: bool, yes: bool) -> None:
    """Remove from DVC's cache and data/.work what no stage needs any more: old tables, policies, states."""
    from gift.project.graph import read_graph
    from gift.upkeep.gc import remove, unused
    from gift.upkeep.look import dvc_cache

    found = unused(dvc_cache(), read_graph(), projects, workspace)
    for line in found.lines:
        click.echo(line)
    if not found.size:
        click.echo("nothing to remove")
    elif yes or click.confirm(f"Remove {amount(found.size)}, for good?"):
        remove(found)


@click.command()
@click.argument("names", metavar="[ROUND]...", nargs=-1)
@click.option("--rows", type=click.IntRange(min=0), default=8, show_default=True, help="Completions to run of a round.")
@click.option("--remote", is_flag=False, flag_value="", help="Ask DVC's remote (NAME, or the default) what it lacks.")
def verify(names: tuple[str, ...], rows: int, remote: str | None) -> None:
    """Check what finished rounds made (ROUNDs, or all): digests, tables, lineage, ledger, log-probs; or a remote."""
    from gift.project import console
    from gift.project.graph import read_graph, read_lock

    console.quiet()
    from gift.upkeep.verify import Checked, missing_in_remote
    from gift.upkeep.verify import verify as look

    known = read_rounds()
    if remote is None:
        checks = look(read_graph(), read_lock(), known, list(names or known), rows)
    else:
        missing = missing_in_remote(remote or None)
        found = f"{len(missing)} outputs are not there: {', '.join(missing[:8])}" if missing else "has all outputs"
        checks = iter([Checked("remote", found, wrong=bool(missing))])
    wrong = 0
    for each in checks:
        wrong += each.wrong
        click.echo(f"{'wrong' if each.wrong else 'ok':<6} {each.what}: {each.found}")
    if wrong:
        raise SystemExit(1)


@click.command()
@click.argument("policy", type=Path)
@click.argument("out", type=Path)
@click.option("--name", help="Of the model, in its card; by default that of the folder OUT.")
def card(policy: Path, out: Path, name: str | None) -> None:
    """Copy POLICY (data/rounds/r4/policy) to the folder OUT, with a model card that says how it was made."""
    from gift.report.card import write_card

    write_card(policy, out, name or out.resolve().name)
    click.echo(f"{out}: written; `hf upload ACCOUNT/{out.name} {out}` puts it on the Hub")


@click.command()
@click.argument("policy", type=Path)
@click.argument("out", type=Path)
@click.option("--base", type=Path, help="The base policy, where it is not where the adapter's config says.")
def merge(policy: Path, out: Path, base: Path | None) -> None:
    """Merge a LoRA POLICY (data/rounds/r1/policy) with its base into the plain Hugging Face folder OUT."""
    from gift.project import console

    console.quiet()
    from gift.policy.merge import merge as merge_policy

    dtype = merge_policy(policy, out, base)
    click.echo(f"{out}: written, in {dtype}; `base.model: {out}` begins a project from it")
