"""Every mistake is one clear message with exit code 1, and nothing is published or overwritten."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from gift.policy.folder import write_lineage
from gift.tables.prompts import write_prompts
from stages.doctor import main as doctor

Damage = Callable[[], None]
ROUND = Path("data/rounds/r1")
BASE = Path("data/rounds/base/policy")
PART = "part-00001.parquet"
SECTIONS = ("prepare", "base", "generate", "score", "reference", "update", "evaluate")


@pytest.fixture(autouse=True)
def folder(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copied)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return copied


def run(address: str) -> Any:
    """A stage's command in this process, without the launcher."""
    words = mini.command(Path(), address)
    module, *arguments = [word for word in words if word not in ("-m", "gift.launch")]
    return CliRunner().invoke(importlib.import_module(module).main, arguments)


def refusal(address: str) -> str:
    """The one message with which a stage ends that has not been run yet; nothing has changed."""
    before = published()
    result = run(address)
    lines = result.output.splitlines()
    assert isinstance(result.exception, SystemExit), result.output or repr(result.exception)
    assert result.exit_code == 1, result.output
    assert [line[:6] for line in lines if not line.startswith(" ")] == ["error:"], result.output
    assert not any(path.exists() for path in mini.outputs(Path(), address)), "published"
    assert published() == before
    return str(result.output)


def published() -> dict[str, bytes]:
    return {
        name: data for name, data in mini.content(Path("data")).items() if not name.startswith((".work/", ".cache/"))
    }


def check(address: str, words: tuple[str, ...], damage: Damage) -> None:
    mini.remove_outputs(Path(), address)
    damage()
    said = refusal(address)
    assert [word for word in words if word not in said] == [], said


# --- settings ---------------------------------------------------------------------------------------------------------


def params(**changes: Any) -> Damage:
    return lambda: mini.write_params(Path(), changes)


def text(name: str, content: str) -> Damage:
    return lambda: Path(name).write_text(content, encoding="utf-8") and None


def without(name: str) -> Damage:
    return lambda: shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()


def together(*damages: Damage) -> Damage:
    return lambda: [damage() for damage in damages] and None


def learning_rate(line: str) -> Damage:
    """Write update.lr of the project's own params.yaml as a person would."""

    def damage() -> None:
        content = (mini.ROOT / "params.yaml").read_text(encoding="utf-8")
        changed, count = re.subn(r"^  lr: .*\n", line, content, flags=re.MULTILINE)
        assert count == 1
        Path("params.yaml").write_text(changed, encoding="utf-8")

    return damage


