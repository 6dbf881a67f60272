"""The real vLLM engine, with and without an adapter: seeded, and with the trainer's own log-probs.

Run as a script it is that engine: requests from stdin, the completions of three runs of them to stdout, as JSON; in
the third one more token ends a completion. With `--idle` it loads, says so, and waits.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import mini
import numpy as np
import psutil
import pytest
from forks import VLLM, forks

from gift.policy.folder import PolicyFiles, load_tokenizer
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.sampling.engine.by_vllm import VLLM_LORA_RANKS, Vllm
from gift.sampling.engine.requests import Completion, Request
from gift.sampling.engine.start import start_sampler
from gift.sampling.settings import GenerateLaunch, Sampling

MAX_TOKENS = 10  # enough for a bare answer, too few for a worked one
PROMPTS = [f"{a}+{b}-{c}+{d}=" for a, b, c, d in ((1, 2, 3, 4), (9, 9, 1, 5), (7, 1, 8, 2), (3, 3, 3, 3), (5, 6, 2, 9))]
TEMPERATURES = (0.0, 0.7, 1.0)
SAMPLES = 4
# Together more prompt tokens than vLLM takes in a step (4096 on a CPU), so that the last one would be cut in two there.
ANOTHER_END = 5  # a character that answers often have
LONG = ["".join(f"{(a * b) % 9 + 1}+" for b in range(1, 55)) + f"{a % 10}+{a // 10}=" for a in range(1, 49)]
SAMPLING = Sampling(engine="vllm", dtype="float32", max_tokens=MAX_TOKENS)


def engine(policy: PolicyFiles) -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == VLLM_LORA_RANKS
    requests = [Request(np.array(ids), *rest) for ids, *rest in json.load(sys.stdin)]
    ends = [load_tokenizer(policy.model).eos_token_id]
    sample, _ = start_sampler(policy, SAMPLING, ends, 128, GenerateLaunch())
    # The second time in another order and other company: a request's result is its own.
    backwards = sample(requests[::-1])[::-1]
    runs = [sample(requests), backwards]
    ends.append(ANOTHER_END)
    runs.append(sample(requests))
    values = [
        [[each.completion_ids.tolist(), each.logprobs.tolist(), each.finish_reason] for each in run] for run in runs
    ]
    json.dump(values, sys.stdout)


def test_asking_for_a_gpu_leaves_it_to_the_processes_that_vllm_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's question initialises CUDA in this process, which no fork survives, unless it may ask NVML instead."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")
    monkeypatch.setattr("gift.sampling.engine.start.check_files", lambda folder: None)
    monkeypatch.setattr("gift.sampling.engine.by_vllm.read_config", lambda folder: {})
    monkeypatch.setitem(sys.modules, "vllm", None)
    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: asked.append(os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]))
    with pytest.raises(UserError, match="vLLM cannot be imported"):
        start_sampler(PolicyFiles(Path("base")), SAMPLING, [1], 128, GenerateLaunch(tensor_parallel_size=2))
    assert set(asked) == {"1"}


def test_an_adapter_in_float32_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM itself says of it is an assertion without a word."""
    monkeypatch.setattr("gift.sampling.engine.start.check_files", lambda folder: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match=r"generate.dtype, evaluate.dtype: float32: .* in bfloat16 only; set it"):
        start_sampler(PolicyFiles(Path("base"), Path("adapter")), SAMPLING, [1], 128, GenerateLaunch())


def run_engine(folder: Path, requests: list[Request], *folders: Path) -> list[list[Completion]]:
    """In a process of its own: vLLM leaves process groups and settings of torch behind."""
    asked, out, errors = (folder / name for name in ("requests.json", "runs.json", "errors.txt"))
    asked.write_text(json.dumps([[each.prompt_ids.tolist(), each.seed, each.temperature] for each in requests]))
    env = {**mini.environment(), "PYTHONPATH": str(mini.ROOT)}
    pid = forks(*VLLM).start([__file__, *map(str, folders)], env, out, errors=errors, stdin=asked)
    assert forks(*VLLM).wait(pid) == 0, errors.read_text()
    runs = json.loads(out.read_text())
    return [[Completion(np.array(ids), np.array(logprobs), why) for ids, logprobs, why in run] for run in runs]


@pytest.fixture(scope="module")
def policy(world: Path) -> Path:
    return world / "data/rounds/base/policy"


