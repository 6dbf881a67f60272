"""Mixtures: a reward with `where` sees the prompts of those values and no others, which abstain without a call."""

import json
from pathlib import Path
from typing import Any

import mini
import pyarrow as pa
import pytest
import torch
from bubblewrap import WHY_NOT
from click.testing import CliRunner
from ruamel.yaml import YAML
from test_score import METADATA, score_of, write_rollouts

from gift.doctor.whole import read_params
from gift.methods.choosing import choose
from gift.methods.groups import Groups
from gift.methods.names import SHAPE
from gift.project.errors import UserError
from gift.project.sections import check
from gift.sampling.settings import Evaluate
from gift.scoring.cache import ROOT
from gift.scoring.metrics import score_metrics
from gift.scoring.rows import NOT_ASKED, Asked
from gift.scoring.score import Scored, score_parts
from gift.scoring.settings import Score
from gift.tables.parquet import part_paths
from gift.tables.parts import read_table, write_part
from gift.tables.prompts import read_prompts
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import check_scores, everything
from gift.training.inputs import rewards_of
from stages.evaluate import main as evaluate
from stages.prepare import main as prepare
from stages.score import main as score_stage
from tests.groups import make_groups

FUNCTION = """
def {name}(prompts, completions, completion_ids, prompt_id, mode, **columns):
    with open("calls.txt", "a") as file:
        file.write("{name} " + " ".join(prompt_id) + "\\n")
    if "broken" in mode:
        raise ValueError("no gold")
    return [float(at) for at in range(len(prompts))]
"""
needs_bwrap = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
MIXTURE = ["math", "code", "math", "code", "other"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gift.scoring.looks.NUM_ROWS", 0)  # calls are counted here, without a second look
    Path("rewards").mkdir()
    for name in ("one", "two"):
        Path(f"rewards/{name}.py").write_text(FUNCTION.format(name=name))
    return tmp_path


def own(name: str = "one", **keys: Any) -> dict[str, Any]:
    return {"function": f"rewards/{name}.py:{name}", **keys}


def score(
    settings: Score, modes: list[str] = MIXTURE, cache: Path | None = None, workers: int = 1
) -> tuple[list[dict[str, Any]], list[str], Scored]:
    """The scores table, the calls that were made, and what the stage knows; groups of two, parts of four rows."""
    for name in ("rollouts", "scores"):
        for path in Path(name).glob("*"):
            path.unlink()
    Path("calls.txt").write_text("")
    rollouts, prompts = write_rollouts(modes)
    known = score_parts(Path("scores"), rollouts, prompts, settings, workers, METADATA, "score@r1", cache=cache)
    table, _ = read_table(Path("scores"), everything(settings.rewards), check_scores)
    return table.to_pylist(), sorted(Path("calls.txt").read_text().splitlines()), known


def weights(settings: Score) -> dict[str, dict[str, Any]]:
    """As the metadata of the scores have them."""
    return {name: {"weight": each.weight, "only_if": each.only_if} for name, each in settings.rewards.items()}


# --- who is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "asked"),
    [
        ({"mode": "math"}, [0, 2]),
        ({"mode": ["code", "other"]}, [1, 3, 4]),
        ({"mode": ["math", "code"], "prompt_id": ["p001", "p004"]}, [1]),
        ({}, [0, 1, 2, 3, 4]),
    ],
)
def test_a_reward_is_asked_for_its_prompts_and_abstains_elsewhere(where: dict[str, Any], asked: list[int]) -> None:
    rows, calls, known = score(score_of(one=own(where=where)))
    ids = [f"p{number:03d}" for number in asked for _ in range(2)]
    assert calls == [f"one {prompt_id}" for prompt_id in ids]
    assert known.num_asked == {"one": len(ids)}
    for row in rows:
        found = (row["one"], row["one_status"], row["one_message"], row["reward"])
        expected = (0.0, "ok", None, 0.0) if row["prompt_id"] in ids else (None, "abstain", NOT_ASKED.message, None)
        assert found == expected


