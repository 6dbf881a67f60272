"""Scoring: a reward that raises, hangs, lies or dies costs its own row, which is null and never 0."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import mini
import pyarrow as pa
import pytest
from click.testing import CliRunner

from gift.project.errors import UserError
from gift.project.params import settings_of
from gift.project.work import tree_digest
from gift.scoring.loading import one_line
from gift.scoring.metrics import score_metrics
from gift.scoring.score import score_parts
from gift.scoring.scorer import total_rewards
from gift.scoring.settings import Reward, Score
from gift.scoring.worker import Outcome
from gift.tables.parquet import part_paths
from gift.tables.parts import read_table, write_part
from gift.tables.prompts import write_prompts
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import check_scores, everything, read_notes, read_scores, scores_schema
from stages import score as stage

ROOT = Path(__file__).parents[1]
MINE = "rewards/mine.py:reward"
METADATA = {"artifact": "scores", "policy": "p", "settings": {}}

# What the function does depends on the row's column `mode`; every call leaves a line in calls.txt.
USER_REWARD = """
import os, re, signal, subprocess, sys, time

class Silent(Exception):
    def __str__(self):
        raise RuntimeError

def reward(prompts, completions, completion_ids, mode, scale=1.0, **columns):
    mode = mode[0]
    with open("calls.txt", "a") as file:
        file.write(columns["prompt_id"][0] + "\\n")
    if mode == "raise":
        raise ValueError(f"cannot judge {object()}\\nsecond line")
    if mode == "silent":
        raise Silent
    if mode == "quit":
        sys.exit(0)
    if mode == "hang":
        time.sleep(600)
    if mode == "regex":  # holds the interpreter: no Python signal handler would run
        re.match(r"(a+)+$", "a" * 60 + "b")
    if mode == "exit":
        os._exit(0)
    if mode == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open("child.txt", "w") as file:
            file.write(str(child.pid))
        child.wait()
    returns = {
        "two": [1.0, 2.0], "none": [], "number": 1.0, "text": ["1.0"], "nan": [float("nan")], "inf": [float("inf")],
        "dict": {"a": 1}, "null": None, "list": [[1.0]], "abstain": [None], "true": [True], "int": (1,), "zero": [0.0],
        "huge": [10**400], "set": [sorted({"a", "b", "c"})[0] == "a"],
    }
    return returns.get(mode, [scale * len(completion_ids[0])])

def seen(prompts, completions, completion_ids, **columns):
    assert [len(values) for values in (prompts, completions, completion_ids, *columns.values())] == [1] * 6
    assert set(columns) == {"prompt_id", "mode", "generation_prompt"} and columns["generation_prompt"] == [""]
    return [float(prompts == ["ask"] and completions == ["yes"])]

def seen_chat(prompts, completions, completion_ids, **columns):
    asked, answered = [{"role": "user", "content": "ask"}], [{"role": "assistant", "content": "yes"}]
    return [float(prompts == [asked] and completions == [answered])]

def hash_order(prompts, completions, completion_ids, **columns):
    return [float(hash("a") % 1000003)]
