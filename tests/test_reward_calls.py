"""How rewards are called: several rows a call, groups, limits, gates, processes of their own, verl's signature."""

import json
import weakref
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_score import METADATA, score_of, write_rollouts

from gift.doctor.whole import read_launch
from gift.project.errors import UserError
from gift.project.sections import check
from gift.rewards import names
from gift.scoring.loading import Loaded
from gift.scoring.metrics import score_metrics
from gift.scoring.plan import load_plan
from gift.scoring.pool import RewardPool
from gift.scoring.rows import Asked, PartRows
from gift.scoring.score import score_parts
from gift.scoring.scorer import total_rewards
from gift.scoring.settings import Reward, Score
from gift.scoring.worker import Outcome
from gift.tables.parquet import part_paths
from gift.tables.parts import read_part, read_table, write_part
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import check_scores, everything

# Every call leaves a line in calls.txt: its function's rows as prompt_id/place in the call.
REWARDS = """
import json, os, resource, time

def note(**what):
    with open("calls.txt", "a") as file:
        file.write(json.dumps(what) + "\\n")

def several(prompts, completions, completion_ids, mode, prompt_id, **columns):
    note(rows=prompt_id)
    if "raise" in mode:
        raise ValueError("one of them")
    if "hang" in mode:
        time.sleep(600)
    if "die" in mode:
        os._exit(3)
    items = {"late": TimeoutError("the judge is asleep"), "bad": ValueError("no\\n gold"), "empty": KeyError(),
             "abstain": None, "nan": float("nan"), "text": "1"}
    values = [items.get(each, len(mode)) for each in mode]
    return values[:-1] if "short" in mode else values

def about(prompts, completions, completion_ids, **columns):
    kinds = ("RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_CORE")
    limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in kinds}
    note(pid=os.getpid(), num=len(prompts), endpoint=os.environ.get("GIFT_JUDGE_ENDPOINT"), **limits)
    return [1.0] * len(prompts)

def shared(prompts, completions, completion_ids, **columns):
    return about(prompts, completions, completion_ids)

LEAKED = []

def leaking(prompts, completions, completion_ids, **columns):
    LEAKED.append(bytearray(2**26))
    return [1.0]

def slow(prompts, completions, completion_ids, **columns):
    time.sleep(0.6)
    return [1.0]

def given(prompts, completions, completion_ids, text, generation_prompt, **columns):
    return [float(said == wanted and before == "<think>\\n")
            for said, wanted, before in zip(completions, text, generation_prompt, strict=True)]

def compute_score(data_source, solution_str, ground_truth, extra_info, bonus=0.0):
    note(verl=[data_source, solution_str, ground_truth, extra_info])
    if ground_truth == "raise":
        raise KeyError("missing")
    if ground_truth == "late":
        raise TimeoutError("late")
    score = {"dict": {"score": 0.5, "pred": "x"}, "no score": {"pred": "x"}, "true": True, "null": None}
    return score.get(ground_truth, float(solution_str == ground_truth) + bonus)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gift.scoring.looks.NUM_ROWS", 0)  # calls are counted here, without a second look
    monkeypatch.delenv("GIFT_JUDGE_ENDPOINT", raising=False)
    Path("rewards").mkdir()
    Path("rewards/mine.py").write_text(REWARDS)
    return tmp_path


def reward(function: str, **keys: Any) -> dict[str, Any]:
    return {"function": f"rewards/mine.py:{function}", **keys}


def calls() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("calls.txt").read_text().splitlines()]


def scored(score: Score, rollouts: Path, prompts: pa.Table, workers: int = 2, **more: Any) -> list[dict[str, Any]]:
    score_parts(Path("scores"), rollouts, prompts, score, workers, METADATA, "score@r1", **more)
    return read_table(Path("scores"), everything(score.rewards), check_scores)[0].to_pylist()


def of_modes(modes: list[str], **keys: Any) -> list[dict[str, Any]]:
    """Two samples of a prompt for each mode, two prompts a part."""
    return scored(score_of(mine=reward("several", **keys)), *write_rollouts(modes))


def statuses(rows: list[dict[str, Any]]) -> list[str]:
    return [row["mine_status"] for row in rows]


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(3, [3, 1, 3, 1, 3, 1]), (4, [4, 4, 4]), (99, [4, 4, 4]), ("group", [2] * 6), (None, [1] * 12)],
)
def test_a_call_takes_rows_of_a_part_in_order(batch: Any, sizes: list[int]) -> None:
    rows = of_modes(["fine"] * 6, batch=batch)
    seen = sorted((call["rows"] for call in calls()), key=lambda ids: ids[0])
    assert sorted(len(ids) for ids in seen) == sorted(sizes)
    assert [prompt_id for ids in seen for prompt_id in ids] == [row["prompt_id"] for row in rows]
    if batch == 3:
        assert [row["mine"] for row in rows] == [3.0, 3.0, 3.0, 1.0] * 3  # the number of rows of its call
    if batch == "group":
        assert all(len(set(ids)) == 1 for ids in seen)


@pytest.mark.slow
def test_several_rows_a_call_give_the_same_bytes_with_any_number_of_workers() -> None:
    rollouts, prompts = write_rollouts(["fine", "raise", "abstain", "fine", "die", "fine", "bad", "fine"])
    score = score_of(
        mine=reward("several", batch=3), grouped=reward("several", batch="group"), single=reward("several")
    )
    tables = []
    for workers in (1, 2, 3):
        folder = Path(f"with{workers}")
        score_parts(folder, rollouts, prompts, score, workers, METADATA, "score@r1")
        tables.append([path.read_bytes() for path in part_paths(folder)])
    assert tables == [tables[0]] * 3


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("raise", "error", "ValueError: one of them"),
        ("hang", "timeout", "no result after 1 s"),
        ("die", "error", "the worker process died (exit code 3)"),
        ("short", "invalid", "returned [] for one completion; must be a list of one number or None"),
    ],
)
def test_a_call_that_fails_is_tried_again_row_by_row_but_a_group_fails_whole(
    fault: str, status: str, message: str
) -> None:
    rows = of_modes(["fine", fault], batch=4)
    assert statuses(rows) == ["ok", "ok", status, status]
    assert {row["mine_message"] for row in rows} == {None, message}
    assert [row["mine"] for row in rows] == [1.0, 1.0, None, None]
    for path in part_paths(Path("scores")):
        path.unlink()
    Path("calls.txt").unlink()
    rows = of_modes(["fine", fault], batch="group")
    assert statuses(rows) == ["ok", "ok", status, status]
    assert {len(call["rows"]) for call in calls()} == {2}
    if fault == "short":
        assert rows[2]["mine_message"].startswith("returned [2] for 2 completions; must be a list of one number or")


def test_an_exception_among_the_items_is_its_rows_own_failure() -> None:
    rows = of_modes(["late", "bad", "empty", "abstain", "nan", "text"], batch=4)
    expected = [
        ("timeout", "the judge is asleep"),
        ("error", "no gold"),
        ("error", "KeyError"),
        ("abstain", None),
        ("invalid", "returned nan; must be finite, or None to abstain"),
        ("invalid", "returned the text '1'; must be a number or None"),
    ]
    assert [(row["mine_status"], row["mine_message"]) for row in rows[::2]] == expected
    assert len(calls()) == 3  # none was tried again


SYNTAX = """
import asyncio

