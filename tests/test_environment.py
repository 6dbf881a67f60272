"""What a stage finds in its environment: this Python, threads that do not spin, a quiet torch, or what was set."""

import os

import pytest

from gift.upkeep.command import BIN, environment


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TORCH_CPP_LOG_LEVEL", "GIFT_VERBOSE"):
        monkeypatch.delenv(name, raising=False)


def test_threads_sleep_early_and_python_is_found() -> None:
    found = environment()
    assert (found["GOMP_SPINCOUNT"], found["TORCH_CPP_LOG_LEVEL"]) == ("1000", "ERROR")
    assert found["PATH"].split(os.pathsep)[0] == str(BIN)
    assert "OMP_WAIT_POLICY" not in found


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "7")
    found = environment()
    assert found[name] == "7"
    assert len({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & found.keys()) == 1


def test_torch_speaks_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIFT_VERBOSE", "1")
    assert "TORCH_CPP_LOG_LEVEL" not in environment()
    monkeypatch.delenv("GIFT_VERBOSE")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")
    assert environment()["TORCH_CPP_LOG_LEVEL"] == "INFO"