"""

EXPECTED = {
    "raise": ("error", "ValueError: cannot judge <object object at 0x...> second line"),
    "silent": ("error", "Silent"),
    "quit": ("error", "SystemExit: 0"),
    "exit": ("error", "the worker process died (exit code 0)"),
    "segfault": ("error", "the worker process died (SIGSEGV)"),
    "hang": ("timeout", "no result after 1 s"),
    "regex": ("timeout", "no result after 1 s"),
    "two": ("invalid", "returned [1.0, 2.0] for one completion; must be a list of one number or None"),
    "none": ("invalid", "returned [] for one completion; must be a list of one number or None"),
    "number": (
        "invalid",
        "returned 1.0; must be a list of one number or None (TypeError: 'float' object is not iterable)",
    ),
    "text": ("invalid", "returned the text '1.0'; must be a number or None"),
    "nan": ("invalid", "returned nan; must be finite, or None to abstain"),
    "inf": ("invalid", "returned inf; must be finite, or None to abstain"),
    "dict": ("invalid", "returned {'a': 1} for one completion; must be a list of one number or None"),
    "null": ("invalid", None),
    "list": ("invalid", None),
    "huge": ("invalid", None),
    "abstain": ("abstain", None),
    "true": ("ok", None),
    "int": ("ok", None),
    "zero": ("ok", None),
    "fine": ("ok", None),
}
VALUES = {"true": 1.0, "int": 1.0, "zero": 0.0, "fine": 2.0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gift.scoring.looks.NUM_ROWS", 0)  # calls are counted here, without a second look
    Path("rewards").mkdir()
    Path("rewards/mine.py").write_text(USER_REWARD)
    return tmp_path


def score_of(max_failed_share: float = 1.0, timeout_seconds: float = 1.0, **rewards: Any) -> Score:
    rewards = rewards or {"mine": {"function": "rewards/mine.py:reward"}}
    made = {name: Reward(**reward) for name, reward in rewards.items()}
    return Score(rewards=made, timeout_seconds=timeout_seconds, max_failed_share=max_failed_share)


def write_rollouts(modes: list[str], groups_per_part: int = 2, group_size: int = 2) -> tuple[Path, pa.Table]:
    """Rollouts of two samples a prompt and the prompts table, whose column `mode` says what the reward does."""
    ids = [f"p{number:03d}" for number in range(len(modes))]
    prompts = pa.table({"prompt_id": ids, "prompt": ["ask"] * len(ids), "mode": modes})
    for index, cut in enumerate(range(0, len(ids), groups_per_part)):
        rows = [
            {
                "prompt_id": prompt_id,
                "sample": sample,
                "prompt_ids": [5],
                "completion_ids": [7, 8],
                "completion": "yes",
                "rollout_logprobs": [-1.0, -2.0],
                "finish_reason": "length" if sample else "stop",
                "seed": 0,
            }
            for prompt_id in ids[cut : cut + groups_per_part]
            for sample in range(group_size)
        ]
        table = pa.Table.from_pylist(rows, schema=ROLLOUTS)
        write_part(Path("rollouts"), index, table, ROLLOUTS, check_rollouts, {"policy": "p"})
    return Path("rollouts"), prompts


def scored(modes: list[str], score: Score, workers: int = 2, folder: str = "scores") -> list[dict[str, Any]]:
    rollouts, prompts = write_rollouts(modes)
    score_parts(Path(folder), rollouts, prompts, score, workers, METADATA, "score@r1")
    return read_table(Path(folder), everything(score.rewards), check_scores)[0].to_pylist()


def refusal(modes: list[str], score: Score, folder: str = "scores") -> str:
    with pytest.raises(UserError) as caught:
        scored(modes, score, folder=folder)
    return str(caught.value.message)


def test_every_fault_has_its_status_and_costs_its_own_rows() -> None:
    modes = [*EXPECTED, "fine", "fine"]
    start = time.monotonic()
    rows = scored(modes, score_of())
    # Two rows of two modes hang for 1 s each; two workers; the rest is the start of a new worker after each death.
    assert time.monotonic() - start < 12
    for mode, row in zip([mode for mode in modes for _ in range(2)], rows, strict=True):
        status, message = EXPECTED[mode]
        assert (mode, row["mine_status"], row["mine"]) == (mode, status, VALUES.get(mode))
        assert row["reward"] == VALUES.get(mode)
        if status == "invalid" and message is None:
            assert row["mine_message"].startswith("returned ")
        else:
            assert row["mine_message"] == message


def test_tables_are_the_same_bytes_whatever_the_number_of_workers() -> None:
    modes = ["raise", "segfault", "hang", "nan", "abstain"] + ["fine"] * 15
    score = score_of(
        mine={"function": "rewards/mine.py:reward", "weight": 0.5}, order={"function": "rewards/mine.py:hash_order"}
    )
    for workers, folder in ((1, "one"), (2, "two"), (3, "three")):
        scored(modes, score, workers, folder)
    one, *others = ([path.read_bytes() for path in part_paths(Path(name))] for name in ("one", "two", "three"))
    assert len(one) == 10
    assert others == [one, one]


def test_a_hang_does_not_cost_the_other_function_of_its_row() -> None:
    score = score_of(mine={"function": "rewards/mine.py:reward"}, seen={"function": "rewards/mine.py:seen"})
    rows = scored(["fine", "hang"], score)
    assert [row["seen"] for row in rows] == [1.0] * 4
    assert [row["mine"] for row in rows] == [2.0, 2.0, None, None]
    assert [row["reward"] for row in rows] == [3.0, 3.0, None, None]


def test_what_a_killed_reward_started_is_killed_too() -> None:
    rows = scored(["child"], score_of())
    assert [row["mine_status"] for row in rows] == ["timeout"] * 2
    pid = int(Path("child.txt").read_text())
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return  # dead; nobody has asked for its exit code
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child of the killed reward lived on")


def test_a_chat_gets_messages_as_in_trl() -> None:
    rollouts, prompts = write_rollouts(["fine"])
    chat = prompts.drop_columns("prompt").append_column("messages", pa.array([[{"role": "user", "content": "ask"}]]))
    score = score_of(seen={"function": "rewards/mine.py:seen_chat"})
    score_parts(Path("scores"), rollouts, chat, score, 1, METADATA, "score@r1")
    table, _ = read_table(Path("scores"), everything(score.rewards), check_scores)
    assert table["seen"].to_pylist() == [1.0, 1.0]


def outcome(value: float | None, status: str = "ok") -> Outcome:
    return Outcome(value, status, None)


@pytest.mark.parametrize(
    ("first", "second", "total"),
    [
        (outcome(1.0), outcome(0.5), 2.0 * 1.0 - 3.0 * 0.5),
        (outcome(1.0), outcome(None, "abstain"), 2.0),
        (outcome(0.0), outcome(None, "abstain"), 0.0),
        (outcome(None, "abstain"), outcome(None, "abstain"), None),
        (outcome(1.0), outcome(None, "timeout"), None),
        (outcome(None, "error"), outcome(0.5), None),
        (outcome(None, "invalid"), outcome(None, "abstain"), None),
    ],
)
def test_the_total_is_weighted_and_a_failure_makes_it_null(
    first: Outcome, second: Outcome, total: float | None
) -> None:
    rewards = {"a": Reward(function="a", weight=2.0), "b": Reward(function="b", weight=-3.0)}
    assert total_rewards(rewards, {"b": [second], "a": [first]}) == [total]


def test_the_stage_stops_once_too_many_rows_failed_and_says_where() -> None:
    score = score_of(max_failed_share=0.1)
    modes = ["fine"] * 8 + ["raise"] + ["fine"]  # 2 of 20 completions: exactly the share that is allowed
    assert [row["reward"] for row in scored(modes, score)].count(None) == 2
    message = refusal(["fine", "fine", "raise", "nan", *["fine"] * 16], score_of(max_failed_share=0.05), "others")
    assert "score.rewards.mine (rewards/mine.py:reward) failed for 3 of 40 completions" in message
    assert "score.max_failed_share allows 0.05" in message
    assert "prompt_id=p002, sample=0: error: ValueError: cannot judge" in message
    assert "Nothing was published" in message
    assert "are in others" in message


def test_hopeless_rewards_stop_early_instead_of_waiting_for_every_row() -> None:
    start = time.monotonic()
    assert "failed for 1 of 100 completions" in refusal(["hang"] * 50, score_of(max_failed_share=0.0))
    assert time.monotonic() - start < 5


def test_failures_of_finished_parts_count() -> None:
    score = score_of(max_failed_share=0.1)
    scored(["raise"] * 1 + ["fine"] * 9, score)
    for path in part_paths(Path("scores"))[1:]:
        path.unlink()
    message = refusal(["raise"] * 1 + ["fine"] * 7 + ["nan"] * 2, score)
    assert "failed for 3 of 20 completions" in message


def test_finished_parts_are_not_scored_again() -> None:
    scored(["fine"] * 6, score_of(), folder="whole")
    scored(["fine"] * 6, score_of())
    paths = part_paths(Path("scores"))
    paths[1].unlink()
    Path("calls.txt").unlink()
    scored(["fine"] * 6, score_of())
    assert sorted(Path("calls.txt").read_text().split()) == ["p002", "p002", "p003", "p003"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in part_paths(Path("whole"))]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"function": "gsm8k_anser"}, ["'gsm8k_anser'", "did you mean 'gsm8k_answer'?"]),
        ({"function": "zzz"}, ["'zzz'", "known: arithmetic_answer, arithmetic_format, ", ", text_format"]),
        ({"function": "arithmetic_answer"}, ["missing a required argument: 'answer'", "prompt_id, mode"]),
        ({"function": "text_format"}, ["mine.settings.pattern: missing"]),
        ({"function": "text_format", "settings": {"pattern": "("}}, ["mine.settings.pattern: '('", "no regular expr"]),
        ({"function": "exact_match"}, ["mine.settings.column: the prompts table has no column 'answer'", "mode"]),
        (
            {"function": "repetition", "settings": {"n": "4"}},
            ["mine.settings.n: '4': must be a valid integer", "take the quotes away"],
        ),
        (
            {"function": "regex_match", "settings": {"pattern": "x"}},
            ["mine.settings.mode: regex_match has a setting of that name", "prepare.columns"],
        ),
        ({"function": "text_format", "settings": {"patern": "x"}}, ["settings.patern", "it has pattern"]),
        ({"function": "rewards/mine.py:reward", "settings": {"mode": "x"}}, ["settings.mode", "it has scale"]),
        ({"function": "rewards/mine.py:rewrd"}, ["no such function", "reward, seen, seen_chat, hash_order"]),
        ({"function": "rewards/none.py:reward"}, ["no such file", "rewards/mine.py"]),
        ({"function": "mine.py:reward"}, ["folder rewards/", "move it there"]),
        ({"function": "rewards/../mine.py:reward"}, ["folder rewards/", "move it there"]),
        ({"function": "rewards/mine.txt:reward"}, ["must be rewards/<file>.py:<function>"]),
        ({"function": "rewards/mine.py:"}, ["must be rewards/<file>.py:<function>"]),
        ({"function": "rewards/broken.py:f"}, ["cannot be imported", "SyntaxError", "rewards/broken.py:2"]),
        ({"function": "rewards/needs.py:f"}, ["cannot be imported", "ModuleNotFoundError", "rewards/needs.py:3"]),
        ({"function": "rewards/deadly.py:f"}, ["died while loading (exit code 7)", "rewards/deadly.py"]),
    ],
)
def test_a_reward_that_cannot_be_called_is_one_line_before_any_row(reward: dict[str, Any], words: list[str]) -> None:
    Path("mine.py").write_text(USER_REWARD)
    Path("rewards/broken.py").write_text("\ndef f(:\n")
    Path("rewards/needs.py").write_text("\n\nimport no_such_module_here\n")
    Path("rewards/deadly.py").write_text("import os\nos._exit(7)\n")
    start = time.monotonic()
    message = refusal(["fine"], score_of(mine=reward))
    assert message.startswith("params.yaml: score.rewards")
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert time.monotonic() - start < 5
    assert not Path("calls.txt").exists()
    assert not Path("scores").exists()


def test_settings_and_helper_files_reach_the_function() -> None:
    Path("rewards/helper.py").write_text("BONUS = 40\n")
    text = "def f(prompts, completions, completion_ids, more, **_):\n    return [BONUS + more]\n"
    Path("rewards/user.py").write_text("from rewards.helper import BONUS\n" + text)
    rows = scored(["fine"], score_of(mine={"function": "rewards/user.py:f", "settings": {"more": 2}}))
    assert [row["reward"] for row in rows] == [42.0, 42.0]
    assert not list(Path("rewards").rglob("__pycache__")), "DVC watches this folder"


def test_rollouts_of_other_prompts_are_refused() -> None:
    rollouts, prompts = write_rollouts(["fine"] * 3)
    with pytest.raises(UserError, match=r"part-00001.parquet: row 0: prompt_id=p002 is not in the prompts table"):
        score_parts(Path("scores"), rollouts, prompts.slice(0, 2), score_of(), 2, METADATA, "score@r1")


def test_messages_are_one_short_storable_line() -> None:
    assert one_line("a  b\n c\td 0x7f00deadbeef") == "a b c d 0x..."
    assert one_line("x" * 400) == "x" * 297 + "..."
    assert one_line("\ud800") == "?"


def test_metrics_by_hand() -> None:
    ids = [f"p{number}" for number in range(4) for _ in range(3)]
    reward = [0.0, 1.0, 2.0, 5.0, 5.0, 5.0, 1.0, None, 3.0, None, None, 7.0]
    a = [0.0, 1.0, 2.0, 5.0, 5.0, 5.0, 1.0, 9.0, 3.0, None, None, 7.0]
    status_a = ["ok"] * 9 + ["abstain", "timeout", "ok"]
    b = [None] * 12
    status_b = ["abstain"] * 7 + ["error"] + ["abstain"] * 4
    columns: dict[str, Any] = {"prompt_id": ids, "sample": [0, 1, 2] * 4, "reward": reward}
    columns |= {"a": a, "a_status": status_a, "b": b, "b_status": status_b}
    scores = pa.table(columns, schema=scores_schema(["a", "b"]))
    check_scores(scores, Path("x"))
    lengths = [1, 2, 3] * 4
    rollouts = pa.table({"num_tokens": pa.array(lengths, pa.int32()), "finish_reason": ["stop", "stop", "length"] * 4})
    score = Score(rewards={"a": Reward(function="a"), "b": Reward(function="b")})
    numbers = score_metrics(rollouts, scores, score)
    assert numbers["reward"] == pytest.approx(29 / 9)
    assert numbers["reward_std"] == pytest.approx((1 + 0 + 2**0.5) / 3)  # n - 1; the last group has no spread
    assert numbers["frac_reward_zero_std"] == 0.5
    assert numbers["rewards/a/mean"] == pytest.approx(38 / 10)
    mean = 38 / 10
    assert numbers["rewards/a/std"] == pytest.approx(
        (sum((value - mean) ** 2 for value in a if value is not None) / 9) ** 0.5
    )
    assert (numbers["rewards/b/mean"], numbers["rewards/b/std"]) == (None, None)
    assert (numbers["completions/mean_length"], numbers["completions/max_length"]) == (2.0, 3)
    assert numbers["completions/clipped_ratio"] == pytest.approx(1 / 3)
    counts = [numbers[name] for name in ("num_rollouts", "num_scored", "num_failed", "num_abstained")]
    assert counts == [12, 9, 2, 1]
    assert (numbers["rewards/a/num_timeout"], numbers["rewards/b/num_error"]) == (1, 1)
    wrong = scores.set_column(2, scores.schema.field("reward"), pa.array([*reward[:9], 0.0, None, 7.0]))
    with pytest.raises(RuntimeError, match="10 scored"):  # a failed reward was written as 0
        score_metrics(rollouts, wrong, score)


def run_stage() -> Any:
    paths = {"rollouts": "rollouts", "prompts": "prompts.parquet", "out": "data/rounds/r1/scores"}
    paths |= {"notes": "data/rounds/r1/notes", "metrics": "metrics/score.json"}
    return CliRunner().invoke(stage.main, mini.named(**paths))


def write_project(score: Score, modes: list[str]) -> None:
    import ruamel.yaml

    content = ruamel.yaml.YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["score"] = score.model_dump(mode="json")
    content["evaluate"]["correct"] = next(iter(score.rewards))
    Path("params.yaml").write_text(json.dumps(content), encoding="utf-8")
    _, prompts = write_rollouts(modes)
    write_prompts(Path("prompts.parquet"), prompts, {"artifact": "prompts"})


def test_the_stage_publishes_scores_and_metrics_once() -> None:
    score = score_of(mine={"function": "rewards/mine.py:reward", "settings": {"scale": 0.5}})
    write_project(score, ["fine", "zero", "abstain"])
    result = run_stage()
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        "score@r1: num scored 4, num failed 0, num abstained 2, reward 0.5, reward std 0, slowest"
    )
    table, metadata = read_scores(Path("data/rounds/r1/scores"))
    assert table["reward"].to_pylist() == [1.0, 1.0, 0.0, 0.0, None, None]
    assert (metadata["artifact"], metadata["policy"]) == ("scores", "p")
    assert metadata["rollouts"] == tree_digest(Path("rollouts"))
    assert metadata["settings"] == {"rewards": {"mine": {"function": MINE, "settings": {"scale": 0.5}}}}
    _, noted = read_notes(Path("data/rounds/r1/notes"))
    assert (noted["artifact"], noted["settings"]) == ("notes", settings_of(score))
    assert json.loads(Path("metrics/score.json").read_text())["reward"] == 0.5
    assert not list(Path("data/.work").iterdir())
    again = run_stage()
    assert (again.exit_code, again.output.count("\n")) == (1, 1)
    assert "exists already" in again.output


def test_what_is_watched_and_how_long_calls_may_take_change_no_byte_of_the_scores() -> None:
    """So that no update is made again for them; what the watched reward said is in the notes."""
    plain = {"function": MINE, "settings": {"scale": 0.5}}
    gated = {"function": "length", "settings": {"max_tokens": 9}, "only_if": "mine"}
    watched = {"function": MINE, "weight": 0.0, "settings": {"scale": 2.0}}
    versions = {
        "alone": score_of(mine=plain, length=gated),
        "watched": score_of(timeout_seconds=2.0, watch=watched, mine=plain | {"timeout_seconds": 3.0}, length=gated),
    }
    modes = ["fine", "raise", "abstain", "zero"]
    made: dict[str, Any] = {}
    for name, score in versions.items():
        write_project(score, modes)
        assert run_stage().exit_code == 0
        made[name] = tree_digest(Path("data/rounds/r1/scores"))
        notes, numbers = read_notes(Path("data/rounds/r1/notes"))[0], json.loads(Path("metrics/score.json").read_text())
        shutil.rmtree("data/rounds")
        Path("metrics/score.json").unlink()
        shutil.rmtree("rollouts")
    assert made["watched"] == made["alone"]
    assert notes["watch"].to_pylist() == [4.0, 4.0, None, None, None, None, 0.0, 0.0]
    assert notes["watch_status"].to_pylist()[2] == "error"
    assert notes.column_names[4:] == ["watch_message", "mine_message", "length_message"]
    assert (numbers["num_failed"], numbers["rewards/watch/num_error"], numbers["rewards/watch/mean"]) == (2, 2, 2.0)


def test_a_watched_reward_that_fails_takes_no_total_away() -> None:
    score = score_of(watch={"function": MINE, "weight": 0.0}, right={"function": "rewards/mine.py:hash_order"})
    write_project(score, ["raise", "fine"])
    assert run_stage().exit_code == 0
    table, _ = read_scores(Path("data/rounds/r1/scores"))
    assert table.column_names == ["prompt_id", "sample", "reward", "right"]
    assert table["reward"].null_count == 0


@pytest.mark.parametrize(
    ("rewards", "counting"),
    [
        ({"a": {}, "b": {"weight": 0.0}}, ["a"]),
        ({"a": {"weight": -1.0}, "b": {"weight": 0.0, "in_update": True}}, ["a", "b"]),
        ({"a": {"only_if": "b"}, "b": {"weight": 0.0}, "c": {"weight": 0.0}}, ["a", "b"]),
        ({"a": {}, "b": {"weight": 0.0}, "c": {"weight": 0.0, "only_if": "b"}}, ["a"]),
    ],
)
def test_which_rewards_count(rewards: dict[str, Any], counting: list[str]) -> None:
    score = score_of(**{name: {"function": "length", **each} for name, each in rewards.items()})
    assert list(score.counting) == counting


def test_a_stage_that_fails_publishes_nothing_and_a_mended_reward_scores_afresh() -> None:
    write_project(score_of(max_failed_share=0.01), ["fine", "fine", "fine", "raise"])
    result = run_stage()
    assert result.exit_code == 1
    assert result.output.startswith("error: score.rewards.mine (rewards/mine.py:reward) failed for 1 of 8 completions")
    assert not Path("data/rounds").exists()
    assert not Path("metrics").exists()
    assert len(part_paths(Path("data/.work/score@r1/everything"))) == 1
    Path("calls.txt").unlink()
    Path("rewards/mine.py").write_text(USER_REWARD.replace('if mode == "raise"', 'if mode == "never"'))
    assert run_stage().exit_code == 0
    assert len(Path("calls.txt").read_text().split()) == 8
