"""`gift report`: the page has the numbers of the tables, its texts cannot leave their place, and it stays small."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pages import needs_chromium, opened
from ruamel.yaml import YAML

from gift.cli import main
from gift.evaluation.paired import paired
from gift.methods.statistics import EPS
from gift.report import runs
from gift.report.outcome import closing, summary
from gift.report.page import kept, rollouts, watch, write
from gift.report.page.tokens import tokenizer_of
from gift.report.page.watch import report_kept_new
from gift.report.page.write import PAGE, charts_script
from gift.report.rows import Places, rights_of
from gift.tables.parquet import read_file, write_file

ROOT = Path(__file__).parents[1]
EVIL = [
    "<script>document.title = 'evil'</script>",
    "</script><script>alert(1)</script><!--",
    "<img src=x onerror=\"document.title = 'evil'\"> {{ 7 * 7 }} ${7 * 7}",
    "\x1b[31mred\x1b[0m \u202egnp.exe\u202c \u200b\u2028\x00 \u061c \U000e0041 \U0001f600",
]


def report(*words: str) -> dict[str, Any]:
    """Write the page of the project in the working folder; what it holds."""
    done = CliRunner().invoke(main, ["report", *words])
    assert done.exit_code == 0, done.output
    out = Path(words[words.index("--out") + 1]) if "--out" in words else PAGE
    return held(out)


def held(out: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', out.read_text(encoding="utf-8"))
    assert found
    return dict(json.loads(found[1]))


def refused(*words: str) -> str:
    done = CliRunner().invoke(main, ["report", *words])
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    return done.output


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What draws the charts, which takes a second to make."""
    with chdir(tmp_path_factory.mktemp("script")):
        return charts_script()


@pytest.fixture
def project(copied: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copied)
    monkeypatch.setattr("gift.report.page.write.charts_script", lambda: script)
    return copied


def add_rounds(number: int, change: Callable[[int, dict[str, Any]], None] = lambda *_: None) -> None:
    """Rounds r2, r3, ... that have the tables of r1, and its history but for `change`."""
    lines = ["rounds:", "  r1: {from: base}"]
    history = json.loads(Path("data/history/r1.json").read_text())
    for index in range(2, number + 1):
        lines.append(f"  r{index}: {{from: r{index - 1}}}")
        folder = Path(f"data/rounds/r{index}")
        folder.mkdir()
        for name in ("rollouts", "scores", "notes", "reference", "answers", "answer_scores"):
            shutil.copytree(f"data/rounds/r1/{name}", folder / name)
        row = history["round"] | {"round": index, "name": f"r{index}"}
        change(index, row)
        Path(f"data/history/r{index}.json").write_text(json.dumps({"round": row, "steps": history["steps"]}))
        note = json.loads(Path("data/made/update@r1.json").read_text())
        Path(f"data/made/update@r{index}.json").write_text(json.dumps(note))
    Path("rounds.yaml").write_text("\n".join(lines) + "\n")


def rewrite(
    name: str,
    column: str,
    change: Callable[[list[Any]], list[Any]],
    folder: str = "data/rounds/r1",
    parts: str = "part-00000",
) -> None:
    """Other values in a column of a table's first part, or of others."""
    for path in sorted(Path(folder, name).glob(f"{parts}.parquet")):
        table, metadata = read_file(path)
        place = table.column_names.index(column)
        cells = pa.array(change(table[column].to_pylist()), table.schema.field(column).type)
        write_file(path, table.set_column(place, table.schema.field(column), [cells]), metadata)