@pytest.mark.parametrize(
    ("values", "wanted", "asked"),
    [
        ([1, 2, None], 1, [0]),
        ([1.0, 2.5, None], [1, None], [0, 2]),
        (["1", "x", None], 1, []),
        ([True, False, None], True, [0]),
        ([True, False, None], 1, []),
        ([["math"], [], None], None, [2]),
    ],
)
def test_values_are_equal_in_kind_too(values: list[Any], wanted: Any, asked: list[int]) -> None:
    prompts = pa.table({"prompt_id": ["a", "b", "c"], "prompt": ["?"] * 3, "level": values})
    found = Asked(score_of(one=own(where={"level": wanted})), prompts)
    assert found.masks["one"].nonzero()[0].tolist() == asked
    assert found.rows("one", ["c", "b", "a", "c"]) == [row for row, at in enumerate([2, 1, 0, 2]) if at in asked]
    assert found.is_asked("one") == bool(asked)


def test_groups_stay_whole_and_batches_are_full() -> None:
    settings = score_of(
        one=own(where={"mode": "math"}, batch="group"), two=own("two", where={"mode": ["math", "code"]}, batch=3)
    )
    rows, calls, _ = score(settings)
    assert calls == [
        "one p000 p000",
        "one p002 p002",
        "two p000 p000 p001",
        "two p001",
        "two p002 p002 p003",
        "two p003",
    ]
    assert [row["one"] for row in rows] == [0, 1, None, None, 0, 1, None, None, None, None]
    assert [row["reward"] for row in rows] == [0, 2, 2, 0, 0, 2, 2, 0, None, None]


def test_the_table_has_the_same_bytes_whatever_the_workers_and_with_kept_values() -> None:
    settings = score_of(one=own(where={"mode": "math"}), two=own("two", where={"mode": ["code", "math"]}, batch=3))
    tables = []
    for workers, cache in ((1, None), (2, ROOT), (1, ROOT)):
        calls = score(settings, workers=workers, cache=cache)[1]
        tables.append([path.read_bytes() for path in part_paths(Path("scores"))])
    assert tables == [tables[0]] * 3
    assert calls == []


# --- kept values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, "group"])
def test_another_where_calls_only_the_rows_that_are_new(batch: Any) -> None:
    def called(*modes: str) -> tuple[int, int]:
        where = {"mode": list(modes)} if modes else {}
        rows, calls, known = score(score_of(one=own(where=where, batch=batch)), cache=ROOT)
        assert [row["one_status"] == "ok" for row in rows] == [
            not modes or mode in modes for mode in MIXTURE for _ in range(2)
        ]
        return sum(len(call.split()) - 1 for call in calls), known.num_reused

    assert called("math") == (4, 0)
    assert called("math", "code") == (4, 4)
    assert called("math") == (0, 4)
    assert called("other") == (2, 0)
    assert called() == (0, 10)  # a row that was not asked is not kept as one that abstained


# --- what becomes of rows nobody judges -------------------------------------------------------------------------------


def test_a_prompt_that_no_reward_is_asked_for_is_no_zero_and_does_not_train() -> None:
    settings = score_of(one=own(where={"mode": "math"}, batch="group"), two=own("two", only_if="one", batch="group"))
    rows, _, known = score(settings)
    assert [row["reward"] for row in rows] == [0, 2, None, None, 0, 2, None, None, None, None]
    numbers = score_metrics(known.rows, known.scores, settings)
    assert [numbers[f"num_{name}"] for name in ("rollouts", "scored", "failed", "abstained")] == [10, 4, 0, 6]
    assert (numbers["reward"], numbers["rewards/one/num_abstain"], numbers["rewards/one/num_ok"]) == (1.0, 6, 4)
    chosen = choose(groups_with(known, settings), read_params(mini.ROOT / "params.yaml").update)
    assert chosen.indices == [0, 2]
    assert (chosen.ledger["num_groups_unscored"], chosen.ledger["num_completions_unscored"]) == (3, 6)


def groups_with(known: Scored, settings: Score) -> Groups:
    """Groups of two completions of one token with these scores."""
    fields = rewards_of(known.scores, weights(settings))
    return make_groups(**fields)


