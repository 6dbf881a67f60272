"""The judge against vLLM's own OpenAI server, on loopback."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mini
import psutil
import pytest
import tiny
from forks import VLLM, forks
from judge_server import free_port
from transformers import Qwen3Config, Qwen3ForCausalLM

from gift.rewards import judge_client
from gift.rewards.judge import judge


@pytest.fixture(scope="module")
def vllm_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server on loopback, with a tiny random model."""
    folder = tmp_path_factory.mktemp("judge")
    config = Qwen3Config(
        vocab_size=tiny.VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the least that vLLM takes on a CPU
        max_position_embeddings=4096,
        eos_token_id=tiny.SPECIAL.index("<eos>"),
    )
    tiny.save(folder, Qwen3ForCausalLM, config, tiny.byte_tokenizer(chat=True, context=4096), scale=0.05)
    port = free_port()
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny-judge", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    # Engine and worker share a process: each more imports vLLM again, which is most of the time that the start takes.
    command += ["--distributed-executor-backend", "uni"]
    environment = {**mini.environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment["VLLM_NO_USAGE_STATS"] = "1"
    server = forks(*VLLM).start(command, environment, folder / "log")
    try:
        deadline = time.monotonic() + 200
        while not _listens(port):
            assert psutil.Process(server).status() != psutil.STATUS_ZOMBIE, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server, signal.SIGKILL)
        forks(*VLLM).wait(server)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_real_server_gives_verdicts(vllm_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model cannot judge, so vLLM's structured outputs hold it to the form of a verdict."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(judge_client.ENDPOINT, vllm_endpoint)
    scores = [f"Reasons.\nScore: {score}" for score in (3, 7)]
    settings = {"max_retries": 0, "max_tokens": 64}

    def verdicts(texts: list[str], model: str = "tiny-judge", **more: Any) -> list[float | Exception]:
        rows = len(texts)
        return judge(["What is 2+2?"] * rows, texts, [[0]] * rows, ["p"] * rows, model=model, **settings, **more)

    rubric = {"extra_body": {"structured_outputs": {"regex": r"Reasons\.\nScore: [37]"}}}
    values = verdicts(["4", "four", "5"], **rubric)
    assert set(values) <= {2 / 9, 6 / 9}
    kept = mini.content(tmp_path)
    assert len(kept) == 3
    answers = {json.loads(content)["answer"] for content in kept.values()}
    assert answers <= set(scores)
    shutil.rmtree(tmp_path / "data")
    assert verdicts(["4", "four", "5"], **rubric) == values  # temperature 0 and a seed: the same again
    pairs = {"mode": "pairwise", "extra_body": {"structured_outputs": {"choice": ["[[A]]", "[[B]]", "[[C]]"]}}}
    compared = verdicts(["4", "four", "5"], **pairs)
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in compared), compared
    (value,) = verdicts(["free"])
    assert isinstance(value, ValueError)
    assert "cut at settings.max_tokens" in str(value) or "last line" in str(value)
    (value,) = verdicts(["x" * 5000])
    assert "HTTP 400" in str(value)
    (value,) = verdicts(["free"], model="another")
    assert "HTTP 404 (see settings.model" in str(value)