def test_groups_have_the_numbers_of_their_tables(project: Path) -> None:
    made = report()["rollouts"][0]
    r1 = project / "data/rounds/r1"
    rows = pd.read_parquet(r1 / "rollouts").merge(pd.read_parquet(r1 / "scores"), on=["prompt_id", "sample"])
    rows["length"] = rows["completion_ids"].map(len)
    listed = pd.DataFrame(made["listed"]).set_index("id")
    groups = rows.groupby("prompt_id")
    for name, wanted in {
        "reward": groups["reward"].mean(),
        "spread": groups["reward"].std(ddof=0),
        "length": groups["length"].mean(),
        "truncated": (rows["finish_reason"] == "length").groupby(rows["prompt_id"]).sum(),
    }.items():
        assert listed[name].to_numpy() == pytest.approx(wanted.loc[listed.index].to_numpy(), rel=1e-3), name
    assert (made["num_groups"], made["num_rows"]) == (len(listed), len(rows))
    shown = {(prompt_id, row["sample"]): row for prompt_id, each in made["texts"].items() for row in each["rows"]}
    for _, row in rows.iterrows():
        one = shown[row["prompt_id"], row["sample"]]
        assert (one["text"], one["reward"]) == (row["completion"], pytest.approx(row["reward"]))
        assert one["rewards"]["answer"] == row["answer"]


def test_targets_are_what_the_update_trained_for(project: Path) -> None:
    """The shipped method standardises rewards within groups, and drops those of equal rewards."""
    made = report()["rollouts"][0]
    for each in made["texts"].values():
        rewards = np.array([row["reward"] for row in each["rows"]])
        targets = [row["target"] for row in each["rows"]]
        if rewards.std() < EPS:
            assert targets == [None] * len(rewards)
        else:
            wanted = (rewards - rewards.mean()) / rewards.std(ddof=1)
            assert targets == pytest.approx(wanted, rel=2e-3, abs=2e-3)


def test_tokens_cut_the_text_and_have_their_log_ratios(project: Path) -> None:
    rewrite(
        "reference",
        "old_logprobs",
        lambda rows: [[value - 0.5 * (i % 2) for i, value in enumerate(row)] for row in rows],
        parts="*",
    )
    made = report()["rollouts"][0]
    for each in made["texts"].values():
        for row in each["rows"]:
            assert sum(row["tokens"]) == len(row["text"])
            assert row["ratios"] == [-50 * (i % 2) for i in range(row["num_tokens"])]


