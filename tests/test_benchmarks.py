"""The benchmarks without their clocks: commands start, shapes are as the README says, and so are its tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import (
    closed_form,
    growth,
    join,
    layouts,
    limit,
    memory,
    methods,
    overfit,
    overhead,
    real_model,
    real_tasks,
    reference,
    results,
    rewards,
    sampler,
    shapes,
    study,
    tables,
    timed_stage,
    update,
    workers,
)
from benchmarks.real_project.rewards import chats
from gift.compare.plan import changes_of, check_content, laid_over, read_plan
from gift.methods.names import MATCH
from gift.project.sections import check
from gift.training.settings import Update
from gift.training.steps import micro_batches

COMMANDS = (
    *(update, limit, layouts, reference, memory, methods, growth, join, sampler, rewards, overhead, real_model),
    *(closed_form, overfit, workers),
)


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_command_starts(module: Any) -> None:
    said = CliRunner().invoke(module.main, ["--help"])
    assert said.exit_code == 0, said.output
    assert "--quick" in said.output


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text, page) == text, "run `make bench ARGS=tables`"


def test_a_result_reaches_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        {"times": n, "completions": 16 * n, "completion_tokens": 100 * n, "reference": n, "update": s}
        for n, s in ((1, 3.0), (2, 7.0))
    ]
    result = {
        "benchmark": "growth",
        "machine": {"device": "cpu", "gpus": [], "cpu": "a processor", "cores": 2, "memory_gib": 8.0},
        "versions": {"torch": "2.13.0"},
        "settings": {"model": "hundred", "quick": False},
        "points": points,
    }
    (tmp_path / "growth-cpu.json").write_text(json.dumps(result))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    found = tables.filled(tables.README.read_text(encoding="utf-8"))
    assert "a processor, 2 cores, 8 GiB; torch 2.13.0." in found
    assert "| 2 | 32 | 200 | 2 | 7 | 9 | +12.5% |" in found  # 9 s for 200 tokens against 4 s for 100
    assert "within 10% of linear: 12.5%, missed." in found


def test_a_run_of_one_model_keeps_the_others_of_the_same_conditions(tmp_path: Path) -> None:
    def result(model: str, commit: str, load: float) -> dict[str, Any]:
        settings = {"repeats": 3, "load_before": load}
        return {"machine": {}, "versions": {"commit": commit}, "settings": settings, "models": {model: commit}}

    path = tmp_path / "update-cpu.json"
    path.write_text(json.dumps(result("wide", "a", 0.1)))
    assert results.merged(result("hundred", "a", 0.2), path)["models"] == {"wide": "a", "hundred": "a"}
    assert results.merged(result("hundred", "b", 0.1), path)["models"] == {"hundred": "b"}


def test_a_method_that_is_measured_again_keeps_its_runs() -> None:
    def result(**seconds: float) -> dict[str, Any]:
        each = {
            name: {how: {"runs": [{"seconds": [value]}]} for how in ("whole", "cut")} for name, value in seconds.items()
        }
        return {"settings": {}, "methods": each}

    found = methods.with_runs(result(grpo=2.0, gift=4.0), result(grpo=1.0, dpo=3.0))["methods"]
    runs = {name: [run["seconds"][0] for run in each["cut"]["runs"]] for name, each in found.items()}
    assert runs == {"grpo": [1.0, 2.0], "gift": [4.0], "dpo": [3.0]}


def test_shapes_are_as_stated() -> None:
    for name, tokens, longest in (("wide", 1248, 124), ("hundred", 1760, 200)):
        shape = shapes.SHAPES[name]
        rollouts = shapes.make_rollouts(shape)
        assert rollouts.num_tokens == tokens
        assert max(map(len, rollouts.completion_ids)) == longest
        assert len(rollouts.rewards) == shape.groups * shape.group_size == 16
        assert len({tuple(ids) for ids in rollouts.prompt_ids}) == shape.groups
        assert all(max(ids) < shape.vocab for ids in rollouts.completion_ids)
    embedded = shapes.make_rollouts(shapes.shape_of("embedded"))
    assert all(ids[-1] == 1 for ids in embedded.completion_ids)  # <eos>


@pytest.mark.parametrize(("name", "most"), [("wide", 2), ("hundred", 2), ("embedded", 6)])
def test_an_accumulated_step_takes_several_batches_of_whole_groups(name: str, most: int) -> None:
    rollouts = shapes.make_rollouts(shapes.shape_of(name))
    size = rollouts.group_size
    groups = [list(range(first, first + size)) for first in range(0, len(rollouts.rewards), size)]
    rows = zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)
    lengths = np.array([[len(prompt), len(completion)] for prompt, completion in rows])
    batches = micro_batches(groups, lengths, rollouts.tokens_of_a_quarter, "shared")
    assert 2 <= len(batches.whole) <= most
    assert not batches.parts


def test_limit_counts_the_operations_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With prompts of 2 tokens and completions of 3, by hand: 6 operations a weight and real token."""
    monkeypatch.setattr(limit.Rate, "product", lambda self, left, right: 1.0)
    shape = shapes.Shape(8, 2, 2, 16, 32, groups=1, group_size=4, prompt=2, shortest=3, longest=3)
    found = limit.products(shape, shapes.make_rollouts(shape), "float32", cuda=False, seconds=0)
    weights = 2 * (4 * 8 * 8 + 3 * 8 * 16)
    pairs = {"once_a_completion": 4 * 10, "once_a_group": 4 * 10 - 3 * 3}  # 4 positions a row: 10 causal pairs
    tokens = {"once_a_completion": 4 * 4, "once_a_group": 2 + 4 * 2}
    for count, positions in tokens.items():
        head, attention = 6 * 32 * 8 * 12, 6 * 2 * 2 * 2 * 4 * pairs[count]
        assert found[count]["operations"] == 6 * weights * positions + head + attention


