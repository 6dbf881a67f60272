"""`gift report`: one HTML file with the curves of the rounds, their rollouts and answers, and what made them."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from gift.project.errors import UserError
from gift.project.params import PARAMS
from gift.project.rounds import Round, read_rounds
from gift.project.yaml import read_yaml
from gift.report.history import HISTORY
from gift.report.outcome import ACCURACY
from gift.report.page.answers import Reader, answers_of, difference, held_out_prompts, values_of
from gift.report.page.charts import as_dicts, charts_of, drawn
from gift.report.page.kept import CACHE, Made, kept, write_own
from gift.report.page.made import facts, notes_of, times
from gift.report.page.rollouts import rollouts_of
from gift.report.page.tokens import TOKENIZER
from gift.report.runs import Line, compared, distinct, lines_of, runs_named

PAGE = Path("data/report/report.html")
COMPARE = Path("compare/data")
COMPARE_PAGE = COMPARE / "report/report.html"
ROOM = 3_000_000
"""Bytes for the texts of rollouts and answers; curves, numbers and the charts' scripts come on top (about 1 MB)."""
VEGA_LITE, OF_DVC = "6.4", "5.21"
"""The versions of Vega-Lite in our page, and of that of `dvc plots`, whose templates are made for it."""
TOLERANCE = 1e-9
WEB = Path(__file__).parent / "web"


def checked(out: Path) -> Path:
    """A place for a page; a `UserError` where there can be none."""
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"--out {out}: must be the name of a file that ends in .html")
    if (above := next(each for each in out.absolute().parents if each.exists())) and not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file, and no folder")
    return out


def write_report(out: Path, others: Sequence[str], room: int = ROOM) -> None:
    """The page of the project in the working folder; `others` are runs whose curves stand beside it."""
    rounds = read_rounds()
    here = lines_of(Path())
    lines = distinct([*here, *runs_named(others)])
    known = [name for name in ("base", *rounds) if (HISTORY / f"{name}.json").exists()]
    notes = notes_of(rounds)
    read = lru_cache(4)(values_of)
    share = room // _at_least(len(rounds))  # so that one round more does not change the share of each
    answers = _answers(known, share * 3 // 10, read)
    data = {
        **_curves(Path.cwd().name, lines),
        "notes": list(_of_others(answers["answers"], here)),
        "differences": _differences(rounds, known, read),
        "times": times(notes),
        "facts": facts(rounds, notes),
        "settings": json.dumps(read_yaml(PARAMS), indent=1, default=str),
        "rollouts": list(_rollouts(rounds, share * 7 // 10)),
        **answers,
    }
    write_own(out, render(data))


def write_comparison(out: Path) -> None:
    """The page of `gift compare`: the methods' curves, means over seeds."""
    lines = compared(COMPARE)
    empty = {
        "notes": [],
        "differences": [],
        "times": [],
        "facts": [],
        "rollouts": [],
        "answers": [],
        "prompts": {},
        "settings": "",
    }
    write_own(out, render({**_curves("gift compare", lines), **empty}))


def _curves(title: str, lines: Sequence[Line]) -> Made:
    charts = charts_of(lines)
    return {"title": title, "charts": as_dicts(charts), "lines": drawn(lines, charts)}


def _rollouts(rounds: Mapping[str, Round], room: int) -> Iterator[Made]:
    for name, each in rounds.items():
        folder = Path("data/rounds", name)
        if (folder / "scores").is_dir():
            tables = [folder / table for table in ("rollouts", "scores", "notes", "reference")]
            tables += [Path("data/prompts/train.parquet"), Path(f"data/made/update@{name}.json")]
            tables += [Path("data/rounds", policy, "policy", TOKENIZER) for policy in (each.parent, "base")]
            yield kept("rollouts", name, room, tables, partial(rollouts_of, each, room))


def _answers(known: Sequence[str], room: int, read: Reader) -> Made:
    found = [kept("answers", name, room, _of_answers(name), partial(answers_of, name, room, read)) for name in known]
    shown = [each for each in found if "missing" not in each]
    names = dict.fromkeys(prompt_id for each in shown for prompt_id in each["texts"])
    return {"answers": found, "prompts": held_out_prompts(list(names)) if names else {}}


def _of_others(answers: Sequence[Made], lines: Sequence[Line]) -> Iterator[str]:
    """What to say where the answers that lie here are not those of the history, as after `git checkout` alone."""
    numbers = {row["name"]: row.get(ACCURACY) for line in lines for row in line.rounds}
    for each in answers:
        said = numbers.get(each["name"])
        if each.get("accuracy") is not None and said is not None and abs(each["accuracy"] - said) > TOLERANCE:
            yield (
                f"{each['name']}: its tables here are of another run than its numbers (accuracy {each['accuracy']:.3g} "
                f"and {said:.3g}); `dvc checkout` brings those of this commit"
            )


def _of_answers(name: str) -> list[Path]:
    return [Path("data/rounds", name, table) for table in ("answers", "answer_scores")]


def _differences(rounds: Mapping[str, Round], known: Sequence[str], read: Reader) -> list[Made]:
    """Of each policy to the base, and to the one that it comes from."""
    found = []
    for name in known:
        if name == "base":
            continue
        for since in dict.fromkeys(["base", rounds[name].parent]):
            tables = [*_of_answers(since), *_of_answers(name)]
            found.append(kept(f"difference-{since}", name, 0, tables, partial(difference, since, name, read)))
    return found


def _at_least(number: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    return min(size for power in range(32) for size in (1 << power, 3 << power) if size >= number)


def render(data: Mapping[str, Any]) -> str:
    """The page as text: its scripts and nothing else may run, and it may load nothing (Content-Security-Policy)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined)
    scripts = [charts_script(), *((WEB / name).read_text(encoding="utf-8") for name in ("page.js",))]
    return environment.get_template("page.html").render(
        title=data["title"],
        style=(WEB / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        allowed=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        # In an element of JSON only `<` could end it, or begin a comment.
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def charts_script(version: str = VEGA_LITE) -> str:
    """Vega-Lite, Vega and vega-embed in one script, which takes a second to make: kept in data/.cache.

    An end tag in it would end the element that it stands in.
    """
    known = CACHE / f"charts-{version}-{metadata.version('vl-convert-python')}.js"
    if known.exists():
        return known.read_text(encoding="utf-8")
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    script = script.replace("</script", "<\\/script")
    write_own(known, script)
    return script


def plots_page() -> str:
    """The page that `dvc plots show` fills, with Vega-Lite 5 inside; DVC's own loads it from the network."""
    return (
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset='utf-8'>\n<title>DVC plots</title>\n"
        f"<script type='text/javascript'>{charts_script(OF_DVC)}</script>\n</head>\n"
        "<body>\n{plot_divs}\n</body>\n</html>\n"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