def test_characters_of_several_tokens_are_the_last_ones(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    pieces = tokenizer_of(tmp_path / "none", tmp_path)
    assert pieces
    text = "aé 漢b"
    ids = tokenizer.encode(text).ids
    assert pieces.lengths(ids, text) == [1, 0, 1, 1, 0, 0, 1, 1]
    assert pieces.lengths(ids, "other") is None
    assert tokenizer_of(tmp_path / "none") is None


def test_differences_are_those_of_paired(project: Path) -> None:
    made = report()["differences"]
    rights = [rights_of(Places.of(Path("data/rounds", name), answers=True).scores) for name in ("base", "r1")]
    found = paired(*rights, greedy=True)
    assert [(each["name"], each["since"]) for each in made] == [("r1", "base")]
    assert made[0]["greedy"] == pytest.approx([found.mean, *found.interval], rel=1e-3, abs=1e-4)
    assert (made[0]["gained"], made[0]["lost"]) == (len(found.gained), len(found.lost))


def test_rollouts_are_counted_along_a_branch(project: Path) -> None:
    add_rounds(3)
    Path("rounds.yaml").write_text("rounds: {r1: {from: base}, r2: {from: r1}, r3: {from: r1}}\n")
    first, second = report()["lines"]
    assert [first["name"], second["name"]] == ["r1 to r2", "r3"]
    number = json.loads(Path("data/history/r1.json").read_text())["round"]["num_rollouts"]
    assert first["rounds"]["rollouts"] == [0, number, 2 * number]
    assert second["rounds"]["rollouts"] == [number, 2 * number]
    assert second["rounds"]["name"] == ["r1", "r3"]


def test_large_rounds_are_sampled_and_it_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report("--megabytes", "1")["rollouts"][0]
    small = report("--megabytes", "0.01")["rollouts"][0]
    assert 0 < len(small["texts"]) < len(whole["texts"]) == whole["num_groups"]
    assert small["texts"].items() <= whole["texts"].items()
    assert small["listed"] == whole["listed"]
    assert len(json.dumps(small["texts"])) < 7000 + 500
    monkeypatch.setattr(rollouts, "MAX_LISTED", 3)
    monkeypatch.setattr(kept, "FORM", 0)
    few = report()["rollouts"][0]
    assert (len(few["listed"]["id"]), few["num_groups"]) == (3, whole["num_groups"])


def test_a_round_is_read_again_only_where_it_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report()
    monkeypatch.setattr("gift.report.page.write.rollouts_of", lambda *_: pytest.fail("was read again"))
    assert report() == first
    rewrite("scores", "reward", lambda rewards: [2.0, *rewards[1:]])
    with pytest.raises(pytest.fail.Exception):
        CliRunner().invoke(main, ["report"], catch_exceptions=False)


def test_what_is_not_here_is_said(project: Path) -> None:
    whole = report()
    shutil.rmtree("data/rounds/base/answers")
    shutil.rmtree("data/rounds/r1/rollouts")
    Path("data/made/update@r1.json").unlink()
    made = report()
    assert "no such table" in made["rollouts"][0]["missing"]
    assert [each["name"] for each in made["answers"] if "missing" in each] == ["base"]
    assert made["lines"] == whole["lines"]


def test_a_round_that_did_not_train_yet_has_no_targets(project: Path) -> None:
    Path("data/made/update@r1.json").unlink()
    made = report()["rollouts"][0]
    assert made["targets"] == "not trained yet"
    assert not any("target" in row for each in made["texts"].values() for row in each["rows"])


def test_other_runs_are_lines_with_names(project: Path, tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (
        ["init", "-q"],
        ["add", "-f", "rounds.yaml", "data/history"],
        ["commit", "-q", "-m", "x"],
        ["tag", "first"],
    ):
        subprocess.run([*git, *words], check=True)
    subprocess.run(["git", "update-ref", "refs/exps/ab/cdef/wavy-hare", "HEAD"], check=True)
    other = Path(shutil.copytree(project, tmp_path / "other", ignore=shutil.ignore_patterns(".git")))
    made = report("--with", "first", "--with", f"mine={other}", "--with", str(other), "--with", "hare=wavy-hare")
    assert [line["name"] for line in made["lines"]] == ["r1", "first", "mine", "other", "hare"]
    assert all(line["rounds"] == made["lines"][0]["rounds"] for line in made["lines"])
    assert "no folder, git revision or DVC experiment of this name" in refused("--with", "nothing")
    subprocess.run([*git, "rm", "-rq", "--cached", "data/history"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    assert "git has no rounds.yaml or no data/history there" in refused("--with", "HEAD")


def test_a_comparison_shows_means_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, accuracies in ((1, (0.1, 0.4)), (2, (0.1, 0.6))):
        rows = [{"round": i, "completions": 8, "eval/accuracy_greedy": value} for i, value in enumerate(accuracies)]
        path = Path(f"compare/data/runs/gift/{seed}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rows": rows}))
    (line,) = report("--compare", "--out", "page.html")["lines"]
    assert line["name"] == "gift (2 seeds)"
    assert line["rounds"]["eval/accuracy_greedy"] == pytest.approx([0.1, 0.5])
    assert line["rounds"]["eval/accuracy_greedy_se"] == pytest.approx([0.0, 0.1])
    assert line["rounds"]["rollouts"] == [0, 8]
    shutil.rmtree("compare")
    assert "no run of a comparison; `gift compare` makes them" in refused("--compare")


def test_many_steps_become_their_means() -> None:
    steps = [
        {"step": i, "round": 1, "branch": "r1", "kl": float(i), "new": None} for i in range(1, 2 * runs.MAX_STEPS + 2)
    ]
    thin = runs.thinned(steps)
    assert len(thin) <= runs.MAX_STEPS
    assert thin[-1]["step"] == steps[-1]["step"]
    assert thin[0]["kl"] == pytest.approx(np.mean([1, 2, 3]))
    assert thin[0]["new"] is None
    assert runs.thinned(steps[:5]) == steps[:5]


def test_the_summary_has_fixed_names() -> None:
    first = {"name": "base", "eval/accuracy_greedy": 0.1, "eval/accuracy_greedy_se": 0.01}
    rows = [first, {**first, "name": "r1", "eval/accuracy_greedy": 0.5, "num_tokens_trained": 5, "num_rollouts": 8}]
    rows.append({**rows[1], "name": "r2", "eval/accuracy_greedy": 0.4, "kl": 0.2, "eval/reward": 0.3})
    found = summary(rows)
    assert (found["first"], found["last"], found["best"], found["rounds"]) == ("base", "r2", "r1", 2)
    assert (found["accuracy"], found["accuracy_first"], found["accuracy_best"]) == (0.4, 0.1, 0.5)
    assert (found["tokens"], found["completions"], found["kl"], found["reward"]) == (10, 16, 0.2, 0.3)
    assert summary([{"name": "base"}]).keys() == found.keys()


def test_a_run_ends_with_where_to_look(project: Path) -> None:
    def last(**settings: bool) -> str:
        return list(closing(Path("data/history"), {"r1": ["base", "r1"]}, PAGE, **settings))[-1]

    assert last(pushes=False) == "look: `gift inspect r1`; keep: `git add -A && git commit`"
    report()
    assert last(pushes=True) == f"look: {PAGE}, `gift inspect r1`; keep: `git add -A && git commit && dvc push`"
    assert not list(closing(Path("data/none"), {"r1": ["base", "r1"]}, PAGE, pushes=True))


@pytest.mark.slow
def test_a_hundred_rounds_are_a_small_page(project: Path) -> None:
    add_rounds(100)
    start = time.perf_counter()
    made = report()
    seconds = time.perf_counter() - start
    assert len(made["rollouts"]) == 100
    assert PAGE.stat().st_size < 5_000_000
    assert seconds < 20, seconds  # benchmarks/README.md has what it takes on a machine that does nothing else


@needs_chromium
def test_people_sort_filter_open_and_follow(project: Path) -> None:
    add_rounds(3)
    rewrite("scores", "reward", lambda rewards: [None, *rewards[1:]], "data/rounds/r3")
    made = report()
    with opened(project / PAGE) as (page, said):
        page.wait_for_selector(".chart svg")
        assert page.locator(".chart .plot").count() > 10
        assert not re.search(r"\b(null|undefined|NaN)\b", page.locator("main").inner_text())
        rows = page.locator("#rollouts tbody tr")
        listed = made["rollouts"][2]["listed"]
        assert rows.count() == len(listed["id"])
        page.get_by_role("button", name="tokens", exact=True).click()
        lengths = [float(cell) for cell in page.locator("#rollouts tbody tr td:nth-child(4)").all_inner_texts()]
        assert lengths == sorted(lengths, reverse=True)
        page.locator("#rollouts th[aria-sort=descending] button").click()
        assert [
            float(cell) for cell in page.locator("#rollouts tbody tr td:nth-child(4)").all_inner_texts()
        ] == lengths[::-1]
        page.locator("input[data-only=failed]").check()
        assert rows.count() == 1
        page.locator("input[data-only=failed]").uncheck()
        prompt_id = listed["id"][1]
        text = made["rollouts"][2]["texts"][prompt_id]["prompt"][0][1]
        page.fill("#word", text)
        page.wait_for_function("document.querySelectorAll('#rollouts tbody tr').length === 1")
        rows.first.press("Enter")
        shown = page.locator("#group .completion")
        assert shown.count() == len(made["rollouts"][2]["texts"][prompt_id]["rows"])
        assert text in page.locator("#group").inner_text()
        for name in ("r1", "r2"):
            page.locator(f"#group button[data-round={name}]").click()
            assert page.locator("#round").evaluate("each => each.selectedOptions[0].text") == name
            assert shown.count() > 0
        page.locator("#answers button[data-only='became right']").click()
        gained = next(each for each in made["differences"] if (each["name"], each["since"]) == ("r3", "base"))["gained"]
        assert page.locator("#answers tbody tr").count() == gained
        page.locator("#answers button[data-only=all]").click()
        page.locator("#answers tbody tr").first.click()
        assert page.locator("#answer .completion").count() == 4
        page.get_by_role("button", name="rollouts sampled").click()
        page.locator("#more summary").click()
        page.locator("#more .chart").last.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        assert not said


@needs_chromium
def test_texts_of_a_model_do_nothing(project: Path) -> None:
    rewrite("rollouts", "completion", lambda texts: ["".join(EVIL[:3]), EVIL[3], "x" * 1_000_000, *texts[3:]])
    rewrite("notes", "answer_message", lambda said: [*EVIL, *said[4:]])
    rewrite("answers", "completion", lambda texts: [EVIL[i % len(EVIL)] for i in range(len(texts))])
    report()
    first = pd.read_parquet("data/rounds/r1/rollouts")["prompt_id"].iloc[0]
    assert PAGE.stat().st_size < 5_000_000
    with opened(project / PAGE) as (page, said):
        title = page.title()
        for place in ("rollouts", "answers"):
            page.locator(
                f"#{place} tr[data-id='{first}']" if place == "rollouts" else f"#{place} tbody tr"
            ).first.click()
        shown = page.locator("#group").inner_text() + page.locator("#answer").inner_text()
        assert EVIL[0] in shown
        assert "alert(1)" in shown
        assert "{{ 7 * 7 }}" in shown
        for written in (r"\u001b[31mred", r"\u202egnp.exe", r"\u0000", r"\u061c", r"\ue0041", "\U0001f600"):
            assert written in shown
        assert "996,000 characters more" in shown
        assert page.title() == title
        assert page.locator("#group script, #group img, #answer script, #answer img").count() == 0
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 1400
        assert not said


@needs_chromium
@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (400, "dark"),
        pytest.param(400, "light", marks=pytest.mark.slow),
        pytest.param(1400, "dark", marks=pytest.mark.slow),
    ],
)
def test_it_fits_narrow_and_dark_screens(project: Path, width: int, scheme: str) -> None:
    report()
    with opened(project / PAGE, width, scheme) as (page, said):
        page.wait_for_selector(".chart svg")
        page.locator("#rollouts tbody tr").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        assert not said


