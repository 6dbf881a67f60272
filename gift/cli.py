"""The `gift` command: check a project, extend its rounds, look at one, merge an adapter, draw plots off line."""

import json
import re
from pathlib import Path

import click
from ruamel.yaml import YAML

from gift.project.errors import UserError


@click.group()
def main() -> None:
    """Look after the rounds of a GIFT pipeline; `dvc repro` runs them."""


@main.command()
@click.argument("number", type=click.IntRange(min=1))
@click.option("--file", type=Path, default=Path("rounds.yaml"), show_default=True)
def rounds(number: int, file: Path) -> None:
    """Extend the chain r1, r2, ... in rounds.yaml to NUMBER rounds; comments and branches stay."""
    yaml = YAML()  # keeps comments
    yaml.preserve_quotes = True
    if not file.exists():
        raise UserError(f"{file}: no such file; run this in the project's folder")
    content = yaml.load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("rounds"), dict):
        raise UserError(f"{file}: must hold a map `rounds:` with a line a round, such as `r1: {{from: base}}`")
    chain = [name for name in content["rounds"] if re.fullmatch(r"r\d+", str(name))]
    last = max((int(name[1:]) for name in chain), default=0)
    for index in range(last + 1, number + 1):
        line = yaml.map(**{"from": f"r{index - 1}" if index > 1 else "base"})
        line.fa.set_flow_style()
        content["rounds"][f"r{index}"] = line
    if number > last:
        with file.open("w", encoding="utf-8") as out:
            yaml.dump(content, out)
    click.echo(f"{file}: {max(number, last)} rounds, {max(number - last, 0)} of them new; `make repro` runs them")


@main.command()
@click.option("--quick", is_flag=True, help="Only what takes a second or two: what `dvc repro` runs first.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects in place of a table.")
def doctor(quick: bool, as_json: bool) -> None:
    """Check settings, data, rewards and machine before any stage works; exit code 1 where a stage would fail."""
    from gift.project import console

    console.quiet()
    from gift.doctor.findings import as_rows, closing, counts, report

    if quick:
        from gift.doctor.quick import quick_findings as checks
    else:
        from gift.doctor.full import full_findings as checks
    findings = checks()
    if as_json:
        click.echo(json.dumps(as_rows(findings), indent=1))
    else:
        click.echo("\n".join([*report(findings), closing(findings)]))
    if counts(findings)["error"]:
        raise SystemExit(1)


@main.command()
@click.argument("names", metavar="[STAGE]...", nargs=-1)
@click.option("--same", is_flag=True, help="Its edited code makes the same bytes: what was made before stays.")
@click.option("--other", is_flag=True, help="It makes other bytes: under a new number, so that all is made again.")
def code(names: tuple[str, ...], same: bool, other: bool) -> None:
    """Which code each STAGE runs; --same or --other list it in stages/results.yaml (without a STAGE: all edited)."""
    from gift.project.code import UNNUMBERED, code_of, fingerprint, record, stages
    from gift.project.sections import did_you_mean

    for name in names:
        if name not in stages():
            raise UserError(f"{name}: no such stage; {did_you_mean(name, stages())}")
    if same and other:
        raise UserError("--same or --other, not both")
    for name in names or stages():
        said = code_of(name)
        if same or other:
            if name not in UNNUMBERED and (names or said.startswith("edited")):
                click.echo(record(name, same=same))
        else:
            click.echo(f"{name:<14} {fingerprint(name)}  {said if said.startswith('edited') else f'results {said}'}")


@main.command()
@click.argument("round_folder", type=Path)
@click.option("--num", "-n", type=click.IntRange(min=1), default=2, show_default=True, help="Groups to show.")
@click.option("--prompt-id", help="Show this group.")
def inspect(round_folder: Path, num: int, prompt_id: str | None) -> None:
    """Show the rollouts of ROUND_FOLDER (data/rounds/r1) beside their prompts and rewards."""
    import pyarrow.parquet as pq

    for name in ("rollouts", "scores"):
        if not (round_folder / name).is_dir():
            raise UserError(f"{round_folder / name}: no such table; name a round's folder, such as data/rounds/r1")
    rollouts = pq.read_table(round_folder / "rollouts").to_pandas()
    scores = pq.read_table(round_folder / "scores").to_pandas()
    prompts = pq.read_table(round_folder.parents[1] / "prompts" / "train.parquet").to_pandas().set_index("prompt_id")
    table = rollouts.merge(scores, on=["prompt_id", "sample"], validate="one_to_one")
    ids = [prompt_id] if prompt_id else list(dict.fromkeys(table["prompt_id"]))[:num]
    if prompt_id and prompt_id not in prompts.index:
        raise UserError(f"prompt_id={prompt_id}: not in data/prompts/train.parquet")
    for key in ids:
        click.secho(f"prompt {key}", bold=True)
        for column, value in prompts.loc[key].items():
            click.echo(f"  {column}: {value}")
        for row in table[table["prompt_id"] == key].itertuples():
            reward = "failed" if row.reward is None or row.reward != row.reward else f"{row.reward:.3g}"
            tokens = len(row.completion_ids)
            click.echo(f"  [{row.sample}] reward {reward}, {tokens} tokens, {row.finish_reason}: {row.completion!r}")


@main.command()
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


@main.command()
@click.argument("out", type=Path, default=Path(".dvc/plots.html"))
def plots_template(out: Path) -> None:
    """Write the page that `dvc plots show` fills, with its scripts inside, so that plots need no network."""
    import vl_convert

    # DVC's charts are of Vega-Lite 5; their inline scripts call a global vegaEmbed.
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="5.21")
    page = (
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset='utf-8'>\n<title>DVC plots</title>\n"
        f"<script type='text/javascript'>{bundle}</script>\n</head>\n"
        "<body>\n{plot_divs}\n</body>\n</html>\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    click.echo(f"{out}: written, for `dvc plots show` (plots.html_template in .dvc/config)")


if __name__ == "__main__":
    main()
