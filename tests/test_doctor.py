"""The doctor on a project with one thing broken: it must find that, say where, and find nothing else."""

import ast
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pytest
from bubblewrap import WHY_NOT
from click.testing import CliRunner
from safetensors.numpy import save_file

from gift.cli import main as cli
from gift.doctor.findings import Finding, Theme
from gift.doctor.machine import STATE_BYTES, disk_findings, machine_findings, package_findings, round_bytes
from gift.doctor.model import Model, find_model, model_findings
from gift.doctor.rewards import GRADED, deciding_rewards
from gift.doctor.run import check_project
from gift.doctor.sizes import group_findings, memory_findings
from gift.doctor.whole import Project, read_project
from gift.embedded.task import Arithmetic
from gift.project.errors import UserError
from gift.project.machine import Gpus, find_gpus
from gift.project.params import settings_of
from gift.rewards.names import REWARDS
from gift.sampling.engine.vllm_limits import CPU_HEAD_SIZES
from gift.scoring import plan as rewards_check
from gift.scoring.loading import Loaded
from gift.scoring.settings import Score
from gift.tables.prompts import prompts_table, write_prompts
from gift.training.deepspeed_config import engine_settings
from stages.doctor import main as stage

Damage = Callable[[], None]
REWARD = (
    '"""A reward made for a test."""\n\n\ndef reward(completions, {columns}**rest):\n'
    "    return [{value} for completion in completions]\n"
)
SHAPES = {
    "model.embed_tokens.weight": (19, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 192),
    "model.norm.weight": (64,),
}
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature as a clone would have it; nothing was run yet. Its lock is one package, at the version here."""
    folder = mini.make_project(tmp_path_factory.mktemp("healthy"))
    (folder / ".dvc").mkdir()
    shutil.copyfile(mini.ROOT / ".dvc/config", folder / ".dvc/config")
    mini.run(["git", "init", "-q"], folder, mini.environment())
    for name in ("cpu.txt", "gpu.txt"):
        (folder / "requirements" / name).write_text(f"click=={version('click')}\n")
    return folder


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Plans of rewards that a worker has loaded: the same functions with the same settings load again."""
    return set()