def test_the_page_follows_a_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "SECONDS", 0.05)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with report_kept_new():
        pass
    assert held(PAGE)["lines"]
    made = PAGE.stat().st_mtime_ns
    with report_kept_new():
        time.sleep(0.2)
    assert PAGE.stat().st_mtime_ns == made, "nothing was evaluated, so nothing is written"
    Path("rounds.yaml").write_text("rounds: {r1: {from: r7}}\n")
    with report_kept_new():
        Path("data/history/r1.json").touch()
    assert PAGE.stat().st_mtime_ns == made
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("gift report: error: rounds.yaml: rounds.r1.from: 'r7': there is no such round")
    assert said.endswith("(the run goes on; `gift report` tries it again)\n")


def test_the_method_is_that_which_made_the_rounds(project: Path) -> None:
    """Not that of params.yaml, which may have changed since; of presets that are alike the one that says no more."""
    shutil.copytree(ROOT / "presets", "presets")
    facts = dict(report()["facts"])
    assert facts["method"] == "gift (presets/methods/gift.yaml)"
    params = json.loads(Path("params.yaml").read_text())
    params["update"] |= {"shape": {"zscore": {}}, "match": {"clipped": {"aggregate": "grpo"}}}
    Path("params.yaml").write_text(json.dumps(params))
    assert dict(report()["facts"]) == facts
    note = json.loads(Path("data/made/update@r1.json").read_text())
    grpo = YAML(typ="safe").load((ROOT / "presets/methods/grpo.yaml").read_text())["update"]
    note["inputs"]["update"] = {key: note["inputs"]["update"][key] for key in ("groups_per_step", "lr", "dtype")} | grpo
    Path("data/made/update@r1.json").write_text(json.dumps(note))
    assert dict(report()["facts"])["method"] == "grpo (presets/methods/grpo.yaml)"