async def later(completions, mode, **columns):
    await asyncio.sleep(0)
    return [float(len(each)) for each in mode]

async def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(0)
    return {"score": float(ground_truth)}

def a_set(completions, **columns):
    return {float(number) for number in range(len(completions))}

class Later:
    async def __call__(self, prompts, completions, completion_ids, **columns):
        await asyncio.sleep(0)
        return [0.25] * len(completions)

instance = Later()
wrapped = lambda prompts, completions, completion_ids, **columns: instance(prompts, completions, completion_ids)
"""
ARRAYS = """
import numpy as np, pandas as pd, torch

KINDS = {
    "column": lambda: np.array([[0.5]]), "tensor": lambda: torch.tensor([[0.5]]), "number": lambda: np.float32(0.5),
    "frame": lambda: pd.DataFrame([[0.5]]), "items": lambda: [torch.tensor([0.5])], "scalar": lambda: torch.tensor(0.5),
    "row": lambda: np.array([0.5]), "row tensor": lambda: torch.tensor([0.5]), "series": lambda: pd.Series([0.5]),
    "numbers": lambda: [torch.tensor(0.5)], "numpy": lambda: [np.float32(0.5)],
}

def arrays(prompts, completions, completion_ids, mode, **columns):
    return KINDS[mode[0]]()