SETTINGS: dict[str, tuple[str, tuple[str, ...], Damage]] = {
    "group of one": (
        "generate@r1",
        ("params.yaml: generate.group_size: 1: must be greater than or equal to 2",),
        params(generate={"group_size": 1}),
    ),
    "misspelt": (
        "generate@r1",
        ("params.yaml: generate.temprature: unknown key; did you mean 'temperature'?",),
        params(generate={"temprature": 1.0}),
    ),
    "two mistakes, both named": (
        "update@r1",
        ("params.yaml: update.lr: -1.0: must be greater than 0", "params.yaml: update.epochs: 0: must be"),
        params(update={"lr": -1.0, "epochs": 0}),
    ),
    "a number in quotes": (
        "update@r1",
        ("params.yaml: update.lr: '1e-6': must be a valid number; it is text: take the quotes away",),
        learning_rate('  lr: "1e-6"\n'),
    ),
    "missing key": ("update@r1", ("params.yaml: update.lr: missing",), learning_rate("")),
    "wrong choice": (
        "generate@r1",
        ("params.yaml: generate.engine: 'vlm': must be 'vllm' or 'transformers'",),
        params(generate={"engine": "vlm"}),
    ),
    "top_p while training": (
        "generate@r1",
        ("params.yaml: generate: top_p must be 1 for training",),
        params(generate={"top_p": 0.9}),
    ),
    "no such reward as correct": (
        "evaluate@r1",
        ("params.yaml: evaluate.correct: 'anser' is no key of score.rewards (answer, short)",),
        params(evaluate={"correct": "anser"}),
    ),
    "correct is not 0 or 1": (
        "evaluate@r1",
        ("params.yaml: evaluate.correct: 'short' gave 0.", "prompt_id="),
        params(evaluate={"correct": "short"}),
    ),
    "no params.yaml": ("generate@r1", ("params.yaml: no such file", "project's folder"), without("params.yaml")),
    "invalid YAML": ("generate@r1", ("params.yaml:2: not valid YAML:",), text("params.yaml", "seed: 0\nprepare: ]\n")),
    "a key twice": ("generate@r1", ("params.yaml:2: not valid YAML:", "lr"), text("params.yaml", "lr: 1\nlr: 2\n")),
    "no mapping": ("generate@r1", ("params.yaml: must be a mapping",), text("params.yaml", "- seed\n")),
    "empty": ("generate@r1", ("params.yaml: generate: missing",), text("params.yaml", "")),
    "misspelt in launch.yaml": (
        "update@r1",
        ("launch.yaml: update.zero_stag: unknown key; did you mean 'zero_stage'?",),
        text("launch.yaml", "update: {zero_stag: 1}\n"),
    ),
    "more prompts than there are": (
        "generate@r1",
        ("params.yaml: generate.prompts_per_round: 65: there are only 64 training prompts", "prepare.num_train"),
        params(generate={"prompts_per_round": 65}),
    ),
    "prompts that do not fit": (
        "generate@r1",
        ("params.yaml: generate.max_tokens: 30: 64 prompts are too long for a context of 32", "prompt_id=", "drop"),
        params(generate={"max_tokens": 30, "max_model_len": 32}),
    ),
    "held-out prompts that do not fit": (
        "generate_eval@r1",
        ("params.yaml: evaluate.max_tokens: 30: 16 prompts are too long",),
        params(evaluate={"max_tokens": 30, "max_model_len": 32}),
    ),
    "no prompt left": (
        "generate@r1",
        ("params.yaml: generate.prompts_per_round: 16: there are only 0 training prompts",),
        params(generate={"max_tokens": 30, "max_model_len": 32, "long_prompts": "drop"}),
    ),
    "more context than the model has": (
        "generate@r1",
        ("params.yaml: generate.max_model_len: 1000000: the policy's context is", "tokens; lower it"),
        params(generate={"max_model_len": 10**6}),
    ),
    "batches smaller than a sequence": (
        "reference@r1",
        ("launch.yaml: tokens_per_batch: 8 is less than one sequence of", "raise it"),
        text("launch.yaml", "reference: {tokens_per_batch: 8}\n"),
    ),
    "sampler and trainer differ": (
        "reference@r1",
        ("params.yaml: reference.max_mean_gap: sampler and trainer differ by", "prompt_id=", "generate.dtype"),
        params(reference={"max_mean_gap": 1e-12}),
    ),
    "drift": (
        "update@r1",
        ("update@r1: step 2:", "update.max_drift = 1e-09", "Lower update.lr"),
        params(update={"max_drift": 1e-9}),
    ),
    "bfloat16 without ZeRO": (
        "update@r1",
        ("launch.yaml: update.zero_stage: 0", "update.dtype bfloat16", "use zero_stage 1"),
        together(params(update={"dtype": "bfloat16"}), text("launch.yaml", "update: {zero_stage: 0}\n")),
    ),
    "a misspelt key of the adapter": (
        "update@r1",
        ("params.yaml: update.lora.lora_alfa: unknown key; did you mean 'lora_alpha'?", "update.lora.lora_alpha: miss"),
        params(update={"lora": {"r": 8, "lora_alfa": 16}}),
    ),
    "an adapter that vLLM has no room for": (
        "update@r1",
        ("params.yaml: update.lora.r: 513: must be less than or equal to 512",),
        params(update={"lora": {"r": 513, "lora_alpha": 16}}),
    ),
    "modules of the adapter that are no list": (
        "update@r1",
        ("params.yaml: update.lora.target_modules: 'q_proj': must be all-linear, or a list",),
        params(update={"lora": {"r": 8, "lora_alpha": 16, "target_modules": "q_proj"}}),
    ),
    "an adapter on the head": (
        "update@r1",
        ("params.yaml: update.lora.target_modules: 'lm_head' is not (only) linear layers", "choose from down_proj,"),
        params(update={"lora": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "lm_head"]}}),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_is_named_with_its_rule(name: str) -> None:
    check(*SETTINGS[name])


DOCTOR: dict[str, tuple[tuple[str, ...], Damage]] = {
    "misspelt": (
        ("update.warmup_stps: unknown key; did you mean 'warmup_steps'?",),
        params(update={"warmup_stps": 1}),
    ),
    "unknown section": (("tokenizer: unknown key; known: seed,",), params(tokenizer={})),
    "empty": (tuple(f"{name}: missing" for name in ("seed", *SECTIONS)), text("params.yaml", "")),
}
"""A stage reads its own sections alone; `dvc repro` starts with the doctor, which knows all."""