GOOD = {
    "sums": "The answer is 4 + 3 = 7.",
    "words": "A cat sat on the moon.",
    "question": "Is there a cat on the moon?",
    "short": "Cats like the moon.",
}


def test_every_chat_has_a_judge_that_tells_right_from_wrong(tmp_path: Path) -> None:
    real_tasks.write_chats(tmp_path / "chats.jsonl", 30)
    real_tasks.write_chats(tmp_path / "again.jsonl", 30)
    assert (tmp_path / "chats.jsonl").read_text() == (tmp_path / "again.jsonl").read_text()
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    assert {row["domain"] for row in rows} == set(GOOD) == set(chats.JUDGES)
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows) == 30 * len(GOOD)
    right = {"sums": "7", "words": "cat moon", "question": "cat moon", "short": "6"}
    for task, text in GOOD.items():

        def judged(said: str, task: str = task) -> list[float]:
            answers = [[{"role": "assistant", "content": said}]]
            return chats.does_it([[]], answers, [[]], domain=[task], answer=[right[task]])

        assert judged(text) == judged(f"  {text}\n") == [1.0]
        for wrong in ("", "Certainly! I would be glad to help you with that, 8", text + " And so on and on and on, 8"):
            assert judged(wrong) == [0.0]


def test_a_run_of_the_real_model_reaches_its_table() -> None:
    def run(*curve: float) -> dict[str, Any]:
        seconds = dict.fromkeys(real_model.ROUND, 2.0)
        return {"rounds": [{"seconds": seconds, "eval/avg@4": each, "eval/accuracy_greedy": 0.5} for each in curve]}

    runs = {"grpo-0": run(0.25, 0.5, 0.75), "grpo-1": run(0.25, 0.75), "dpo-0": run(0.25, 0.25)}
    said = real_model.table({"runs": runs})
    assert "| base | r1 | gain (error) |" in said  # a round that one seed lacks is no round of the table
    assert "| grpo | 2 | avg@4 | 0.250 | 0.625 | +0.375 (0.125) |" in said
    runs |= {"gift-0": run(0.25, 0.5, 0.25)}
    said = real_model.table({"runs": runs})
    assert "| grpo | 2 | avg@4 | 0.250 | 0.625 |  | +0.375 (0.125) |" in said
    assert "| dpo | 1 | avg@4 | 0.250 | 0.250 |  | +0.000 |" in said
    assert "overrides 2, generate 2" in said