"""
RULE = "must be a list of one number or None"
SHAPES = {
    "column": f"returned an array of shape (1, 1); {RULE}",
    "tensor": f"returned an array of shape (1, 1); {RULE}",
    "frame": f"returned an array of shape (1, 1); {RULE}",
    "number": f"returned an array of shape (); {RULE}",
    "scalar": f"returned an array of shape (); {RULE}",
    "items": "returned an array of shape (1,); must be a number or None",
    **dict.fromkeys(("row", "row tensor", "series", "numbers", "numpy")),
}


def test_an_array_has_one_number_for_each_completion() -> None:
    Path("rewards/arrays.py").write_text(ARRAYS)
    rollouts, prompts = write_rollouts(list(SHAPES))
    rows = scored(score_of(mine={"function": "rewards/arrays.py:arrays", "timeout_seconds": 30.0}), rollouts, prompts)
    found = {mode: (row["mine"], row["mine_message"]) for mode, row in zip(SHAPES, rows[::2], strict=True)}
    assert found == {mode: (None if message else 0.5, message) for mode, message in SHAPES.items()}


def test_async_functions_are_awaited_and_a_set_has_no_order() -> None:
    Path("rewards").mkdir(exist_ok=True)
    Path("rewards/syntax.py").write_text(SYNTAX)
    arguments = {
        "prompts": ["p", "q"], "completions": ["c", "d"], "completion_ids": [[1], [2]], "prompt_id": ["a", "b"],
        "mode": ["xy", "z"], "data_source": ["s", "s"], "ground_truth": ["3", "4"], "generation_prompt": ["", ""],
        "function": ["f", "g"],
    }  # fmt: skip
    rewards = [
        Loaded("later", "rewards/syntax.py", "later", {}, list(arguments), batch=2),
        Loaded("verl", "rewards/syntax.py", "compute_score", {}, list(arguments), signature="verl", batch=2),
        Loaded("instance", "rewards/syntax.py", "instance", {}, list(arguments), batch=2),
        Loaded("wrapped", "rewards/syntax.py", "wrapped", {}, list(arguments), batch=2),
        Loaded("set", "rewards/syntax.py", "a_set", {}, list(arguments), batch="group"),
    ]
    with RewardPool(rewards, 1, 20.0) as pool:
        calls = [(one.name, [0, 1]) for one in rewards]
        found = {(name, row): each for name, row, each in pool.run(calls, lambda rows: arguments)}
    assert [found["later", row].value for row in (0, 1)] == [2.0, 1.0]
    assert [found["verl", row].value for row in (0, 1)] == [3.0, 4.0]
    assert [found[name, row].value for name in ("instance", "wrapped") for row in (0, 1)] == [0.25] * 4
    assert {found["set", row].status for row in (0, 1)} == {"invalid"}


def test_a_function_that_is_alone_has_one_process_no_memory_limit_and_its_own_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = names.Defaults(batch=3, timeout_seconds=30.0, alone=True)
    monkeypatch.setitem(names.DEFAULTS, "rewards/mine.py:about", default)
    score = score_of(mine=reward("about"), other=reward("shared"))
    scored(score, *write_rollouts(["fine"] * 6), judge_endpoint="http://127.0.0.1:1/v1")
    alone = [call for call in calls() if call["RLIMIT_DATA"] == -1]
    others = [call for call in calls() if call["RLIMIT_DATA"] != -1]
    assert len({call["pid"] for call in alone}) == 1
    assert sorted(call["num"] for call in alone) == [1, 1, 1, 3, 3, 3]
    assert {call["num"] for call in others} == {1}
    assert {(call["RLIMIT_DATA"], call["RLIMIT_FSIZE"]) for call in others} == {(4 * 2**30, 2**30)}
    assert {call["RLIMIT_CORE"] for call in calls()} == {0}
    assert {call["endpoint"] for call in calls()} == {"http://127.0.0.1:1/v1"}
    assert not {call["pid"] for call in alone} & {call["pid"] for call in others}


def test_the_judge_and_the_reward_model_have_their_defaults() -> None:
    assert {name: each.batch for name, each in names.DEFAULTS.items() if each.alone} == {
        "reward_model": 16,
        "judge": 64,
    }
    assert {name: each.timeout_seconds for name, each in names.DEFAULTS.items()} == {
        "reward_model": 600.0,
        "judge": 3600.0,  # four times the requests of a call one after another, each with all its retries
        "code_tests": 60.0,
    }


def test_a_judge_of_pairs_is_asked_for_whole_groups() -> None:
    """In calls of some rows a group would be cut, and its completions compared with too few others."""
    prompts = pa.table({"prompt_id": ["a"], "prompt": ["p"], "answer": ["1"]})
    pairs = {"model": "m", "mode": "pairwise"}

    def plan(**rewards: Any) -> None:
        load_plan(score_of(**rewards), Asked(score_of(**rewards), prompts))

    for batch in (None, 8):
        with pytest.raises(UserError, match=r"score\.rewards\.mine\.batch: .* must be group"):
            plan(mine={"function": "judge", "settings": pairs, "batch": batch})
    plan(mine={"function": "judge", "settings": pairs, "batch": "group"})
    plan(mine={"function": "judge", "settings": {**pairs, "against_column": "answer"}})


def test_a_reward_has_its_own_time_limit() -> None:
    score = score_of(mine=reward("slow", timeout_seconds=0.3), other=reward("slow"))
    rows = scored(score, *write_rollouts(["fine"]))
    assert [(row["mine_message"], row["other"]) for row in rows] == [("no result after 0.3 s", 1.0)] * 2


def test_memory_that_earlier_rows_left_behind_costs_no_later_row() -> None:
    """Each call keeps 64 MiB; a worker has 512: it is replaced before a row fails for want of memory."""
    score = score_of(mine=reward("leaking"), timeout_seconds=10.0).model_copy(update={"memory_gib": 0.5})
    rows = scored(score, *write_rollouts(["fine"] * 12, groups_per_part=12), workers=1)
    assert statuses(rows) == ["ok"] * 24


WEIRD = [
    "\x00 nul \x01\x07\x1b[31m",
    "line\u2028sep\r\n\x85",
    "שלום עולם \u202eRTL\u202c العربية",
    "한국어 日本語 ไทย 𝔘𝔫𝔦 👩‍👩‍👧 e\u0301\ufffe\uffff",
    "x" * 2**20,
    "",
]


def test_any_text_passes_unharmed_with_the_generation_prompt() -> None:
    ids = [f"p{number}" for number in range(len(WEIRD))]
    prompts = pa.table({"prompt_id": ids, "prompt": ["ask"] * len(ids), "text": WEIRD})
    row = {"prompt_ids": [5], "completion_ids": [7], "rollout_logprobs": [-1.0], "finish_reason": "stop", "seed": 0}
    rows = [{"prompt_id": p, "sample": 0, "completion": text, **row} for p, text in zip(ids, WEIRD, strict=True)]
    table = pa.Table.from_pylist(rows, schema=ROLLOUTS)
    metadata = {"policy": "p", "generation_prompt": "<think>\n"}
    write_part(Path("rollouts"), 0, table, ROLLOUTS, check_rollouts, metadata)
    found = scored(score_of(mine=reward("given"), several=reward("given", batch=4)), Path("rollouts"), prompts)
    assert [(each["mine"], each["several"]) for each in found] == [(1.0, 1.0)] * len(WEIRD)


VERL = ["yes", "no", "dict", "no score", "true", "null", "raise", "late", None]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("column", ["reward_model", "ground_truth"])
def test_verls_signature(column: str, batch: int) -> None:
    rollouts, prompts = write_rollouts(VERL)  # type: ignore[arg-type]
    truths: list[Any] = VERL if column == "ground_truth" else [{"ground_truth": each, "style": "rule"} for each in VERL]
    prompts = prompts.append_column("data_source", pa.array([f"d{n}" for n in range(len(VERL))]))
    prompts = prompts.append_column(column, pa.array(truths))
    if column == "reward_model":
        prompts = prompts.append_column("extra_info", pa.array([{"index": n} for n in range(len(VERL))]))
    score = score_of(mine=reward("compute_score", signature="verl", batch=batch, settings={"bonus": 2.0}))
    rows = scored(score, rollouts, prompts)
    expected: list[Any] = [
        ("ok", 3.0),
        ("ok", 2.0),
        ("ok", 0.5),
        ("invalid", "returned {'pred': 'x'}; must be a number or None"),
        ("ok", 1.0),
        ("abstain", None),
        ("error", "KeyError: 'missing'"),
        ("timeout", "TimeoutError: late"),
        ("error", "the ground truth is null"),
    ]
    for row, (status, what) in zip(rows[::2], expected, strict=True):
        assert row["mine_status"] == status
        assert str(what) in str(row["mine"] if status == "ok" else row["mine_message"])
    extra = {"index": 0} if column == "reward_model" else {}
    assert ["d0", "yes", "yes", extra] in [call["verl"] for call in calls()]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, ["signature: verl", "no column data_source", "it has prompt_id, mode", "prepare.columns"]),
        ({"data_source": ["a"]}, ["no column reward_model.ground_truth or ground_truth"]),
        ({"data_source": ["a"], "reward_model": [{"style": "x"}]}, ["no column reward_model.ground_truth or"]),
    ],
)
def test_a_column_that_verl_lacks_is_one_line_before_any_row(columns: dict[str, Any], words: list[str]) -> None:
    rollouts, prompts = write_rollouts(["fine"])
    for name, values in columns.items():
        prompts = prompts.append_column(name, pa.array(values))
    with pytest.raises(UserError) as caught:
        scored(score_of(mine=reward("compute_score", signature="verl")), rollouts, prompts)
    assert [word for word in words if word not in caught.value.message] == []
    assert "\n" not in caught.value.message
    assert not Path("calls.txt").exists()


def test_one_of_ours_has_no_verl_signature_and_verls_settings_are_checked() -> None:
    rollouts, prompts = write_rollouts(["fine"])
    prompts = prompts.append_column("data_source", pa.array(["a"])).append_column("ground_truth", pa.array(["b"]))
    with pytest.raises(UserError, match="gsm8k_answer is one of ours and has TRL's signature"):
        scored(score_of(mine={"function": "gsm8k_answer", "signature": "verl"}), rollouts, prompts)
    with pytest.raises(UserError, match=r"settings.bonsu: compute_score has no such setting; it has bonus"):
        scored(score_of(mine=reward("compute_score", signature="verl", settings={"bonsu": 1})), rollouts, prompts)


@pytest.mark.parametrize(
    ("gate", "gated", "total"),
    [
        (Outcome(1.0, "ok", None), Outcome(0.5, "ok", None), 2 * 1.0 + 3 * 0.5),
        (Outcome(0.0, "ok", None), Outcome(0.5, "ok", None), 0.0),
        (Outcome(0.5, "ok", None), Outcome(0.5, "ok", None), 1.0),
        (Outcome(None, "abstain", None), Outcome(0.5, "ok", None), None),
        (Outcome(None, "timeout", "x"), Outcome(0.5, "ok", None), None),
        (Outcome(0.0, "ok", None), Outcome(None, "error", "x"), None),
        (Outcome(1.0, "ok", None), Outcome(None, "abstain", None), 2.0),
    ],
)
def test_a_gated_reward_counts_where_its_gate_is_one(gate: Outcome, gated: Outcome, total: float | None) -> None:
    rewards = {"bonus": Reward(function="b", weight=3.0, only_if="right"), "right": Reward(function="a", weight=2.0)}
    assert total_rewards(rewards, {"bonus": [gated], "right": [gate]}) == [total]


def test_the_ledger_closes_where_a_gate_abstains() -> None:
    components = {"right": Reward(function="a"), "bonus": Reward(function="b", only_if="right")}
    columns: dict[str, Any] = {"prompt_id": ["p"] * 4, "sample": range(4), "reward": [2.0, 0.0, None, None]}
    columns |= {"right": [1.0, 0.0, None, None], "right_status": ["ok", "ok", "abstain", "error"]}
    columns |= {"bonus": [1.0, 1.0, 1.0, 1.0], "bonus_status": ["ok"] * 4}
    rows = pa.table({"num_tokens": pa.array([1] * 4, pa.int32()), "finish_reason": ["stop"] * 4})
    numbers = score_metrics(rows, pa.table(columns), Score(rewards=components))
    assert [numbers[f"num_{name}"] for name in ("scored", "failed", "abstained")] == [2, 1, 1]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"batch": 0}, "rewards.a.batch: 0: must be a number of completions (1 or more), group, or null"),
        ({"batch": "groups"}, "rewards.a.batch: 'groups': must be a number of completions"),
        ({"batch": True}, "rewards.a.batch: True: must be a number"),
        ({"batch": 1.5}, "rewards.a.batch: 1.5: must be a number"),
        ({"signature": "TRL"}, "rewards.a.signature: 'TRL': must be 'trl' or 'verl'"),
        ({"timeout_seconds": 0}, "rewards.a.timeout_seconds: 0: must be greater than 0"),
        ({"weight": 1e16}, "rewards.a.weight: 1e+16: must be less than or equal to 1000000000000000"),
        ({"only_if": "a"}, "rewards.a.only_if: 'a': a reward cannot be its own gate"),
        ({"only_if": "c"}, "rewards.a.only_if: 'c': no such reward; known: a, b, gated"),
        ({"only_if": "gate"}, "rewards.a.only_if: 'gate': no such reward; did you mean 'gated'?"),
        ({"only_if": "gated"}, "rewards.a.only_if: 'gated': has a gate itself (b)"),
        ({"onlyif": "b"}, "rewards.a.onlyif: unknown key; did you mean 'only_if'?"),
    ],
)
def test_wrong_keys_are_one_clear_line(keys: dict[str, Any], line: str) -> None:
    rewards = {"a": {"function": "x", **keys}, "b": {"function": "x"}, "gated": {"function": "x", "only_if": "b"}}
    with pytest.raises(UserError) as caught:
        check(Score, {"rewards": rewards}, "params.yaml")
    assert line in caught.value.message
    assert caught.value.message.count("\n") == 0


def test_the_judges_endpoint_is_launchs() -> None:
    Path("launch.yaml").write_text("score: {judge_endpoint: 'http://127.0.0.1:8000/v1'}")
    assert read_launch().score.judge_endpoint == "http://127.0.0.1:8000/v1"
    Path("launch.yaml").unlink()
    assert read_launch().score.judge_endpoint is None


def test_workers_start_only_for_what_there_is_to_do() -> None:
    """A function that nobody calls is not loaded; `load` loads them all."""
    Path("rewards/broken.py").write_text("1 / 0\n")
    names = ["prompts", "completions", "completion_ids", "mode", "prompt_id"]
    mine = Loaded("mine", "rewards/mine.py", "several", {}, names)
    broken = Loaded("broken", "rewards/broken.py", "f", {}, names, alone=True)
    row = {name: ["x"] for name in names}
    with RewardPool([mine, broken], 1, 10.0) as pool:
        found = [(name, number, each.value) for name, number, each in pool.run([("mine", [5])], lambda rows: row)]
        assert found == [("mine", 5, 1.0)]
        with pytest.raises(
            UserError, match=r"broken.function: 'rewards/broken.py:f': the file cannot be imported: Zero"
        ):
            pool.load()
    with RewardPool([mine], 2, 10.0) as pool:
        pool.load()
        assert not list(pool.run([], lambda rows: row))


def test_one_part_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, prompts = write_rollouts(["fine"] * 8)
    alive: list[list[bool]] = []
    tables: list[Any] = []

    def reading(*args: Any) -> Any:
        alive.append([table() is not None for table in tables])
        table, metadata = read_part(*args)
        tables.append(weakref.ref(table))
        return table, metadata

    monkeypatch.setattr("gift.tables.parts.read_part", reading)
    monkeypatch.setattr(
        "gift.scoring.score.PartRows", lambda *args: tables.append(weakref.ref(made := PartRows(*args))) or made
    )
    score = score_of(mine=reward("several"), other=reward("several", batch=3))
    score_parts(Path("scores"), rollouts, prompts, score, 2, METADATA, "score@r1")
    assert [len(each) for each in alive] == [0, 2, 4, 6]  # each is read once, and has its rows
    assert not any(any(each) for each in alive)