@pytest.mark.parametrize("name", DOCTOR)
def test_what_no_other_stage_reads_the_doctor_refuses(name: str) -> None:
    words, damage = DOCTOR[name]
    assert "error    settings" not in run_doctor()
    damage()
    lines = [line for line in run_doctor().splitlines() if line.startswith("error    settings")]
    assert len(lines) == len(words), lines
    for line, word in zip(lines, words, strict=True):
        assert f"params.yaml: {word}" in line


def run_doctor() -> str:
    out, sampling = Path("data/doctor.txt"), Path("data/sampling_rewards.txt")
    result = CliRunner().invoke(doctor, [str(out), str(sampling)])
    assert result.exit_code == 1, "a copy has neither git nor DVC"
    assert not out.exists()
    assert not sampling.exists()
    return str(result.output)


def test_the_launcher_refuses_too_and_starts_nothing() -> None:
    mini.remove_outputs(Path(), "update@r1")
    for content, words in {
        "update: {launchr: srun}": "launch.yaml: update.launchr: unknown key; did you mean 'launcher'?",
        "update: {num_processes: 2}": "launch.yaml: update.num_processes: 2: in_process runs one",
    }.items():
        Path("launch.yaml").write_text(content)
        done = subprocess.run(
            [sys.executable, *mini.command(Path(), "update@r1")], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert done.stderr.startswith(f"error: {words}")


# --- tables -----------------------------------------------------------------------------------------------------------


def changed(table: str, change: Callable[[pa.Table], pa.Table], part: str = PART) -> Damage:
    """Write one part anew with other rows and the metadata it had, as a script that patches data would."""

    def damage() -> None:
        path = ROUND / table / part
        old = pq.read_table(path)
        pq.write_table(change(old).replace_schema_metadata(old.schema.metadata), path)

    return damage


def with_value(name: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        position = table.column_names.index(name)
        return table.set_column(position, pa.field(name, table[name].type), pa.array(values, table[name].type))

    return change


def reordered(rows: list[int]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.take([*rows, *range(len(rows), table.num_rows)])


def in_bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda: Path(name).write_bytes(change(Path(name).read_bytes())) and None


def flipped(data: bytes) -> bytes:
    """One bit is another one, in the middle."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def bit_flipped(path: Path, column: str) -> None:
    """One bit of a column's values is another one; pyarrow reads some such files without a word."""
    file = pq.ParquetFile(path)
    chunk = file.metadata.row_group(0).column(file.schema_arrow.names.index(column))
    end = (
        min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
        + chunk.total_compressed_size
    )
    data = bytearray(path.read_bytes())
    data[end - 1] ^= 4
    path.write_bytes(data)


def not_ours() -> None:
    path = ROUND / "rollouts" / PART
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def of_another_run() -> None:
    path = ROUND / "rollouts" / PART
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"gift"]) | {"seed": 7}
    pq.write_table(table.replace_schema_metadata({b"gift": json.dumps(metadata).encode()}), path)


def equal_rewards() -> None:
    for part in sorted((ROUND / "scores").iterdir()):
        changed("scores", lambda t: t.set_column(2, "reward", pa.array([0.5] * t.num_rows)), part.name)()


def swapped_tensors() -> None:
    path = BASE / "model.safetensors"
    tensors = load_file(path)
    one, other = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, path, metadata={"format": "pt"})


