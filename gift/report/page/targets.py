"""What each completion of a finished round was trained for: the target that `update.shape` made of its reward."""

from pathlib import Path

from gift.project.errors import UserError
from gift.project.sections import check
from gift.report.rows import Key, Places
from gift.tables.parquet import read_footer
from gift.tables.parts import keys_of
from gift.upkeep.guard import inputs_of

MAX_ROWS = 1 << 16
"""Completions of a round above which its tables are not read whole for this."""


def targets_of(name: str, folder: Path, num_rows: int) -> dict[Key, float] | str:
    """By prompt and sample, of those that trained; where they are not known, why.

    By the settings that the update noted, the arithmetic is its own (`gift.methods.choosing.choose`).
    """
    settings = inputs_of(f"update@{name}").get("update")
    if settings is None:
        return "not trained yet"
    if not (folder / "reference").is_dir():
        return f"{folder / 'reference'}: not here; `dvc pull reference@{name}` fetches it"
    if num_rows > MAX_ROWS:
        return f"not computed here for more than {MAX_ROWS:,} completions"
    import pyarrow as pa

    from gift.methods.choosing import choose
    from gift.policy.folder import Lineage
    from gift.tables.parquet import part_paths, read_file
    from gift.tables.places import Places as Rows
    from gift.training.inputs import read_round
    from gift.training.settings import Update

    try:
        update = check(Update, settings, f"data/made/update@{name}.json: inputs.update", ".")
        places = Places.of(folder, answers=False)
        _, said = read_footer(part_paths(places.scores)[0])
        lineage = Lineage(digest=said["policy"], base=said["policy"])
        tables = (places.rollouts, places.scores, folder / "reference")
        beside = (update.needs, places.prompts, update.find_answer)
        rows, _ = read_round(*tables, said["rollouts"], lineage, folder / "policy", *beside)
        chosen = choose(rows.groups, update)
    except UserError as error:
        return error.format_message().splitlines()[0]
    trains = chosen.groups.mask.new_zeros(len(chosen.groups.mask))
    trains[chosen.indices] = True
    mask = (chosen.groups.mask & trains.unsqueeze(-1)).flatten().tolist()
    values = chosen.targets.completions.flatten().tolist()
    table = pa.concat_tables(read_file(path, ["prompt_id", "sample"])[0] for path in part_paths(places.rollouts))
    order = zip(keys_of(table), Rows.of(table).of_rows.tolist(), strict=True)
    return {key: values[place] for key, place in order if mask[place]}
