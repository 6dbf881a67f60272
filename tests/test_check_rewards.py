"""Rewards that do not load for the prompts of a hub are refused before anything is sampled, in the words of `score`."""

from pathlib import Path
from typing import Any

import mini
import pytest
from click.testing import CliRunner
from test_where import write_completions

from gift.tables.prompts import prompts_table, write_prompts
from stages.check_rewards import main as check_rewards
from stages.evaluate import main as evaluate
from stages.score import main as score

TRAIN, EVAL, OUT = (Path("data", *name.split()) for name in ("prompts train.parquet", "prompts eval.parquet", "ok.txt"))
OWN = """
with open("imported.txt", "a") as file:
    file.write("x")

def own(prompts, completions, completion_ids, **columns):
    raise SystemExit("called")

def graded(prompts, completions, completion_ids, gold, **columns):
    raise SystemExit("called")
"""
FUNCTION = {"function": "rewards/own.py:own"}
PATTERN = {"function": "regex_match", "settings": {"pattern": "("}}
MODEL = {"function": "reward_model", "settings": {"model": "nobody/none"}}
JUDGE = {"function": "judge", "settings": {"model": "nobody", "rubric": "Is it short?"}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose prompts came from a hub, which the quick doctor has no look at."""
    folder = mini.make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    (folder / "rewards/own.py").write_text(OWN, encoding="utf-8")
    mini.write_params(folder, {"prepare": {"source": "hub:nobody/none", "num_train": None}})
    rewards(own=FUNCTION)
    prompts(TRAIN)
    prompts(EVAL)
    return folder


def rewards(correct: Any = None, **functions: Any) -> None:
    mini.write_params(Path(), {"score": {"rewards": functions}, "evaluate": {"correct": correct}})


def prompts(path: Path, **more: Any) -> None:
    """Four prompts of the domains math and code, with the columns `more`."""
    domains = ("math", "code", "math", "code")
    rows = [
        {"prompt_id": f"{path.stem}{n}", "prompt": "?", "domain": domain, "solution": "1", **more}
        for n, domain in enumerate(domains)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prompts(path, prompts_table([{**row, "answer": "1"} for row in rows], path), {})


def run(stage: Any, arguments: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(stage, arguments)
    return done.exit_code, done.output


def check() -> tuple[int, str]:
    return run(check_rewards, [str(TRAIN), str(EVAL), str(OUT)])


def test_rewards_are_loaded_once_and_not_called(folder: Path) -> None:
    rewards(own=FUNCTION, model=MODEL, judge=JUDGE)
    assert check() == (0, "check_rewards: loaded own, not loaded model, judge\n")
    assert OUT.read_bytes() == b"ok\n"
    assert Path("imported.txt").read_text() == "x"


def test_the_output_is_the_same_whatever_the_rewards() -> None:
    made = []
    for functions in ({"own": FUNCTION}, {"length": {"function": "length", "settings": {"max_tokens": 8}}}):
        rewards(**functions)
        assert check()[0] == 0
        made.append(OUT.read_bytes())
        OUT.unlink()
    assert made[0] == made[1]


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "rewards.other.function: 'rewards/broken.py:own': the file cannot be imported: ModuleNotFoundError": (
        "score",
        {"other": {"function": "rewards/broken.py:own"}},
    ),
    "rewards.own.function: 'rewards/own.py:owm': no such function": (
        "score",
        {"own": {"function": "rewards/own.py:owm"}},
    ),
    "rewards.own.function: graded: missing a required argument: 'gold'": (
        "score",
        {"own": {"function": "rewards/own.py:graded"}},
    ),
    "rewards.match.settings.column: the prompts table has no column 'gold'": (
        "score",
        {"match": {"function": "exact_match", "settings": {"column": "gold"}}},
    ),
    "rewards.match.settings.pattern: '(': is no regular expression": ("score", {"match": PATTERN}),
    "rewards.model.settings.modle": ("score", {"model": {**MODEL, "settings": {"modle": "nobody/none"}}}),
    "rewards.judge.settings.rubric": ("score", {"judge": {**JUDGE, "settings": {"model": "m", "rubric": 1}}}),
    "rewards.judge.settings.scale": (
        "score",
        {"judge": {**JUDGE, "settings": {**JUDGE["settings"], "scale": [10, 1]}}},
    ),
    "rewards.own.where.domain: 'maths': no training prompt has it": (
        "score",
        {"own": {**FUNCTION, "where": {"domain": "maths"}}},
    ),
    "rewards.own.where.domian: the prompts table has no such column": (
        "score",
        {"own": {**FUNCTION, "where": {"domian": "math"}}},
    ),
    "evaluate.correct: 'own' and 'two' are both asked for prompt_id=eval0": (
        "evaluate",
        {"own": FUNCTION, "two": FUNCTION, "correct": ["own", "two"]},
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_score_or_evaluate_would_refuse_is_refused_in_their_words(words: str) -> None:
    stage, functions = WRONG[words]
    Path("rewards/broken.py").write_text("import no_such_package\n", encoding="utf-8")
    rewards(**functions)
    refused_as_by(stage, f"error: params.yaml: {'' if words.startswith('evaluate') else 'score.'}{words}")


def test_columns_that_only_the_eval_prompts_lack_are_refused_too() -> None:
    rewards(answer={"function": "exact_match", "settings": {"column": "gold"}}, correct="answer")
    prompts(TRAIN, gold="1")
    refused_as_by("evaluate", "error: params.yaml: score.rewards.answer.")


def refused_as_by(stage: str, begin: str) -> None:
    """The check ends with one line, which `stage` ends with too, and leaves nothing behind."""
    before = mini.content(Path("data"))
    code, said = check()
    assert (code, said.count("\n"), said[: len(begin)]) == (1, 1, begin), said
    assert mini.content(Path("data")) == before
    home = Path("data/rounds/r1")
    table = {"score": TRAIN, "evaluate": EVAL}[stage]
    write_completions(home / "rollouts", table, wrong="none")
    if stage == "score":
        named = mini.named(
            rollouts=home / "rollouts", out=home / "scores", notes=home / "notes", metrics=home / "score.json"
        )
    else:
        made = {"scores": home / "answer_scores", "metrics": home / "e.json", "history": "data/history/r1.json"}
        named = mini.named(answers=home / "rollouts", **made)
    code, late = run({"score": score, "evaluate": evaluate}[stage], [*named, "--prompts", str(table)])
    where = " (eval prompts)" if stage == "evaluate" else ""
    assert (code, late.replace("\n", f"{where}\n")) == (1, said)