ROLLOUTS = str(ROUND / "rollouts" / PART)
TABLES: dict[str, tuple[str, tuple[str, ...], Damage]] = {
    "truncated": (
        "score@r1",
        (f"{ROLLOUTS}: not a readable Parquet file", "dvc checkout"),
        in_bytes(ROLLOUTS, lambda data: data[: len(data) // 2]),
    ),
    "empty file": ("score@r1", (f"{ROLLOUTS}: not a readable Parquet file",), in_bytes(ROLLOUTS, lambda data: b"")),
    "a bit of a seed flipped": (
        "reference@r1",
        (f"{ROLLOUTS}: not a readable Parquet file",),
        lambda: bit_flipped(Path(ROLLOUTS), "seed"),
    ),
    "a bit of a log-prob flipped": (
        "update@r1",
        ("r1/reference/part-00001.parquet: not a readable Parquet file",),
        lambda: bit_flipped(ROUND / "reference" / PART, "old_logprobs"),
    ),
    "no Parquet": ("update@r1", (f"{ROLLOUTS}: not a readable",), text(ROLLOUTS, "prompt_id,sample\n")),
    "prompts truncated": (
        "generate@r1",
        ("data/prompts/train.parquet: not a readable Parquet file",),
        in_bytes("data/prompts/train.parquet", lambda data: data[:-20]),
    ),
    "not ours": ("score@r1", (f"{ROLLOUTS}: was not written by this pipeline",), not_ours),
    "of another run": (
        "score@r1",
        (f"{ROLLOUTS}: was not made in the same run as data/rounds/r1/rollouts/part-00000.parquet",),
        of_another_run,
    ),
    "a part is missing": (
        "score@r1",
        ("data/rounds/r1/rollouts/part-00002.parquet: unexpected file; the table's next part must be part-00001",),
        without(ROLLOUTS),
    ),
    "a foreign file": (
        "score@r1",
        ("data/rounds/r1/rollouts/notes.txt: unexpected file",),
        text(str(ROUND / "rollouts/notes.txt"), "mine"),
    ),
    "no table": (
        "update@r1",
        ("data/rounds/r1/reference: no such table; run `dvc repro`",),
        without("data/rounds/r1/reference"),
    ),
    "a column is missing": (
        "reference@r1",
        (f"{ROLLOUTS}: the column 'rollout_logprobs' is missing",),
        changed("rollouts", lambda table: table.drop_columns("rollout_logprobs")),
    ),
    "a column too many": (
        "update@r1",
        (f"{ROLLOUTS}: unexpected column 'note'",),
        changed("rollouts", lambda table: table.append_column("note", table["completion"])),
    ),
    "another type": (
        "score@r1",
        (f"{ROLLOUTS}: column 'seed' has type double, must be int64",),
        changed("rollouts", lambda table: table.set_column(7, "seed", table["seed"].cast("double", safe=False))),
    ),
    "a null": (
        "score@r1",
        (f"{ROLLOUTS}: row 3: 'completion' is null",),
        changed("rollouts", with_value("completion", 3, None)),
    ),
    "a log-prob of NaN": (
        "reference@r1",
        (f"{ROLLOUTS}: row 5 (prompt_id=", "sample=1): rollout_logprobs holds nan; a log-prob is finite"),
        changed("rollouts", with_value("rollout_logprobs", 5, lambda old: [float("nan")] * len(old))),
    ),
    "a log-prob of -inf": (
        "update@r1",
        ("reference/part-00001.parquet: row 2 (prompt_id=", "sample=2): old_logprobs holds -inf"),
        changed("reference", with_value("old_logprobs", 2, lambda old: [float("-inf")] * len(old))),
    ),
    "a log-prob too few": (
        "score@r1",
        (f"{ROLLOUTS}: row 4 (prompt_id=", "rollout_logprobs is not as long as the completion"),
        changed("rollouts", with_value("rollout_logprobs", 4, lambda old: [*old, -1.0])),
    ),
    "rows out of order": (
        "score@r1",
        (f"{ROLLOUTS}: row 1: prompt_id=", "rows must be sorted"),
        changed("rollouts", reordered([1, 0])),
    ),
    "a row twice": (
        "score@r1",
        (f"{ROLLOUTS}: row 1: the key prompt_id=", "occurs twice"),
        changed("rollouts", reordered([0, 0])),
    ),
    "a sample is missing": (
        "score@r1",
        (f"{ROLLOUTS}: prompt_id=", "has 3 samples; every group must have samples 0 to"),
        changed("rollouts", lambda table: table.slice(0, table.num_rows - 1)),
    ),
    "scores of fewer rows": (
        "update@r1",
        ("data/rounds/r1/scores: its rows are not those of the rollouts (60 against 64)",),
        changed("scores", lambda table: table.slice(0, 12), "part-00003.parquet"),
    ),
    "a failed score with a value": (
        "update@r1",
        ("scores/part-00001.parquet: row 2 (prompt_id=", "answer"),
        changed("scores", with_value("answer_status", 2, "timeout")),
    ),
    "nothing to learn": (
        "update@r1",
        ("data/rounds/r1/scores: no group can train: of 16, 16 have equal rewards", "raise generate.group_size"),
        equal_rewards,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_refused_by_file_and_row(name: str) -> None:
    check(*TABLES[name])


# --- policies ---------------------------------------------------------------------------------------------------------


def other_policy() -> None:
    """Another policy stands where the round starts from, whole and with its own lineage."""
    shutil.rmtree(BASE)
    shutil.copytree(ROUND / "policy", BASE)


def other_policy_for_update() -> None:
    path = BASE / "config.json"
    path.write_text(path.read_text() + "\n")
    write_lineage(BASE)


def chat_prompts() -> None:
    path = Path("data/prompts/train.parquet")
    ids = [f"p{number:02d}" for number in range(20)]
    messages = pa.array([[{"role": "user", "content": "1+1="}]] * len(ids))
    write_prompts(path, pa.table({"prompt_id": ids, "messages": messages}), {"artifact": "prompts"})


def model_folder(*left_out: str) -> Damage:
    """base.model is a local folder in which some files are missing."""

    def damage() -> None:
        shutil.copytree(ROUND / "policy", "model", ignore=shutil.ignore_patterns("gift.json", *left_out))
        mini.write_params(Path(), {"base": {"model": "model"}})

    return damage


POLICIES: dict[str, tuple[str, tuple[str, ...], Damage]] = {
    "rollouts of another policy, seen by the reference": (
        "reference@r1",
        ("data/rounds/r1/rollouts: sampled by policy", "dvc repro generate@r1"),
        other_policy,
    ),
    "rollouts of another policy, seen by the update": (
        "update@r1",
        ("data/rounds/r1/rollouts: made with policy", "but data/rounds/base/policy is", "dvc repro generate@r1"),
        other_policy_for_update,
    ),
    "weights changed": (
        "generate@r1",
        ("data/rounds/base/policy: its files are not those of digest", "dvc checkout"),
        in_bytes(str(BASE / "model.safetensors"), flipped),
    ),
    "two tensors of one shape swapped": (
        "generate@r1",
        ("data/rounds/base/policy: its files are not those of digest", "dvc checkout"),
        swapped_tensors,
    ),
    "tokenizer changed": (
        "update@r1",
        ("data/rounds/base/policy: its files are not those of digest",),
        in_bytes(str(BASE / "tokenizer.json"), lambda data: data + b"\n"),
    ),
    "a file more": (
        "reference@r1",
        ("data/rounds/base/policy: its files are not those of digest",),
        text(str(BASE / "adapter_config.json"), "{}"),
    ),
    "lineage damaged": ("generate@r1", ("gift.json: is damaged",), text(str(BASE / "gift.json"), "{")),
    "no policy": (
        "generate_eval@r1",
        ("data/rounds/r1/policy: no policy here (gift.json is missing); `dvc repro` makes it",),
        without(str(ROUND / "policy")),
    ),
    "no optimizer state": (
        "update@r1",
        ("data/rounds/base/optimizer: no optimizer state", "update.optimizer_state to reset"),
        without("data/rounds/base/optimizer/state.json"),
    ),
    "damaged optimizer state": (
        "update@r1",
        ("data/rounds/base/optimizer/state.safetensors: not a readable training state", "dvc checkout"),
        text("data/rounds/base/optimizer/state.safetensors", "x"),
    ),
    "messages without a chat template": (
        "generate@r1",
        ("data/rounds/base/policy: its tokenizer has no chat template", "prepare.chat: false"),
        chat_prompts,
    ),
    "model without tokenizer": (
        "base",
        ("no tokenizer beside the model", "tokenizer.save_pretrained"),
        model_folder("tokenizer*"),
    ),
    "model without safetensors": (
        "base",
        ("no *.safetensors weights", "save_pretrained"),
        model_folder("*.safetensors"),
    ),
    "model without config": ("base", ("no model (config.json is missing)", "base.model"), model_folder("config.json")),
    "no such model": (
        "base",
        ("params.yaml: base.model: 'nobody/no-such-model' could not be fetched from the hub", "local model folder"),
        params(base={"model": "nobody/no-such-model"}),
    ),
    "no such folder": (
        "base",
        ("params.yaml: base.model: './models/mine' is neither 'arithmetic', a local folder, nor a hub id",),
        params(base={"model": "./models/mine"}),
    ),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_is_not_what_it_says_is_refused(name: str) -> None:
    check(*POLICIES[name])


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [address for address in mini.ORDER if address not in ("code", "report")])
def test_what_exists_is_never_overwritten(address: str) -> None:
    before = published()
    result = run(address)
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
    path, what = result.output.removeprefix("error: ").split(": ", 1)
    assert Path(path) in mini.outputs(Path(), address)
    assert what.startswith("exists already; nothing was changed")
    assert published() == before


def test_a_finished_part_that_was_damaged_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash of the machine, whose disk kept a name but not its content."""
    mini.remove_outputs(Path(), "score@r1")
    with monkeypatch.context() as patch:
        patch.setattr("gift.project.work.Work.publish", lambda self, moves: sys.exit(1))
        assert run("score@r1").exit_code == 1
    part = Path("data/.work/score@r1/everything") / PART
    bit_flipped(part, "reward")
    result = run("score@r1")
    said = f"{part}: is not what was written before the stage was stopped; it is made again\n"
    assert (result.exit_code, result.output[: len(said)]) == (0, said)
    assert "48/64 completions were finished before; going on" in result.output