def test_math_pairs_are_right_and_wrong_by_turns_of_a_seeded_coin() -> None:
    pairs = rewards.pairs_of(200)
    assert pairs == rewards.pairs_of(300)[:200]
    same = [gold.strip("$") in said for gold, said in pairs]
    assert 70 < sum(same) < 130
    assert all("\\boxed{" in said for _, said in pairs)


def test_a_second_belongs_to_the_innermost_span(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr(timed_stage.time, "perf_counter", lambda: next(clock))
    spans = timed_stage.Spans()
    inner: Callable[[], None] = spans.wrap("inner", lambda: None)
    spans.wrap("outer", inner)()
    spans._turn()
    assert spans.seconds == {"rest of the stages": 1.0 + 16.0, "outer": 2.0 + 8.0, "inner": 4.0}


def test_every_method_whose_step_is_measured_is_an_update() -> None:
    for name in methods.NAMES:
        keys = {"groups_per_step": 1, "lr": 1e-5, "dtype": "float32", **methods.update_of(name)}
        assert check(Update, keys, name).match.name
    losses = {check(Update, {**keys, **methods.update_of(name)}, name).match.name for name in methods.NAMES}
    assert losses == MATCH.keys()


def test_the_comparison_on_few_prompts_is_lawful(tmp_path: Path) -> None:
    """Its plan and settings pass, every method has the rate of the study, and a round uses all prompts."""
    wanted = {"methods": list(overfit.METHODS), "seeds": 3, "rounds": 2, "prompts": 64}
    content = overfit.changed(wanted)
    (tmp_path / "compare.yaml").write_text(json.dumps(content["compare.yaml"]))
    plan = read_plan(tmp_path / "compare.yaml")
    assert plan.names == list(overfit.METHODS)
    assert all(plan.seeds_of(name) == [1, 2, 3] for name in plan.names)
    params = content["params.yaml"]
    assert params["prepare"]["num_train"] == params["generate"]["prompts_per_round"] == 64
    for name in plan.names:
        chosen = json.loads((overfit.CHOSEN / f"{name}.json").read_text())["lr"]
        made = laid_over(params, changes_of(name, plan, overfit.ROOT / "presets/methods", tmp_path), None, 1)
        assert made["update"]["lr"] == chosen
        check_content(made, name)


def test_what_overfits_reaches_its_table() -> None:
    def row(name: str, gap: float, called: bool) -> dict[str, Any]:
        one = {"method": name, "against": "grpo", "seeds": 10, "lr": 3e-4, "kl": 1.0}
        for kind in overfit.KINDS:
            one |= {kind: gap, f"{kind}_se": 0.01, f"{kind}_mean": gap - 0.2, f"{kind}_is_one": called}
            one |= {f"{kind}_low": gap - 0.25, f"{kind}_high": gap - 0.15}
        return one

    said = overfit.table({"rows": [row("grpo", 0.2, False), row("gift", 0.1, True)]})
    assert "| grpo | 10 | 0.0003 | 0.200 ± 0.010 |  |" in said
    assert "| 0.100 ± 0.010 | **-0.100 [-0.150, -0.050]** |" in said


def test_what_a_method_bears_is_drawn_beside_what_it_has() -> None:
    """A point for each variant and one for the method as it is; a panel for each kind."""
    plan = {
        "fixed": {"run": ["a-x100", "a-4", "a-noise"]},
        "methods": {
            "a-x100": {"preset": "a", "score": {"rewards": {"answer": {"weight": 100.0}}}},
            "a-4": {"preset": "a", "generate": {"group_size": 4}},
            "a-noise": {"preset": "a", "score": {"rewards": {"answer": {}, "noisy": {"settings": {"share": 0.25}}}}},
        },
    }
    points = study.points(plan, lambda name: [0.2, 0.4] if name == "a" else [0.3, 0.3], 8)
    assert [points[1][key] for key in ("mean", "low", "high")] == pytest.approx([0.3, 0.2, 0.4])
    assert [(each["kind"], each["value"]) for each in points] == [
        *(("scale", 100.0), ("scale", 1.0)),
        *(("group", 4.0), ("group", 8.0)),
        *(("noise", 0.25), ("noise", 0.0)),
    ]
    drawn = study.figure(points, "eval/avg@4")
    assert all(f">{title}<" in drawn for title in study.KINDS.values())