def test_what_is_right_is_not_held_against_rewards(project: Path) -> None:
    """Where one policy's answers have no verdict, both are compared by their rewards, and the page says so."""
    path = project / "data/rounds/r1/answer_scores"
    for part in path.glob("*.parquet"):
        table, metadata = read_file(part)
        metadata.pop("schema_version")
        write_file(part, table, metadata | {"correct": []})
    (made,) = report()["differences"]
    rewards = [pd.read_parquet(f"data/rounds/{name}/answer_scores").query("sample == 0") for name in ("base", "r1")]
    both = rewards[0].merge(rewards[1], on="prompt_id")
    assert not made["judged"]
    assert made["greedy"][0] == pytest.approx((both["reward_y"] - both["reward_x"]).mean(), abs=1e-4)


def test_rollouts_are_counted_where_a_round_was_not_evaluated(project: Path) -> None:
    add_rounds(3)
    Path("data/history/r2.json").unlink()
    Path("data/rounds/r2/metrics").mkdir()
    Path("data/rounds/r2/metrics/generate.json").write_text(json.dumps({"num_completions": 7}))
    (line,) = report()["lines"]
    number = json.loads(Path("data/history/r1.json").read_text())["round"]["num_rollouts"]
    assert line["rounds"]["rollouts"] == [0, number, 2 * number + 7]
    Path("data/rounds/r2/metrics/generate.json").unlink()
    assert report()["lines"][0]["rounds"]["rollouts"] == [0, number, None]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_left_out(project: Path, value: float) -> None:
    path = Path("data/history/r1.json")
    history = json.loads(path.read_text())
    history["round"]["reward"] = value
    path.write_text(json.dumps(history))
    rewrite("scores", "reward", lambda rewards: [value, *rewards[1:]])
    rewrite("reference", "old_logprobs", lambda rows: [[value] * len(rows[0]), *rows[1:]])
    made = report()
    assert made["lines"][0]["rounds"]["reward"] == [None, None]
    rows = [row for each in made["rollouts"][0]["texts"].values() for row in each["rows"]]
    assert any(row["reward"] is None for row in rows)