@pytest.mark.parametrize("shape", ["zscore", "gdpo"])
def test_a_group_trains_on_the_rewards_it_was_asked_as_if_there_were_no_other(shape: str) -> None:
    both = score_of(
        one=own(weight=2.0, batch="group"), two=own("two", weight=-1.0, where={"mode": "math"}, batch="group")
    )
    alone = score_of(one=own(weight=2.0, batch="group"))
    mixed, single = (
        SHAPE[shape].within(groups_with(score(settings)[2], settings), SHAPE[shape].settings()).completions
        for settings in (both, alone)
    )
    weight = 2.0 if shape == "gdpo" else 1.0  # of a single function gdpo is zscore, whose size no weight changes
    assert torch.allclose(mixed[[1, 3, 4]], weight * single[[1, 3, 4]])
    assert mixed.abs().min() > 0


def test_failures_are_counted_against_the_rows_that_are_asked() -> None:
    modes = ["math"] * 18 + ["broken", "fine"]
    assert [row["one_status"] for row in score(score_of(0.05, one=own()), modes)[0]].count("error") == 2
    assert score(score_of(0.0, one=own(where={"mode": ["math", "fine"]})), modes)[2].num_asked == {"one": 38}
    with pytest.raises(UserError) as caught:
        score(score_of(0.05, one=own(where={"mode": ["broken", "fine"]})), modes)
    assert "failed for 1 of 4 completions of its prompts; score.max_failed_share allows 0.05" in caught.value.message


# --- mistakes ---------------------------------------------------------------------------------------------------------