@pytest.fixture(autouse=True)
def project(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: set[str]) -> Path:
    """A copy to be broken, on a machine without a GPU, a hub or SLURM."""
    load = rewards_check._load

    def load_once(plan: list[Loaded], score: Score) -> None:
        own = [Path(one.file).read_text(encoding="utf-8") for one in plan if one.file]
        if (key := repr((plan, own))) not in loaded:
            load(plan, score)
            loaded.add(key)

    monkeypatch.setattr(rewards_check, "_load", load_once)
    folder = Path(shutil.copytree(healthy, tmp_path / "project"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("SLURM_JOB_NODELIST", "GIFT_JUDGE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return folder


def serious(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level in ("warning", "error")]


# --- damages ----------------------------------------------------------------------------------------------------------


def params(**changes: Any) -> Damage:
    return lambda: mini.write_params(Path(), changes)


def shape(content: dict[str, Any]) -> Damage:
    """Another shape, in the place of the one that params.yaml names."""

    def damage() -> None:
        mini.write_params(Path(), {"update": {"shape": None}})
        mini.write_params(Path(), {"update": {"shape": content}})

    return damage


def given(*columns: str, rows: list[dict[str, Any]] | None = None, **generate: Any) -> Damage:
    """GRAO, with given answers of these columns."""
    grao = {"match": {"grao": {}}, "shape": {"with_given": {}}}
    named = together(params(update={"match": None, "shape": None}), params(update=grao))
    return together(source(rows or problems()), named, params(generate={"given": list(columns), **generate}))


def text(name: str, content: str) -> Damage:
    def damage() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")

    return damage


def append(name: str, content: str) -> Damage:
    return lambda: text(name, Path(name).read_text(encoding="utf-8") + content)()


def without(name: str) -> Damage:
    return lambda: shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


def together(*damages: Damage) -> Damage:
    return lambda: [damage() for damage in damages] and None


def rewards(**functions: dict[str, Any]) -> Damage:
    return params(score={"rewards": functions}, evaluate={"correct": next(iter(functions))})


def judge(settings: dict[str, Any]) -> Damage:
    """A judge beside the reward that says what is right; it answers somewhere."""
    functions = {"answer": {"function": "arithmetic_answer"}, "judge": {"function": "judge", "settings": settings}}
    return together(rewards(**functions), text("launch.yaml", "score: {judge_endpoint: 'http://127.0.0.1:9/v1'}\n"))


def own_reward(value: str, columns: str = "") -> Damage:
    """The only reward is a user's, whose value for a completion is this expression."""
    return together(
        text("rewards/own.py", REWARD.format(value=value, columns=columns)),
        rewards(own={"function": "rewards/own.py:reward"}),
    )


def local_model(config: dict[str, Any] | None = None, *left_out: str, **changes: Any) -> Damage:
    """base.model is a folder with a model's files, as small as they can be."""

    def damage() -> None:
        folder = Path("model")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
        save_file({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}, folder / "model.safetensors")
        (folder / "tokenizer.json").write_text("{}")
        for name in left_out:
            (folder / name).unlink()
        mini.write_params(Path(), {"base": {"model": "model"}, "update": {"lr": 1e-5, **changes}})

    return damage


def source(rows: list[dict[str, Any]], **prepare: Any) -> Damage:
    """Prompts from a local file."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return together(
        text("sources/rows.jsonl", lines),
        params(prepare={"source": "sources/rows.jsonl", "num_train": None, "num_eval": 60, **prepare}),
    )


def problems(num: int = 200, **changes: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{1 + n % 9}+{n}=", "answer": str(1 + n % 9 + n), **changes} for n in range(num)]


def mixture(correct: Any = "math", changes: dict[str, Any] | None = None, **functions: dict[str, Any]) -> Damage:
    """Maths and code in one run, each with a reward of its own; a value of `where` in place of theirs."""
    maths = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(120)]
    words = [{"prompt": f"+{n}", "target": f"w{n}", "answer": None} for n in range(120)]
    own = {
        "math": {"function": "math_answer", "where": {"domain": "math"}},
        "words": {"function": "exact_match", "settings": {"column": "target"}, "where": {"domain": "words"}},
    }
    sources = [{"source": f"sources/{name}.jsonl", "domain": name} for name in own]
    return together(
        *(
            text(f"sources/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            for name, rows in (("math", maths), ("words", words))
        ),
        params(
            prepare={"source": None, "sources": sources, "num_train": None, "num_eval": 60, **(changes or {})},
            score={"rewards": {**own, **functions}},
            evaluate={"correct": correct},
        ),
    )


def cut() -> None:
    path = Path("model/model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


# --- what the quick check must find -----------------------------------------------------------------------------------

Case = tuple[Damage, str, str, tuple[str, ...]]
"""How it is broken; level and place of the one finding, and words in it."""
QUICK: dict[str, Case] = {
    "a misspelt key": (
        params(generate={"temprature": 1.0}),
        "error",
        "params.yaml: generate.temprature",
        ("did you mean 'temperature'?",),
    ),
    "a misspelt key of launch.yaml": (
        text("launch.yaml", "update: {zero_stag: 1}\n"),
        "error",
        "launch.yaml: update.zero_stag",
        ("did you mean 'zero_stage'?",),
    ),
    "invalid YAML": (text("params.yaml", "seed: 0\nprepare: ]\n"), "error", "params.yaml:2", ("not valid YAML",)),
    "bfloat16 without ZeRO": (
        together(params(update={"dtype": "bfloat16"}), text("launch.yaml", "update: {zero_stage: 0}\n")),
        "error",
        "launch.yaml: update.zero_stage",
        ("use zero_stage 1",),
    ),
    "two processes in one": (
        text("launch.yaml", "update: {num_processes: 2}\n"),
        "error",
        "launch.yaml: update.num_processes",
        ("in_process runs one",),
    ),
    "a key that DeepSpeed would take and we own": (
        text("launch.yaml", "update: {deepspeed: {gradient_clipping: 1.0}}\n"),
        "error",
        "launch.yaml: update.deepspeed.gradient_clipping",
        ("update.max_grad_norm",),
    ),
    "a round named by a number": (
        text("rounds.yaml", "rounds:\n  1: {from: base}\n"),
        "error",
        "rounds.yaml: rounds.1",
        ("must be a text", "r1"),
    ),
    "a round from nowhere": (
        text("rounds.yaml", "rounds:\n  r1: {from: base}\n  r2: {from: r3}\n"),
        "error",
        "rounds.yaml: rounds.r2.from",
        ("there are base, r1, r2",),
    ),
    "rounds in a circle": (
        text("rounds.yaml", "rounds:\n  r1: {from: r2}\n  r2: {from: r1}\n"),
        "error",
        "rounds.yaml: rounds.r1",
        ("circle (r1, r2)",),
    ),
    "a round without a parent": (
        text("rounds.yaml", "rounds:\n  r1: base\n"),
        "error",
        "rounds.yaml: rounds.r1",
        ("{from: base}",),
    ),
    "a name that is no folder": (
        text("rounds.yaml", "rounds:\n  ../r1: {from: base}\n"),
        "error",
        "rounds.yaml: rounds.../r1",
        ("letters, digits",),
    ),
    "no round": (text("rounds.yaml", "rounds: {}\n"), "error", "rounds.yaml: rounds", ("a line a round",)),
    "a key of a round that nothing reads": (
        text("rounds.yaml", "rounds:\n  r1: {from: base, lr: 1}\n"),
        "error",
        "rounds.yaml: rounds.r1.lr",
        ("a round cannot change this",),
    ),
    "a misspelt key of a round": (
        text("rounds.yaml", "rounds:\n  r1: {from: base, update: {leer: 1.0}}\n"),
        "error",
        "rounds.yaml: rounds.r1.update.leer",
        ("did you mean 'lr'?",),
    ),
    "a round's own setting that fits nothing": (
        append("rounds.yaml", "  r1b: {from: base, generate: {max_model_len: 24}}\n"),
        "error",
        "params.yaml: generate.max_tokens",
        ("no room for a prompt", "(r1b)"),
    ),
    "a token in a comment": (
        append("rounds.yaml", "# hf_" + "aB3" * 8 + "\n"),
        "error",
        f"rounds.yaml:{len((mini.ROOT / 'rounds.yaml').read_text().splitlines()) + 1}",
        ("revoke", "environment"),
    ),
    "a password of the remote": (
        append(".dvc/config", "['remote \"store\"']\n    ask_password = true\n    password = hunter22\n"),
        "error",
        ".dvc/config:9",
        ("--local",),
    ),
    "steps larger than a round": (
        params(update={"groups_per_step": 17, "warmup_steps": 0}),
        "warning",
        "params.yaml: update.groups_per_step",
        ("a round has only 16 groups",),
    ),
    "steps far from the size asked for": (
        params(update={"groups_per_step": 11, "warmup_steps": 0}),
        "warning",
        "params.yaml: update.groups_per_step",
        ("does not divide the 16 groups of a round: its steps have 16",),
    ),
    "groups of two": (
        params(generate={"group_size": 2}),
        "warning",
        "params.yaml: generate.group_size",
        ("8 or 16 are usual",),
    ),
    "warm-up without end": (
        params(update={"warmup_steps": 32}),
        "warning",
        "params.yaml: update.warmup_steps",
        ("the chain of rounds has 32 optimizer steps", "never reaches"),
    ),
    "a decay that ends before the last round": (
        params(update={"lr_schedule": "linear", "schedule_steps": 24}),
        "warning",
        "params.yaml: update.schedule_steps",
        ("optimizer steps 25 to 32", "r4 would be refused"),
    ),
    "no room for a prompt": (
        params(generate={"max_model_len": 24}),
        "error",
        "params.yaml: generate.max_tokens",
        ("no room for a prompt", "a context of 24 tokens"),
    ),
    "more prompts than there are": (
        params(generate={"prompts_per_round": 66}),
        "error",
        "params.yaml: generate.prompts_per_round",
        ("only 64 training prompts",),
    ),
    "shorter answers than in training": (
        params(evaluate={"max_tokens": 12}),
        "warning",
        "params.yaml: evaluate.max_tokens",
        ("less than generate.max_tokens = 24",),
    ),
    "sampler and trainer in two dtypes": (
        params(update={"dtype": "bfloat16"}),
        "warning",
        "params.yaml: generate.dtype",
        ("reference.max_mean_gap = 0.02",),
    ),
    "almost greedy": (
        params(generate={"temperature": 0.1}),
        "warning",
        "params.yaml: generate.temperature",
        ("without spread",),
    ),
    "an adapter's rate for the whole model": (
        together(local_model(), params(update={"lr": 2e-4})),
        "warning",
        "params.yaml: update.lr",
        ("1e-6 to 1e-5",),
    ),
    "no config": (local_model(None, "config.json"), "error", "params.yaml: base.model", ("config.json is missing",)),
    "no tokenizer": (local_model(None, "tokenizer.json"), "error", "params.yaml: base.model", ("no tokenizer",)),
    "pickles only": (
        together(local_model(None, "model.safetensors"), text("model/pytorch_model.bin", "pickle")),
        "error",
        "params.yaml: base.model",
        ("pickles only", "save_pretrained"),
    ),
    "a Git LFS pointer": (
        together(local_model(), text("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
        "error",
        "params.yaml: base.model",
        ("git lfs pull",),
    ),
    "weights cut off": (together(local_model(), cut), "error", "params.yaml: base.model", ("cut off",)),
    "a part of the weights missing": (
        together(
            local_model(),
            text("model/model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}'),
        ),
        "error",
        "params.yaml: base.model",
        ("1 of 1 weight files are missing, model-2.safetensors first",),
    ),
    "more context than the model has": (
        together(local_model(), params(generate={"max_model_len": 513})),
        "error",
        "params.yaml: generate.max_model_len",
        ("the policy's context is 512 tokens",),
    ),
    "a classifier": (
        local_model({"architectures": ["Qwen3ForSequenceClassification"]}),
        "error",
        "params.yaml: base.model",
        ("no causal language model",),
    ),
    "a model that bends its logits": (
        local_model({"final_logit_softcapping": 30.0}),
        "error",
        "params.yaml: base.model",
        ("final_logit_softcapping=30.0",),
    ),
    "quantized weights": (
        local_model({"quantization_config": {"bits": 4}}),
        "error",
        "params.yaml: base.model",
        ("quantized",),
    ),
    "dropout under gradient checkpointing": (
        together(
            local_model({"attention_dropout": 0.1}), text("launch.yaml", "update: {gradient_checkpointing: true}\n")
        ),
        "error",
        "launch.yaml: update.gradient_checkpointing",
        ("attention_dropout=0.1",),
    ),
    "an adapter on the head": (
        local_model(lora={"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "embed_tokens"]}),
        "error",
        "params.yaml: update.lora.target_modules",
        ("'embed_tokens' is not (only) linear layers", "choose from down_proj, q_proj"),
    ),
    "an adapter on nothing": (
        local_model(lora={"r": 2, "lora_alpha": 4, "target_modules": ["k_prj"]}),
        "error",
        "params.yaml: update.lora.target_modules",
        ("'k_prj' fits no module",),
    ),
    "no such model folder": (
        params(base={"model": "./models/mine"}, update={"lr": 1e-5}),
        "error",
        "params.yaml: base.model",
        ("is neither 'arithmetic', a local folder, nor a hub id",),
    ),
    "heads that do not share the width": (
        params(arithmetic={"num_heads": 3}),
        "error",
        "params.yaml: arithmetic.num_heads",
        ("hidden_size = 64",),
    ),
    "heads too small for vLLM on a CPU": (
        params(arithmetic={"num_heads": 4}, generate={"engine": "vllm"}, evaluate={"engine": "vllm"}),
        "error",
        "params.yaml: generate.engine",
        ("the model's are 16",),
    ),
    "an unknown reward": (
        rewards(answer={"function": "arithmetic_anser"}),
        "error",
        "params.yaml: score.rewards.answer.function",
        ("did you mean 'arithmetic_answer'?",),
    ),
    "a reward's file that is not there": (
        rewards(own={"function": "rewards/none.py:reward"}),
        "error",
        "params.yaml: score.rewards.own.function",
        ("no such file", "rewards/example.py"),
    ),
    "a reward's file that does not import": (
        together(
            text("rewards/own.py", "import nothing_like_it\n"), rewards(own={"function": "rewards/own.py:reward"})
        ),
        "error",
        "params.yaml: score.rewards.own.function",
        ("cannot be imported", "nothing_like_it", "rewards/own.py:1"),
    ),
    "a setting that a reward does not have": (
        rewards(answer={"function": "arithmetic_answer", "settings": {"tolerance": 0.1}}),
        "error",
        "params.yaml: score.rewards.answer.settings.tolerance",
        ("no such setting",),
    ),
    "a reward that wants a column": (
        own_reward("0.0", "level, "),
        "error",
        "params.yaml: score.rewards.own.function",
        ("missing a required argument: 'level'", "prompts, completions, completion_ids, prompt_id, answer"),
    ),
    "a setting that a judge does not have": (
        judge({"modle": "m"}),
        "error",
        "params.yaml: score.rewards.judge.settings.modle",
        ("no such setting",),
    ),
    "a judge's setting of another type": (
        judge({"model": "m", "concurrency": "many"}),
        "error",
        "params.yaml: score.rewards.judge.settings.concurrency",
        ("'many': must be a valid integer",),
    ),
    "a judge's scale that falls": (
        judge({"model": "m", "scale": [10, 1]}),
        "error",
        "params.yaml: score.rewards.judge.settings.scale",
        ("[10, 1]: must be [lowest, highest]",),
    ),
    "a judge's mode that is none": (
        together(
            params(prepare={"source": "hub:nobody/none", "num_train": None}),
            judge({"model": "m", "mode": "pairs", "reference_column": "gold"}),
        ),
        "error",
        "params.yaml: score.rewards.judge.settings.mode",
        ("'pairs': must be 'rubric' or 'pairwise'",),
    ),
    "a judge's column that is not there": (
        judge({"model": "m", "reference_column": "gold"}),
        "error",
        "params.yaml: score.rewards.judge.settings.reference_column",
        ("'gold': the prompts table has no such column", "answer"),
    ),
    "a judge that answers nowhere": (
        rewards(answer={"function": "arithmetic_answer"}, judge={"function": "judge", "settings": {"model": "m"}}),
        "error",
        "launch.yaml: score.judge_endpoint",
        ("http://127.0.0.1:8000/v1",),
    ),
    "a reward model without weights": (
        together(
            text("judge/config.json", "{}"),
            text("judge/tokenizer.json", "{}"),
            rewards(
                answer={"function": "arithmetic_answer"},
                taste={"function": "reward_model", "settings": {"model": "judge"}},
            ),
        ),
        "error",
        "params.yaml: score.rewards.taste.settings.model",
        ("no *.safetensors weights",),
    ),
    "a reward model's setting that is none of its words": (
        rewards(
            answer={"function": "arithmetic_answer"},
            taste={"function": "reward_model", "settings": {"model": "m", "too_long": "cut"}},
        ),
        "error",
        "params.yaml: score.rewards.taste.settings.too_long",
        ("'cut': must be 'error' or 'truncate_left'",),
    ),
    "a reward model that is to say what is right": (
        rewards(taste={"function": "reward_model", "settings": {"model": "nobody/taste"}}),
        "error",
        "params.yaml: evaluate.correct",
        ("reward_model is graded",),
    ),
    "a mixture": (
        mixture(),
        "note",
        "params.yaml: evaluate.correct",
        ("of 60 eval prompts", "count in no accuracy"),
    ),
    "a method that compares domains where there is none": (
        shape({"disco": {}}),
        "error",
        "",
        ("data/prompts/train.parquet: has no column 'domain', which a method of update reads", "prepare.columns"),
    ),
    "a column of given answers that is not there": (
        given("anser"),
        "error",
        "params.yaml: generate.given",
        ("anser: data/prompts/train.parquet has no such column; did you mean 'answer'?",),
    ),
    "a column of given answers that is no text": (
        given("level", rows=problems(level=3)),
        "error",
        "params.yaml: generate.given",
        ("level: the column has type int64, must be text", "prepare.as_text"),
    ),
    "given answers that are empty": (
        given("worked", rows=[{**row, "worked": "" if n % 2 else "#1"} for n, row in enumerate(problems())]),
        "error",
        "params.yaml: generate.given",
        ("worked: data/prompts/train.parquet: ", "have no answer there", "prepare.filters.length: {worked: [1, null]}"),
    ),
    "given answers that no shape reads": (
        params(generate={"given": ["answer"]}),
        "warning",
        "params.yaml: generate.given",
        ("answer: update.shape: zscore leaves given answers out", "set it to []"),
    ),
    "a shape that reads given answers where there are none": (
        given(),
        "warning",
        "params.yaml: generate.given",
        ("update.shape: with_given reads given answers", "name columns"),
    ),
    "a method that reads a reward that is not there": (
        shape({"equal_right": {"correct": "proof"}}),
        "error",
        "params.yaml: update.shape.equal_right.correct",
        ("'proof' is no key of score.rewards (answer",),
    ),
    "a column of where that is not there": (
        mixture(math={"function": "math_answer", "where": {"domian": "math"}}),
        "error",
        "params.yaml: score.rewards.math.where.domian",
        ("did you mean 'domain'?", "it has prompt_id, answer, domain, target"),
    ),
    "a column of where that eval does not have": (
        together(
            text("sources/eval.jsonl", json.dumps({"prompt": "1+2=", "answer": "3"}) + "\n"),
            mixture(changes={"eval_sources": [{"source": "sources/eval.jsonl"}], "num_eval": 1}),
        ),
        "error",
        "params.yaml: score.rewards.math.where.domain",
        ("no such column; it has prompt_id, answer (eval prompts)",),
    ),
    "a where that no prompt has": (
        mixture(math={"function": "math_answer", "where": {"domain": "maths"}}),
        "error",
        "params.yaml: score.rewards.math.where.domain",
        ("'maths': no training prompt has it; did you mean 'math'?",),
    ),
    "a value of where that no prompt has": (
        mixture(math={"function": "math_answer", "where": {"domain": ["math", "proofs"]}}),
        "warning",
        "params.yaml: score.rewards.math.where.domain",
        ("'proofs': no prompt has it, in train or eval; the values of domain are 'math', 'words'",),
    ),
    "prompts without a reward": (
        mixture(words={"function": "exact_match", "settings": {"column": "target"}, "weight": 0.0}),
        "warning",
        "params.yaml: score.rewards",
        ("training prompts (prompt_id=", "by no reward with a weight"),
    ),
    "two rewards that say what is right": (
        mixture(["math", "words"], words={"function": "exact_match", "settings": {"column": "target"}}),
        "error",
        "params.yaml: evaluate.correct",
        ("'math' and 'words' are both asked for prompt_id=", "(eval prompts)"),
    ),
    "rewards without weight": (
        rewards(answer={"function": "arithmetic_answer", "weight": 0.0}),
        "error",
        "params.yaml: score.rewards",
        ("no group can train",),
    ),
    "training away from right answers": (
        rewards(answer={"function": "arithmetic_answer", "weight": -1.0}),
        "warning",
        "params.yaml: score.rewards.answer.weight",
        ("trains away",),
    ),
    "no such source": (
        params(prepare={"source": "sources/none.jsonl"}),
        "error",
        "params.yaml: prepare.source",
        ("no such file",),
    ),
    "a column that is mapped and not there": (
        source(problems(), columns={"prompt": "question"}),
        "error",
        "params.yaml: prepare.columns.prompt",
        ("prompt, answer",),
    ),
    "no git": (without(".git"), "error", "", ("git init",)),
    "no DVC": (without(".dvc"), "error", "", ("dvc init",)),
    "a cache that is a file": (text(".dvc/cache", ""), "error", ".dvc/config: cache.dir", ("cannot be written",)),
    "code that is gone": (without("gift/policy/merge.py"), "ok", "", ("dvc.yaml are there",)),
    "code of a stage that is gone": (
        without("gift/logprobs/head.py"),
        "error",
        "dvc.yaml: stages",
        ("gift/logprobs/head.py",),
    ),
    "a dependency that is gone": (without("requirements"), "error", "dvc.yaml: stages", ("missing: requirements",)),
    "no hostfile": (
        text("launch.yaml", "update: {launcher: deepspeed, launcher_args: [--hostfile=hosts]}\n"),
        "error",
        "launch.yaml: update.launcher_args",
        ("hosts: no such file",),
    ),
    "a hostfile of another kind": (
        together(
            text("launch.yaml", "update: {launcher: deepspeed, launcher_args: [--hostfile, hosts]}\n"),
            text("hosts", "node1 slots=8\nnode2:8\n"),
        ),
        "error",
        "launch.yaml: update.launcher_args",
        ("hosts:2: 'node2:8'", "node1 slots=8"),
    ),
    "more processes than slots": (
        together(
            text("launch.yaml", "update: {launcher: deepspeed, num_processes: 9, launcher_args: [-H, hosts]}\n"),
            text("hosts", "# ours\nnode1 slots=8\n"),
        ),
        "error",
        "launch.yaml: update.num_processes",
        ("node1 has 8 slots",),
    ),
    "no SLURM": (text("launch.yaml", "update: {launcher: srun}\n"), "error", "launch.yaml: update.launcher", ("PATH",)),
    "a package that is not as locked": (
        text("requirements/cpu.txt", "click==0.1\n"),
        "note",
        "requirements/cpu.txt",
        (f"click {version('click')} (locked 0.1)",),
    ),
}


def quick(damage: Damage) -> list[Finding]:
    damage()
    return check_project(quick=True)


def one_of(findings: list[Finding], level: str, where: str, words: tuple[str, ...]) -> None:
    """There is this finding, and no other that is as serious as a warning."""
    found = [
        each for each in findings if each.level == level and each.where == where and all(w in each.text for w in words)
    ]
    assert len(found) == 1, findings
    assert [each for each in serious(findings) if each not in found] == []


@pytest.mark.parametrize("name", QUICK)
def test_the_quick_check_finds_what_is_broken_and_nothing_else(name: str) -> None:
    damage, level, where, words = QUICK[name]
    one_of(quick(damage), level, where, words)


def test_a_healthy_project_gives_no_warning() -> None:
    findings = check_project(quick=False)
    assert serious(findings) == []
    assert {finding.theme for finding in findings if finding.level == "ok"} == {
        *("settings", "batches", "data", "model", "memory", "rewards", "machine", "storage", "tokens")
    }


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_the_quick_check_sees_programs_without_columns_of_tests() -> None:
    damage = rewards(answer={"function": "arithmetic_answer"}, tests={"function": "code_tests"})
    words = ("the prompts table has no columns with tests", "test_list, or test and entry_point", "prepare.columns")
    one_of(quick(damage), "error", "params.yaml: score.rewards.tests.function", words)


def test_a_mixture_is_tried_source_by_source() -> None:
    """Each reward sees gold answers of its own prompts, and the cells that another source lacks are no news."""
    mixture(["math", "words"])()
    findings = check_project(quick=False)
    assert serious(findings) == []
    tried = {each.where: each.text for each in findings if "tells gold answers from garbage" in each.text}
    assert tried.keys() == {"params.yaml: score.rewards.math", "params.yaml: score.rewards.words"}
    assert "gold (x) 1" in tried["params.yaml: score.rewards.words"]


def test_the_shipped_settings_give_no_warning() -> None:
    for name in ("params.yaml", "launch.yaml"):
        shutil.copyfile(mini.ROOT / name, name)
    assert serious(check_project(quick=False)) == []


# --- what only the full check sees ------------------------------------------------------------------------------------

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_model(template: str = CHATML, end: str = "<|im_end|>") -> Damage:
    """A local model with a real tokenizer, whose completions end with the token `end`."""

    def damage() -> None:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        local_model()()
        words = ["<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", *map(chr, range(32, 127)), "\n"]
        tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        specials = ["<|im_start|>", "<|im_end|>"]
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token=end, unk_token="<unk>", additional_special_tokens=specials
        )
        made.chat_template = template
        made.save_pretrained("model")
        ids = {"eos_token_id": words.index(end)}
        Path("model/generation_config.json").write_text(json.dumps(ids))
        Path("model/config.json").write_text(json.dumps({**CONFIG, **ids}))

    return damage


CHAT = params(prepare={"chat": True})
GSM8K = {"function": "gsm8k_answer"}
FULL: dict[str, Case] = {
    "a reward that everything gets": (
        own_reward("1.0"),
        "error",
        "params.yaml: score.rewards.own",
        ("does not tell a gold answer from garbage", "'' 1", "'asdf' 1"),
    ),
    "a reward that no form of the answer gets": (
        own_reward("float(completion == 'the answer')"),
        "error",
        "params.yaml: score.rewards.own",
        ("does not tell a gold answer from garbage",),
    ),
    "a reward that any number gets": (
        own_reward("float(completion.lstrip('-').isdigit())"),
        "error",
        "params.yaml: score.rewards.own",
        ("another row's gold 1",),
    ),
    "a reward that fails on gold answers": (
        own_reward("float(int(completion) > len(rest['level']))"),
        "error",
        "params.yaml: score.rewards.own",
        ("fails for 8 of 8 rows whatever the completion", "error: KeyError: 'level'"),
    ),
    "a reward that fails without text": (
        own_reward("float(completion[0] == '#' and completion[1:] == rest['answer'][0])"),
        "warning",
        "params.yaml: score.rewards.own",
        ("fails for the completion ''", "IndexError"),
    ),
    "a right answer worth 5": (
        own_reward("5.0 * (completion == rest['answer'][0])"),
        "error",
        "params.yaml: evaluate.correct",
        ("gave 5", "1 for a right answer"),
    ),
    "a gold answer that is no number": (
        together(
            source([row | {"answer": "many"} if number % 2 else row for number, row in enumerate(problems())]),
            rewards(answer=GSM8K),
        ),
        "warning",
        "params.yaml: score.rewards.answer",
        ("whatever the completion", "does not hold one number"),
    ),
    "prompts that do not fit": (
        params(generate={"max_tokens": 30, "max_model_len": 32}),
        "error",
        "params.yaml: generate.max_tokens",
        ("64 prompts are too long for a context of 32 tokens", "prompt_id="),
    ),
    "characters that the tokenizer does not know": (
        source([{**row, "prompt": row["prompt"].replace("+", "×")} for row in problems()]),
        "warning",
        "params.yaml: base.model",
        ("140 of 140 generate prompts hold characters",),
    ),
    "empty answers": (
        source([*problems(150), *({**row, "prompt": row["prompt"] + " "} for row in problems(50, answer=" "))]),
        "warning",
        "data/prompts/train.parquet",
        ("column 'answer' is empty in",),
    ),
    "the same prompt again": (
        source([*problems(150), *({**row, "prompt": row["prompt"] + " "} for row in problems(50))]),
        "warning",
        "data/prompts/train.parquet",
        ("repeat another",),
    ),
    "prompts of eval in train": (
        together(
            text("sources/eval.jsonl", json.dumps({"prompt": "1+0= ", "answer": "1"}) + "\n"),
            source(problems(), eval_source="sources/eval.jsonl", num_eval=1),
        ),
        "warning",
        "data/prompts/eval.parquet",
        ("1 of 1 eval prompts are in train too", "'1+0='"),
    ),
    "a chat without a template": (
        CHAT,
        "error",
        "",
        ("no chat template", "prepare.chat"),
    ),
    "plain text for a chat model": (chat_model(), "warning", "params.yaml: prepare.chat", ("set it to true",)),
    "given answers that are too long": (
        given("worked", rows=problems(worked="1+1=2 " * 8)),
        "error",
        "params.yaml: generate.given",
        ("worked: ", "answers are longer than generate.max_tokens", "raise generate.max_tokens"),
    ),
    "given answers with strange characters": (
        given("worked", rows=problems(worked="two")),
        "warning",
        "params.yaml: generate.given",
        ("answers hold characters that the tokenizer does not know",),
    ),
    "a turn that never ends": (
        together(chat_model(end="<|endoftext|>"), CHAT),
        "warning",
        "",
        ("ends an answer with <|im_end|>, which ends no completion", "stop_tokens: ['<|im_end|>']"),
    ),
    "a template that opens no answer": (
        together(chat_model(CHATML.partition("{% if")[0]), CHAT),
        "warning",
        "",
        ("adds nothing before an answer",),
    ),
    "a format that asks for a tag which is there": (
        together(
            chat_model(CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")),
            CHAT,
            params(
                score={
                    "rewards": {
                        "answer": {"function": "arithmetic_answer"},
                        "form": {"function": "text_format", "settings": {"pattern": "<think>.*</think>.*"}},
                    }
                }
            ),
        ),
        "warning",
        "params.yaml: base.model",
        ("opens <think> itself", "as score.rewards.form does"),
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_the_full_check_finds_what_is_broken(name: str) -> None:
    damage, level, where, words = FULL[name]
    damage()
    findings = check_project(quick=False)
    found = [each for each in findings if each.level == level and each.where == where]
    assert [each for each in found if all(word in each.text for word in words)], findings


def test_a_chat_model_that_is_right_gives_no_warning() -> None:
    chat_model()()
    CHAT()
    assert serious(check_project(quick=False)) == []


# --- single checks ----------------------------------------------------------------------------------------------------


def settings(launch: dict[str, Any] | None = None, **changes: Any) -> Project:
    """The miniature's settings, changed."""
    mini.write_params(Path(), changes)
    Path("launch.yaml").write_text(json.dumps(launch or {}))
    project, findings = read_project()
    assert project is not None, findings
    return project


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "null"):
        (tmp_path / name).touch()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    tool.chmod(0o755)
    assert find_gpus(tmp_path) == Gpus(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_gpus(tmp_path) == Gpus(1, 40960 * 2**20)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert find_gpus(tmp_path).count == 2


@pytest.mark.parametrize(
    ("launch", "gpus", "level", "where"),
    [
        ({"update": {"launcher": "deepspeed", "num_processes": 4}}, 2, "error", "launch.yaml: update.num_processes"),
        ({"update": {"launcher": "deepspeed", "num_processes": 2}}, 2, None, ""),
        ({"generate": {"engines": 2}}, 1, "error", "launch.yaml: generate.engines"),
        ({"reference": {"processes": 999}}, 0, "warning", "launch.yaml: reference.processes"),
        ({"workers": {"kind": "connect"}}, 0, "error", "launch.yaml: workers.kind"),
        ({"repro": {"keep_engine": True}}, 1, None, ""),
        (
            {"repro": {"keep_engine": True}, "workers": {"kind": "connect", "listen": "0.0.0.0:0"}},
            1,
            "note",
            "launch.yaml: repro.keep_engine",
        ),
        ({"workers": {"kind": "srun", "listen": "0.0.0.0:0"}}, 0, "warning", "launch.yaml: workers.kind"),
        ({"update": {"compile_head": True}}, 0, "warning", "launch.yaml: update.compile_head"),
        ({"update": {"compile_head": True}}, 1, None, ""),
        ({"reference": {"liger_kernel": True}}, 1, "error", "launch.yaml: reference.liger_kernel"),
        ({"update": {"flash_attention": True}}, 1, "error", "launch.yaml: update.flash_attention"),  # float32
        ({}, 1, None, ""),
    ],
)
def test_a_launch_profile_is_held_against_the_gpus(launch: dict[str, Any], gpus: int, level: str, where: str) -> None:
    found = [each for each in machine_findings(settings(launch), Gpus(gpus)) if each.level != "ok"]
    assert [(each.level, each.where) for each in found] == ([(level, where)] if level else [])


def test_engines_without_a_part_are_noted() -> None:
    own = {"prompts_per_round": 64, "groups_per_part": 32}
    project = settings({"update": {"launcher": "deepspeed", "num_processes": 4}}, generate=own)
    found = [each for each in machine_findings(project, Gpus(4)) if each.level == "note"]
    assert [each.where for each in found] == ["params.yaml: generate.groups_per_part"]
    assert "makes 2 parts, so that 2 of 4 engines have nothing to do; lower it to 16" in found[0].text


def test_tasks_that_see_one_gpu_each_are_noted() -> None:
    launch = {"update": {"launcher": "srun", "num_processes": 2, "launcher_args": ["--gpus-per-task=1"]}}
    notes = [each.where for each in machine_findings(settings(launch), Gpus(2)) if each.level == "note"]
    assert notes == ["launch.yaml: update.launcher_args"]


def test_tensor_parallel_needs_gpus_and_a_divisor_of_the_heads() -> None:
    def found(number: int, gpus: int) -> list[tuple[str, str]]:
        sampling = {"generate": {"tensor_parallel_size": number}}
        project = settings(sampling, generate={"engine": "vllm"}, evaluate={"engine": "vllm"})
        model = Model({"num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64}, {})
        findings = [
            *machine_findings(project, Gpus(gpus)),
            *model_findings(project.params, project.launch, model, gpus),
        ]
        return [(each.level, each.where.split(".")[-1]) for each in serious(findings)]

    assert found(2, 2) == []
    assert found(4, 8) == [("error", "tensor_parallel_size")]  # 14 heads
    assert found(14, 8) == [("error", "tensor_parallel_size")]  # 8 GPUs
    assert found(2, 0) == [("warning", "tensor_parallel_size")]  # perhaps on another machine


def test_an_adapter_is_sampled_in_bfloat16_on_a_gpu() -> None:
    def found(gpus: int, dtype: str, lora: dict[str, Any] | None) -> list[str]:
        sampling = {"engine": "vllm", "dtype": dtype}
        project = settings({}, generate=sampling, evaluate=sampling, update={"lora": lora})
        return [each.where for each in serious(machine_findings(project, Gpus(gpus)))]

    adapter = {"r": 2, "lora_alpha": 4}
    assert found(1, "float32", adapter) == ["params.yaml: generate.dtype", "params.yaml: evaluate.dtype"]
    assert found(1, "bfloat16", adapter) == found(0, "float32", adapter) == found(1, "float32", None) == []


def test_a_missing_package_is_an_error_where_the_project_asks_for_it() -> None:
    lock = Path("requirements/cpu.txt")
    lock.write_text(f"click=={version('click')}\nno-such-thing==1.0\nvllm-cpu-none==1.0\n")
    assert [each.level for each in package_findings({"transformers"})] == ["note"]
    project = Path("pyproject.toml")
    project.write_text('[project]\ndependencies = ["no_such.thing==1.0", "click==0.1"]\n')
    (finding,) = package_findings({"transformers"})
    assert (finding.level, finding.where) == ("error", str(lock))
    assert "no-such-thing" in finding.text
    lock.write_text("click==0.1\n")
    assert [each.level for each in package_findings({"transformers"})] == ["warning"]


def test_memory_is_counted_by_hand() -> None:
    """A model of 1000 parameters on 2 ranks: bytes of weights, gradients and state a rank."""
    model = Model({}, {"layer.weight": (20, 50)})
    deepspeed = {"launcher": "deepspeed", "num_processes": 2}

    def bytes_of_a_rank(launch: dict[str, Any], dtype: str, world: int) -> int:
        project = settings({"update": launch}, update={"dtype": dtype})
        trained = model.num_trained(project.params)
        return engine_settings(project.params.update, project.launch.update).bytes_a_rank(1000, trained, world)

    bytes_of = {stage: bytes_of_a_rank({**deepspeed, "zero_stage": stage}, "bfloat16", 2) for stage in (1, 2, 3)}
    assert bytes_of == {1: 2000 + 4000 + 6000, 2: 2000 + 2000 + 6000, 3: 1000 + 2000 + 6000}
    assert bytes_of_a_rank({"zero_stage": 0}, "float32", 1) == 16_000
    lora = settings({"update": {"zero_stage": 0}}, update={"lora": {"r": 2, "lora_alpha": 4}})
    assert model.num_trained(lora.params) == 2 * (20 + 50)
    small, large = (list(memory_findings(lora, model, Gpus(1, memory))) for memory in (5000, 10**9))
    assert [each.where for each in serious(small)] == ["launch.yaml: update.zero_stage"]
    assert serious(large) == []


def test_a_batch_is_estimated_and_the_one_that_fits_is_named() -> None:
    """Weights, gradients and moments fit a GPU; a batch's activations do not, and the number that is named would."""
    model, _ = find_model(settings().params)
    assert model is not None

    def found(memory: int | None, tokens: int, **launch: Any) -> Finding:
        project = settings({"update": {"tokens_per_batch": tokens, **launch}})
        (finding, *_) = memory_findings(project, model, Gpus(1, memory))
        return finding

    gigabyte = 10**9
    large = found(gigabyte, 1_000_000)
    assert (large.level, large.where) == ("warning", "launch.yaml: update.tokens_per_batch")
    numbers = re.findall(r"(?:batch|selective|true) ([\d,]+)", large.text)
    fit, selective, saving = (int(each.replace(",", "")) for each in numbers[-3:])
    assert 1000 < fit < selective < saving < 1_000_000
    assert [found(gigabyte, tokens).level for tokens in (fit, fit + 1000)] == ["ok", "warning"]
    for how, most in (("selective", selective), (True, saving)):
        also = [found(gigabyte, tokens, gradient_checkpointing=how).level for tokens in (most, most + 1000)]
        assert also == ["ok", "warning"]
    assert found(None, 1000).level == "ok"
    assert "whose memory is not known" in found(None, 1000).text


def test_groups_that_will_be_cut_are_noted_for_losses_that_couple_them() -> None:
    def found(budget: int, match: str) -> list[str]:
        mini.write_params(Path(), {"update": {"match": None}})
        project = settings({"update": {"tokens_per_batch": budget}}, update={"match": {match: {}}})
        return [each.text for each in group_findings(project)]

    most = settings().params.generate
    longest = most.group_size * most.max_tokens
    assert found(longest, "gift") == []
    assert found(longest - 1, "reinforce") == []
    (text,) = found(longest - 1, "gift")
    assert f"has up to {longest:,} tokens" in text


def test_a_disk_that_is_too_small_is_found_before_it_is_full() -> None:
    project = settings()
    model, _ = find_model(project.params)
    assert model is not None
    policy, tables = round_bytes(project.params, model)
    assert policy == model.num_parameters * (4 + STATE_BYTES)
    assert tables == 20 * (16 * 4 * 24 + 16 * 3 * 24)
    need = (policy + tables) * 4

    def levels(**room: int) -> list[str]:
        return [each.level for each in disk_findings(project, model, room)]

    assert [levels(data=free) for free in (policy - 1, need - 1, need)] == [["error"], ["warning"], ["ok"]]
    assert levels(data=need, cache=need - 1) == ["ok", "warning"], "each disk that is written to"
    Path("data/rounds/r1/policy").mkdir(parents=True)
    assert levels(data=need * 3 // 4) == ["ok"]


def test_the_embedded_model_is_counted_as_it_will_be() -> None:
    from gift.embedded.base_policy import make_model, make_tokenizer

    shape = Arithmetic(hidden_size=64, num_layers=2, num_heads=2)
    made = {name: tuple(each.shape) for name, each in make_model(shape, make_tokenizer(), 0).named_parameters()}
    assert shape.shapes == made


def test_the_head_sizes_are_those_of_the_installed_vllm() -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations is not None
    path = Path(found.submodule_search_locations[0]) / "v1/attention/backends/cpu_attn.py"
    function = next(
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
    )
    (returned,) = [node for node in function.body if isinstance(node, ast.Return)]
    assert ast.literal_eval(returned.value or ast.Constant(None)) == list(CPU_HEAD_SIZES)


PRESETS = [path for path in sorted((mini.ROOT / "presets").glob("*.yaml")) if not path.name.startswith("launch")]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_gives_no_warning_but_that_its_model_must_be_fetched(preset: Path) -> None:
    shutil.copyfile(preset, "params.yaml")
    found = [
        each for each in serious(check_project(quick=True)) if "bubblewrap" not in each.text or shutil.which("bwrap")
    ]
    assert [(each.level, each.where) for each in found] == [
        ("warning", "params.yaml: base.revision"),
        ("error", "params.yaml: base.model"),  # there is no network here
    ]


@pytest.mark.parametrize("graded", [False, True])
def test_the_project_to_compare_methods_on_gives_no_warning(graded: bool) -> None:
    params = mini.read_yaml(mini.ROOT / "compare" / "params.yaml")
    if graded:
        params = mini.merge(params, mini.read_yaml(mini.ROOT / "compare" / "dense.yaml"))
    Path("params.yaml").write_text(json.dumps(params), encoding="utf-8")
    assert serious(check_project(quick=True)) == []


def test_settings_are_checked_before_the_columns_are_known() -> None:
    """A source of the hub is not read here, and `score` comes after the dear stages."""
    preset = (mini.ROOT / "presets" / "gsm8k.yaml").read_text(encoding="utf-8")
    assert preset.count("function: gsm8k_answer") == 1
    for settings, key, words in (
        ("{last_number: no}", "last_number", "'no': must be true or false"),
        ("{last: true}", "last", "unknown key"),
    ):
        wrong = preset.replace("function: gsm8k_answer", f"function: gsm8k_answer\n      settings: {settings}")
        Path("params.yaml").write_text(wrong, encoding="utf-8")
        (found,) = [each for each in check_project(quick=True) if each.level == "error" and each.theme == "rewards"]
        assert found.where == f"params.yaml: score.rewards.answer.settings.{key}"
        assert words in found.text


@pytest.mark.parametrize("gold", ["12", 12, ["12", "13"], {"ground_truth": "12", "style": "rule"}])
def test_gold_answers_are_found_in_the_forms_that_data_sets_have(gold: Any) -> None:
    """A user's reward that compares with any of them: it is right for "12" and for nothing else."""
    value = "float(completion == '12')"
    rows = [{"prompt": f"{number}+{12 - number}=", "answer": gold} for number in range(1, 150)]
    together(source(rows), own_reward(value))()
    (found,) = [each for each in check_project(quick=False) if each.where == "params.yaml: score.rewards.own"]
    assert (found.level, found.text) == ("ok", "tells gold answers from garbage: gold (x) 1, '' 0, 'asdf' 0")


def test_a_reward_that_changes_from_call_to_call_is_an_error() -> None:
    rows = [{"prompt": f"{number}+{12 - number}=", "answer": "12"} for number in range(1, 150)]
    together(source(rows), own_reward("float(completion == '12') + len(completion) * __import__('random').random()"))()
    (found,) = [each for each in check_project(quick=False) if each.where == "params.yaml: score.rewards.own"]
    assert found.level == "error"
    assert found.text.startswith("prompt_id=")
    assert "when it was called again with the same arguments" in found.text


def test_the_functions_that_are_named_exist() -> None:
    assert set(GRADED) <= REWARDS.keys()


def test_a_hub_model_without_a_commit_is_a_warning_and_offline_an_error() -> None:
    def found(**base: Any) -> list[tuple[str, str]]:
        return [(each.level, each.where) for each in find_model(settings(base=base).params)[1]]

    unknown = ("error", "params.yaml: base.model")
    assert found(model="nobody/no-such-model") == [("warning", "params.yaml: base.revision"), unknown]
    assert found(model="nobody/no-such-model", revision="0" * 40) == [unknown]


def test_columns_of_large_sources_come_from_the_prepared_prompts() -> None:
    """A hub's data set is not fetched by the quick check; what `prepare` made of it with these settings is read."""
    Path("rewards/own.py").write_text("def compute_score(data_source, solution_str, ground_truth, extra_info): ...\n")
    verl = {"function": "rewards/own.py:compute_score", "signature": "verl", "where": {"level": 1}}
    mini.write_params(Path(), {"score": {"rewards": {"verl": verl}}, "evaluate": {"correct": None}})
    mini.write_params(Path(), {"prepare": {"source": "hub:nobody/none", "num_train": None}})
    assert serious(check_project(quick=True)) == []  # nothing is said of columns that are not known
    project = settings(score=mini.TINY["score"], evaluate={"correct": "answer"})
    findings = check_project(quick=True)
    assert serious(findings) == []
    assert "not loaded" in " ".join(each.text for each in findings if each.theme == "rewards")
    metadata = {"settings": settings_of(project.params.prepare), "seed": project.params.seed}
    for name in ("train", "eval"):
        path = Path(f"data/prompts/{name}.parquet")
        rows = [{"prompt_id": f"{name}{n}", "prompt": f"{n}+1=", "level": n} for n in range(64)]
        write_prompts(path, prompts_table(rows, path), metadata)
    (finding,) = serious(check_project(quick=True))
    assert finding.where == "params.yaml: score.rewards.answer.function"
    assert "missing a required argument: 'answer'" in finding.text
    mini.write_params(Path(), {"seed": 1})
    assert serious(check_project(quick=True)) == []  # those prompts are of another seed


def test_a_message_of_a_stage_becomes_a_finding_with_its_place() -> None:
    error = UserError("params.yaml: update.lr: -1.0: must be greater than 0\n       sources/x.csv:3: not valid CSV")
    assert Theme("batches").refused(error) == [
        Finding("error", "batches", "-1.0: must be greater than 0", "params.yaml: update.lr"),
        Finding("error", "batches", "sources/x.csv:3: not valid CSV"),
    ]


# --- the command and the stage ----------------------------------------------------------------------------------------


def test_the_command_prints_a_table_with_the_errors_last_and_exits_with_1() -> None:
    done = CliRunner().invoke(cli, ["doctor", "--quick"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].endswith("0 warnings, 0 errors")
    mini.write_params(Path(), {"generate": {"group_size": 3}, "score": {"rewards": {"answer": {"function": "none"}}}})
    done = CliRunner().invoke(cli, ["doctor", "--quick"])
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[-1].endswith("1 warning, 1 error")
    assert lines[-2].startswith("error    rewards   params.yaml: score.rewards.answer.function: 'none': unknown reward")
    assert lines[-3].startswith("warning  batches   params.yaml: generate.group_size: 3: ")
    assert len({line[9:].split()[0] for line in lines[:-1]}) >= 6
    made = json.loads(CliRunner().invoke(cli, ["doctor", "--quick", "--json"]).output)
    assert {"level": "error", "theme": "rewards"}.items() <= made[[row["level"] for row in made].index("error")].items()


def test_the_stage_leaves_the_same_bytes_or_nothing() -> None:
    out, sampling = Path("data/doctor.txt"), Path("data/sampling_rewards.txt")
    arguments = [str(out), str(sampling)]
    mini.write_params(Path(), {"generate": {"group_size": 3}})
    done = CliRunner().invoke(stage, arguments)
    assert done.exit_code == 0, done.output
    assert "generate.group_size" in done.output
    assert (out.read_bytes(), sampling.read_bytes()) == (b"ok\n", b"none\n")
    assert CliRunner().invoke(stage, arguments).exit_code == 1  # it overwrites nothing
    out.unlink()
    assert CliRunner().invoke(stage, arguments).exit_code == 1
    sampling.unlink()
    mini.write_params(Path(), {"generate": {"max_model_len": 4}})
    done = CliRunner().invoke(stage, arguments)
    assert done.exit_code == 1
    assert "error    model    params.yaml: generate.max_tokens" in done.output
    assert not out.exists()


def test_what_a_way_to_sample_takes_is_said() -> None:
    """Its completions and prompts at most; more prompts than there are are refused where it needs them all."""

    def lines(**sample: object) -> list[str]:
        mini.write_params(Path(), {"generate": {"sample": None}})  # a map is laid over a map
        mini.write_params(Path(), {"generate": {"sample": sample}})
        return [f"{each.level} {each.where} {each.text}" for each in check_project(quick=True)]

    assert any("up to 640 completions, calls the rewards for them, and keeps 64" in line for line in lines(dynamic={}))
    assert any(" takes up to " in line for line in lines(dynamic={}))
    wrong = [line for line in lines(posterior={"pool": 5}) if line.startswith("error")]
    says = "generate.sample.posterior takes 80 prompts, but there are only 64; lower its numbers"
    assert any(says in line for line in wrong), wrong


def test_rewards_that_decide_what_is_sampled_leave_their_digest() -> None:
    """Of any round's `generate.sample`; it changes with settings, a round's own, and a file of rewards/."""

    def rounds(**own: object) -> None:
        Path("rounds.yaml").write_text(json.dumps({"rounds": {"r1": {"from": "base", **own}}}))

    said = [deciding_rewards()]
    mini.write_params(Path(), {"score": {"timeout_seconds": 7.0}})
    said.append(deciding_rewards())
    assert said == ["none", "none"]
    mini.write_params(Path(), {"generate": {"sample": {"retry": {"tries": 1}}}})
    said = [deciding_rewards()]
    rounds(generate={"sample": None})
    said.append(deciding_rewards())
    assert said[0] == said[1] != "none", "params.yaml counts for rounds that are added later"
    mini.write_params(Path(), {"generate": {"sample": None}})
    said.append(deciding_rewards())
    assert said[2] == "none"
    rounds(generate={"sample": {"dynamic": {}}})
    said.append(deciding_rewards())
    assert said[3] == said[0]
    rounds(generate={"sample": {"dynamic": {}}}, score={"timeout_seconds": 8.0})
    assert deciding_rewards() == said[3], "a limit changes no value"
    rounds(generate={"sample": {"dynamic": {}}}, score={"rewards": {"answer": {"weight": 0.5}}})
    said.append(deciding_rewards())
    mini.write_params(Path(), {"score": {"rewards": {"answer": {"weight": 0.25}}}})
    said.append(deciding_rewards())
    with Path("rewards/example.py").open("a") as file:
        file.write("# another\n")
    said.append(deciding_rewards())
    assert len({*said[3:]}) == 4


def test_the_quick_check_loads_nothing_heavy() -> None:
    script = (
        "import sys; from gift.doctor.run import check_project; check_project(quick=True); "
        "print(*sys.modules.keys() & {'torch', 'vllm', 'deepspeed', 'transformers', 'datasets', 'dvc'})"
    )
    assert mini.run([sys.executable, "-c", script], Path(), mini.environment()).split() == []