def test_a_round_always_shows_a_group(project: Path) -> None:
    made = report("--megabytes", "0")["rollouts"][0]
    (group_,) = made["texts"].values()
    assert len(group_["rows"]) == max(made["listed"]["size"])
    assert all("tokens" not in row for row in group_["rows"])


def test_names_of_runs_are_their_own_and_may_hold_equal_signs(project: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(project, tmp_path / "a=b"))
    made = report("--with", str(other), "--with", str(other), "--with", f"r1={other}")
    assert [line["name"] for line in made["lines"]] == ["r1", "a=b", "a=b (2)", "r1 (2)"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--with", ""], "--with '': names nothing"),
        (["--with", "name="], "--with 'name=': names nothing"),
        (["--with", "data"], "data has no rounds.yaml, so it is no project"),
        (["--compare", "--with", "x"], "--compare and --with: not both"),
        (["--megabytes", "nan"], "--megabytes nan: must be a number from 0 to 1000"),
        (["--out", "params.yaml"], "--out params.yaml: must be the name of a file that ends in .html"),
        (["--out", "params.yaml/x.html"], "params.yaml is a file, and no folder"),
    ],
)
def test_what_cannot_be_reported_is_one_line(project: Path, words: list[str], line: str) -> None:
    before = sorted(project.iterdir())
    assert line in refused(*words)
    assert sorted(project.iterdir()) == before


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"round": {}, "steps": []}', "{"])
def test_a_damaged_history_is_one_line(project: Path, content: str) -> None:
    Path("data/history/r1.json").write_text(content)
    assert "data/history/r1.json: " in refused()


@pytest.mark.parametrize("note", ["{}", "[]", '{"git": "x", "versions": {"torch": 2}, "machine": 3, "inputs": []}'])
def test_notes_of_another_form_cost_what_they_would_say(project: Path, note: str) -> None:
    Path("data/made/update@r1.json").write_text(note)
    assert report()["rollouts"][0]["targets"] == "not trained yet"


def test_tables_of_another_run_than_the_numbers_are_noticed(project: Path) -> None:
    assert report()["notes"] == []
    history = json.loads(Path("data/history/r1.json").read_text())
    history["round"]["eval/accuracy_greedy"] += 0.25
    Path("data/history/r1.json").write_text(json.dumps(history))
    (note,) = report()["notes"]
    assert note.startswith("r1: its tables here are of another run than its numbers")
    assert "`dvc checkout`" in note


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 9, 13, 100, 1000])
def test_one_round_more_rarely_changes_the_share_of_each(number: int) -> None:
    size = write._at_least(number)
    assert number <= size < max(2 * number, 2)
    assert write._at_least(size) == size