TABLE = pa.table(
    {
        "prompt_id": ["a", "b", "c"],
        "prompt": ["?"] * 3,
        "domain": ["math", "math", "code"],
        "level": [1, 2, 1],
        "tags": [["x"]] * 3,
    }
)
MATH, CODE = {"domain": "math"}, {"domain": "code"}


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        (
            {"one": own(where={"domian": "math"})},
            ["one.where.domian: the", "'domain'?", "prompt_id, domain, level, tags"],
        ),
        ({"one": own(where={"prompt": "?"})}, ["one.where.prompt: the prompts table has no such column"]),
        ({"one": own(where={"tags": "x"})}, ["one.where.tags: the column holds list<item: string>", "null alone"]),
        ({"one": own(where={"domain": "maths"})}, ["one.where.domain: 'maths': no", "'math'?", "are 'math', 'code'"]),
        ({"one": own(where={"level": "1"})}, ["one.where.level: '1': no training prompt", "of level are 1, 2"]),
        ({"one": own(where={**CODE, "level": 2})}, ["one.where: no training", "of domain, level together"]),
        ({"one": own(where=MATH), "two": own(where=CODE, only_if="one")}, ["two.only_if: 'one'", "two never counts"]),
        ({"one": own(where={"domain": "x"}, weight=0), "two": own(only_if="one")}, ["one.where.domain: 'x': no"]),
    ],
)
def test_a_where_that_leaves_a_reward_no_prompt_is_one_line(rewards: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Asked(score_of(**rewards), TABLE).refuse_useless()
    assert caught.value.message.startswith("params.yaml: score.rewards.")
    assert [word for word in words if word not in caught.value.message] == [], caught.value.message
    assert "\n" not in caught.value.message


def test_a_reward_for_evaluate_alone_has_no_weight() -> None:
    Asked(score_of(one=own(where={"domain": "aime"}, weight=0), two=own("two")), TABLE).refuse_useless()


def test_one_reward_says_what_is_right() -> None:
    rewards = {"one": own(where=MATH), "two": own(where=CODE), "all": own(), "none": own(where={"domain": "aime"})}
    asked = Asked(score_of(**rewards), TABLE)
    assert asked.correct(["one", "two"]).tolist() == [True, True, True]
    assert asked.correct(["two", "none"]).tolist() == [False, False, True]
    with pytest.raises(
        UserError, match=r"evaluate.correct: 'two' and 'all' are both asked for prompt_id=c; one reward"
    ):
        asked.correct(["two", "all"])
    with pytest.raises(
        UserError, match=r"none.where.domain: 'aime': no eval prompt has it; .*evaluate.correct needs it"
    ):
        asked.correct(["none"])


@pytest.mark.parametrize(
    "where", [{"a": []}, {"a": {"b": 1}}, {"a": [["b"]]}, {"a": float("nan")}, {"a": [1, None, ()]}]
)
def test_values_are_plain(where: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"^x: rewards.one.where.a: .*must be a text, a number, true, false, null, or a"
    ):
        check(Score, {"rewards": {"one": own(where=where)}}, "x")


@pytest.mark.parametrize("correct", [[], ["a", "a"], [1], 1, {"a": 1}, [None]])
def test_correct_is_a_reward_or_different_ones(correct: Any) -> None:
    with pytest.raises(
        UserError, match=r"^x: correct: .*must be a key of score.rewards, a list of different ones, or null"
    ):
        check(Evaluate, {"max_tokens": 4, "correct": correct}, "x")


# --- maths and code, through the stages -------------------------------------------------------------------------------


def documented(name: str, heading: str) -> dict[str, Any]:
    """The settings that a section of the docs shows."""
    section = (mini.ROOT / "docs" / name).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    return dict(YAML(typ="safe").load(section.partition("```yaml\n")[2].partition("```")[0]))


def write_completions(folder: Path, prompts: Path, wrong: str, only: str | None = None) -> None:
    """Two completions a prompt (of the domain `only`), the first of them right, unless it is of the domain `wrong`."""
    table, _ = read_prompts(prompts)
    rows = []
    for row in table.sort_by("prompt_id").to_pylist():
        if only not in (None, row["domain"]):
            continue
        right = f"\\boxed{{{row['answer']}}}" if row["domain"] == "math" else f"```python\n{row['solution']}\n```"
        for sample, text in enumerate(["no" if row["domain"] == wrong else right, "I do not know"]):
            rows.append(
                {
                    "prompt_id": row["prompt_id"],
                    "sample": sample,
                    "prompt_ids": [1],
                    "completion_ids": [2, 3],
                    "completion": text,
                    "rollout_logprobs": [-1.0, -1.0],
                    "finish_reason": "stop",
                    "seed": 0,
                }
            )
    metadata = {"policy": "p", "round": 1, "num_samples": 1, "num_prompts_too_long": 0}
    write_part(folder, 0, pa.Table.from_pylist(rows, schema=ROLLOUTS), ROLLOUTS, check_rollouts, metadata)


@needs_bwrap
def test_a_mixture_of_maths_and_code_goes_through_prepare_score_and_evaluate(folder: Path) -> None:
    (folder / "params.yaml").write_text((mini.ROOT / "params.yaml").read_text())
    mini.write_params(folder, {"prepare": {"source": None, "num_train": 16, "num_eval": 8}})
    mini.write_params(folder, documented("data.md", "### Maths and code"))
    shown = documented("rewards.md", "## where: a reward for each source")
    mini.write_params(folder, shown)
    maths = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(30)]
    code = [
        {"text": f"Return {n}.", "solution": f"def f(): return {n}", "test_list": [f"assert f() == {n}"]}
        for n in range(30)
    ]
    (folder / "sources").mkdir()
    for name, rows in (("math", maths), ("code", code)):
        (folder / f"sources/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = [f"data/prompts/{name}" for name in ("train.parquet", "eval.parquet", "prepare.json")]
    done = CliRunner().invoke(prepare, tables)
    assert done.exit_code == 0, done.output
    train, held_out = (read_prompts(Path(path))[0]["domain"].to_pylist() for path in tables[:2])
    home = Path("data/rounds/r1")
    write_completions(home / "rollouts", Path(tables[0]), wrong="none")
    write_completions(home / "answers", Path(tables[1]), wrong="code")

    done = run_score(home, tables[0], "scores")
    assert done.exit_code == 0, done.output
    assert f"math asked {2 * train.count('math')}, code asked {2 * train.count('code')}, slowest" in done.output
    numbers = json.loads((home / "scores.json").read_text())
    assert (numbers["reward"], numbers["num_scored"], numbers["num_failed"]) == (0.5, 32, 0)
    for name in ("math", "code"):
        asked = 2 * train.count(name)
        counts = [numbers[f"rewards/{name}/num_{each}"] for each in ("asked", "ok", "abstain")]
        assert (counts, numbers[f"rewards/{name}/mean"]) == ([asked, asked, 32 - asked], 0.5)

    answers = {"answers": home / "answers", "prompts": tables[1]}
    made = {"scores": home / "answer_scores", "metrics": home / "evaluate.json", "history": "data/history/r1.json"}
    done = CliRunner().invoke(evaluate, mini.named(**answers, **made))
    assert done.exit_code == 0, done.output
    numbers = json.loads((home / "evaluate.json").read_text())
    assert numbers["eval/accuracy_greedy"] == pytest.approx(held_out.count("math") / 8)
    assert (numbers["eval/math/accuracy_greedy"], numbers["eval/code/accuracy_greedy"]) == (1.0, 0.0)
    assert numbers["eval/num_unscored"] == 0

    # Before any call: two rewards that say what is right for one prompt, and one that no training prompt asks for.
    mini.write_params(folder, {"evaluate": {"correct": ["math", "short"]}})
    others = {"scores": home / "again", "metrics": home / "again.json", "history": "data/history/again.json"}
    again = mini.named(**answers, **others)
    assert "'math' and 'short' are both asked for prompt_id=" in CliRunner().invoke(evaluate, again).output
    misspelt = {**shown["score"]["rewards"], "code": {"function": "code_tests", "where": {"domain": "coed"}}}
    mini.write_params(folder, {"score": {"rewards": misspelt}, "evaluate": shown["evaluate"]})
    done = run_score(home, tables[0], "other")
    assert "error: params.yaml: score.rewards.code.where.domain: 'coed': no training prompt has it" in done.output
    mini.write_params(folder, shown)

    # A round that has no code by chance is as good as any; a reward without `where` is asked for all of its rows.
    Path("data/rounds/r2").mkdir()
    write_completions(Path("data/rounds/r2/rollouts"), Path(tables[0]), wrong="none", only="math")
    done = run_score(Path("data/rounds/r2"), tables[0], "scores")
    assert done.exit_code == 0, done.output
    assert "code asked 0, slowest" in done.output
    mini.write_params(
        folder, {"score": {"rewards": {"code": {"function": "code_tests"}}}, "evaluate": {"correct": None}}
    )
    done = run_score(Path("data/rounds/r2"), tables[0], "scores2")
    assert done.exit_code == 1
    assert "the row has no tests" in done.output
    assert "say which prompts are its own (score.rewards.code.where)" in done.output


def test_a_reward_that_no_prompt_of_the_table_asks_for_needs_none_of_its_columns() -> None:
    """Maths and code in train, maths alone in eval: no sandbox, no column of tests."""
    rows, calls, _ = score(score_of(one=own(), code={"function": "code_tests", "where": {"mode": "python"}}))
    assert [row["code_status"] for row in rows] == ["abstain"] * 10
    assert len(calls) == 10


@needs_bwrap
def test_programs_without_columns_of_tests_are_refused_before_any_row() -> None:
    with pytest.raises(
        UserError, match=r"rewards.code.function: code_tests: the prompts table has no columns with tests"
    ):
        score(score_of(one=own(), code={"function": "code_tests", "where": {"mode": "code"}}))
    assert not Path("calls.txt").read_text()


def run_score(home: Path, prompts: str, out: str) -> Any:
    """The stage `score` of the round in `home`, with scores and metrics of the name `out`."""
    paths = {"rollouts": home / "rollouts", "prompts": prompts, "out": home / out}
    paths |= {"notes": home / f"{out}-notes", "metrics": home / f"{out}.json"}
    return CliRunner().invoke(score_stage, mini.named(home.name, **paths))