@pytest.mark.slow
def test_nothing_is_left_of_an_engine_with_processes_of_its_own_when_its_process_is_killed(policy: Path) -> None:
    """As with a tensor_parallel_size above 1: vLLM's own processes do not look whether anybody is there for them."""
    env = {**mini.environment(), "PYTHONPATH": str(mini.ROOT), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    loaded = subprocess.Popen(
        [sys.executable, __file__, "--idle", str(policy)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert loaded.stdout
    assert "loaded\n" in iter(loaded.stdout.readline, "")
    below = psutil.Process(loaded.pid).children(recursive=True)
    assert any("EngineCore" in each.cmdline()[0] for each in below)
    loaded.kill()
    loaded.communicate()
    assert not psutil.wait_procs(below, 10)[1]


@pytest.fixture(scope="module")
def requests(policy: Path) -> list[Request]:
    tokenizer = load_tokenizer(policy)
    asked = [
        (text, temperature, sample) for text in PROMPTS for temperature in TEMPERATURES for sample in range(SAMPLES)
    ]
    asked += [(text, 1.0, index) for index, text in enumerate(LONG)]
    return [
        Request(np.array(tokenizer(text)["input_ids"]), 2**40 + 7 * sample, temperature)
        for text, temperature, sample in asked
    ]


@pytest.fixture(scope="module")
def runs(policy: Path, requests: list[Request], tmp_path_factory: pytest.TempPathFactory) -> list[list[Completion]]:
    return run_engine(tmp_path_factory.mktemp("vllm"), requests, policy)


def of_temperature(runs: list[list[Completion]], requests: list[Request], temperature: float) -> list[int]:
    return [index for index, request in enumerate(requests) if request.temperature == temperature]


def test_the_same_request_gives_the_same_tokens_and_logprobs(runs: list[list[Completion]]) -> None:
    first, second, _ = runs
    assert [each.completion_ids.tolist() for each in first] == [each.completion_ids.tolist() for each in second]
    for one, two in zip(first, second, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)


def test_samples_of_one_prompt_differ_by_their_seed(runs: list[list[Completion]], requests: list[Request]) -> None:
    for index in range(0, len(requests), SAMPLES):
        distinct = {tuple(each.completion_ids) for each in runs[0][index : index + SAMPLES]}
        assert (len(distinct) > 1) == (requests[index].temperature > 0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_trainers_forward(
    runs: list[list[Completion]], requests: list[Request], policy: Path, temperature: float
) -> None:
    from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
    from gift.policy.open import open_policy

    rows = of_temperature(runs, requests, temperature)
    prompts = Ragged.of([requests[row].prompt_ids for row in rows], np.int32)
    completions = Ragged.of([runs[0][row].completion_ids for row in rows], np.int32)
    model = TokenLogprobs(open_policy(PolicyFiles(policy), "float32"), temperature)
    ours = completion_logprobs(model, prompts, completions, [list(range(len(rows)))])
    for row, values in zip(rows, ours, strict=True):
        assert runs[0][row].logprobs == pytest.approx(values.tolist(), abs=1e-4)


def test_a_completion_ends_with_the_end_token_or_at_the_limit(runs: list[list[Completion]], policy: Path) -> None:
    end = load_tokenizer(policy).eos_token_id
    reasons = set()
    for each in runs[0]:
        reasons.add(each.finish_reason)
        if each.finish_reason == "stop":
            assert each.completion_ids[-1] == end
        else:
            assert (each.finish_reason, len(each.completion_ids)) == ("length", MAX_TOKENS)
        assert end not in each.completion_ids[:-1]
        assert len(each.logprobs) == len(each.completion_ids)
    assert reasons == {"stop", "length"}


def test_one_end_token_more_cuts_completions_behind_it(runs: list[list[Completion]]) -> None:
    cut = 0
    for whole, each in zip(runs[0], runs[2], strict=True):
        ids = whole.completion_ids.tolist()
        length = ids.index(ANOTHER_END) + 1 if ANOTHER_END in ids else len(ids)
        assert each.completion_ids.tolist() == ids[:length]
        assert each.logprobs == pytest.approx(whole.logprobs[:length], abs=1e-5)
        assert each.finish_reason == ("stop" if ANOTHER_END in ids else whole.finish_reason)
        cut += length < len(ids)
    assert cut > 5


def test_greedy_is_transformers_greedy(runs: list[list[Completion]], requests: list[Request], policy: Path) -> None:
    import torch

    from gift.policy.open import open_policy

    model = open_policy(PolicyFiles(policy), "float32")
    for row in of_temperature(runs, requests, 0.0)[::SAMPLES]:
        ids = torch.tensor([requests[row].prompt_ids.tolist()])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_TOKENS, pad_token_id=0)
        assert out[0, ids.shape[1] :].tolist() == runs[0][row].completion_ids.tolist()


def test_logprobs_under_an_adapter_are_those_of_the_trainers_forward(
    requests: list[Request], policy: Path, tmp_path: Path
) -> None:
    import torch

    from gift.logprobs.tokens import TokenLogprobs, completion_logprobs
    from gift.policy.adapter import adapter_config, adapter_weights, fill
    from gift.policy.open import Training, open_policy
    from gift.policy.settings import Lora
    from tests.states import save_policy

    base = PolicyFiles(policy)
    model = open_policy(base, "float32", training=Training(Lora(r=4, lora_alpha=6), 0))
    generator = torch.Generator().manual_seed(5)
    fill(model, {name: torch.randn(p.shape, generator=generator) / 8 for name, p in adapter_weights(model).items()})
    trained = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    files = save_policy(tmp_path / "adapter", base, trained, "float32", adapter_config(model))
    asked = [requests[row] for row in range(len(requests)) if requests[row].temperature == 1.0]
    sampled, _, _ = run_engine(tmp_path, asked, policy, files.folder)
    prompts = Ragged.of([each.prompt_ids for each in asked], np.int32)
    completions = Ragged.of([each.completion_ids for each in sampled], np.int32)
    ours, without = (
        completion_logprobs(TokenLogprobs(each, 1.0), prompts, completions, [list(range(len(asked)))])
        for each in (open_policy(files, "float32"), open_policy(base, "float32"))
    )
    for each, values in zip(sampled, ours, strict=True):
        assert each.logprobs == pytest.approx(values.tolist(), abs=1e-4)
    assert max(float(abs(a - b).max()) for a, b in zip(ours, without, strict=True)) > 0.5


if __name__ == "__main__":
    from gift.project import console

    console.quiet()
    if sys.argv[1] == "--idle":
        loaded = Vllm(PolicyFiles(Path(sys.argv[2])), "float32", 128, GenerateLaunch(), None)
        print("loaded", flush=True)
        time.sleep(600)
    engine(PolicyFiles(*map(Path, sys.argv[1:])))
