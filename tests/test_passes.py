"""The passes of a round with a sampler that is made up: what is kept, what it cost, what goes on after a kill."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gift.methods.sample.names import SAMPLE
from gift.methods.sample.passes import Ask, Stream, Wanted
from gift.policy.folder import Lineage, PolicyFiles
from gift.sampling.by_rewards import sizes_of, takes_turns, with_suffixes, write_kept
from gift.sampling.encoding import EncodedPrompts, encode_prompts
from gift.sampling.engine.requests import Completion, Request, Sampler
from gift.sampling.parts import Ask as Asked
from gift.sampling.parts import Here, decoder
from gift.sampling.passes import Groups, Kept, Rewards, Spent, run_passes
from gift.sampling.rollouts import Split, requests_of_groups, write_rollouts
from gift.tables.parts import keys_of, read_table
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.workers.settings import Workers
from tests.tiny import byte_tokenizer

IDS = [f"p{number:02d}" for number in range(12)]
PROMPTS = pa.table({"prompt_id": IDS, "prompt": [f"{number}?" for number in range(12)]})
METADATA = {"artifact": "rollouts", "policy": "p"}


def split_of(prompts: pa.Table, context: int = 64) -> Split:
    """A table of prompts in bytes."""
    tokenizer = byte_tokenizer(chat="messages" in prompts.column_names, context=context)
    encoded, opening = encode_prompts(tokenizer, prompts, {}, Path("policy"))
    lineage = Lineage(digest="p", base="p")
    asked = EncodedPrompts(encoded, opening, [1], context)
    return Split(PolicyFiles(Path("policy")), lineage, tokenizer, prompts, {}, asked, 0)


SPLIT = split_of(PROMPTS)


class Counted:
    """A sampler that answers with its request's seed, and how often it was started and asked."""

    def __init__(self) -> None:
        self.starts = self.requests = 0

    def start(self) -> tuple[Sampler, str]:
        self.starts += 1
        return self.sample, "made up 1"

    def sample(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += len(requests)
        return [answer(request) for request in requests]


def answer(request: Request) -> Completion:
    digits = np.frombuffer(str(request.seed % 100).encode(), np.uint8)
    ids = np.array([SPLIT.tokenizer.convert_tokens_to_ids(chr(digit)) for digit in digits], np.int32)
    return Completion(ids, np.full(len(ids), -1.0, np.float32), "stop")


def run(
    folder: Path, name: str, sampler: Counted, until: int | None = None, size: int = 3, **fields: Any
) -> tuple[Any, Spent]:
    """The rewards of a completion is whether its number is even; `until`: killed when that pass is to be scored."""

    def requests_of(asks: Sequence[Ask], number: int) -> Groups:
        tokens, _ = with_suffixes(SPLIT, asks, 16, Path("policy"))
        return requests_of_groups(tokens, {ask.prompt_id: ask.count for ask in asks}, 1.0, 7, number)

    def write(rollouts: Path, groups: Groups) -> None:
        own = METADATA | sizes_of(groups)
        ask = Asked(rollouts, own, {})
        write_rollouts(ask, groups, 3, Here(sampler.start, decoder(SPLIT.tokenizer)), "generate@r1")

    def score(rollouts: Path, number: int) -> Rewards:
        if number == until:
            raise KeyboardInterrupt
        table, _ = read_table(rollouts, ROLLOUTS, check_rollouts)
        return {
            key: 1.0 - int(text) % 2 for key, text in zip(keys_of(table), table["completion"].to_pylist(), strict=True)
        }

    way = SAMPLE[name]
    passes = way.passes(Stream(IDS, 0, 3), Wanted(4, size), way.settings.model_validate(fields))
    return run_passes(passes, folder, requests_of, write, score)


WAYS = {"dynamic": {"batch": 5}, "retry": {"tries": 2}, "refine": {}, "posterior": {"pool": 2, "quotas": True}}


@pytest.mark.parametrize("name", SAMPLE)
def test_what_is_kept_is_what_was_sampled(tmp_path: Path, name: str) -> None:
    """Every kept completion is that of its request, and is a group's; what it cost is what the sampler made."""
    sampler = Counted()
    kept, spent = run(tmp_path, name, sampler, **WAYS[name])
    assert list(kept) == sorted(kept)
    for each in kept.values():
        assert len(each.requests) == len(each.completions)
        for request, completion in zip(each.requests, each.completions, strict=True):
            assert completion.completion_ids.tolist() == answer(request).completion_ids.tolist()
        assert each.engine == "made up 1"
    assert spent.num_completions_sampled == sampler.requests
    assert spent.num_passes == len(list(tmp_path.glob("pass-*")))
    tables = [read_table(path / "rollouts", ROLLOUTS, check_rollouts)[0] for path in tmp_path.glob("pass-*")]
    assert spent.num_completions_sampled == sum(table.num_rows for table in tables)
    assert spent.num_groups_sampled == sum(len({*table["prompt_id"].to_pylist()}) for table in tables)
    assert spent.num_tokens_sampled == sum(len(ids) for table in tables for ids in table["completion_ids"].to_pylist())


@pytest.mark.parametrize("name", SAMPLE)
def test_what_was_sampled_before_a_kill_is_not_sampled_again(tmp_path: Path, name: str) -> None:
    whole = Counted()
    expected, spent = run(tmp_path / "whole", name, whole, **WAYS[name])
    first = Counted()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", name, first, until=spent.num_passes - 1, **WAYS[name])
    second = Counted()
    found, again = run(tmp_path / "killed", name, second, **WAYS[name])
    assert second.starts == second.requests == 0
    assert again == spent
    assert list(found) == list(expected)
    for one, other in zip(found.values(), expected.values(), strict=True):
        assert [each.seed for each in one.requests] == [each.seed for each in other.requests]


def test_what_is_kept_is_a_table_like_any_other(tmp_path: Path) -> None:
    """In parts, sorted, with the answers that were given behind each group; a half-written one is written anew."""
    kept, _ = run(tmp_path, "dynamic", Counted())
    given = {prompt_id: [np.array([9, 1], np.int32)] for prompt_id in IDS}
    write = partial(write_kept, tmp_path / "rollouts", kept, 3, METADATA, given, SPLIT)
    write()
    before = {path.name: path.read_bytes() for path in (tmp_path / "rollouts").iterdir()}
    (tmp_path / "rollouts/part-00001.parquet").unlink()
    write()
    assert {path.name: path.read_bytes() for path in (tmp_path / "rollouts").iterdir()} == before
    table, source = read_table(tmp_path / "rollouts", ROLLOUTS, check_rollouts)
    assert [prompt_id for prompt_id, sample in keys_of(table) if sample == 0] == list(kept)
    assert table["finish_reason"].to_pylist() == ["stop", "stop", "stop", "given"] * 4
    seeds = [request.seed for each in kept.values() for request in each.requests]
    assert [seed for seed in table["seed"].to_pylist() if seed >= 0] == seeds
    assert source["engine"] == "made up 1"


def test_quotas_stand_in_the_metadata(tmp_path: Path) -> None:
    kept, _ = run(tmp_path, "posterior", Counted(), size=12, pool=3, tries=3, temperature=10.0, quotas=True)
    sizes = {prompt_id: len(each.requests) for prompt_id, each in kept.items()}
    assert sizes_of({prompt_id: each.requests for prompt_id, each in kept.items()}) == {"group_sizes": sizes}
    assert len({*sizes.values()}) > 1
    metadata = METADATA | {"group_sizes": sizes}
    write_kept(tmp_path / "rollouts", kept, 3, metadata, {}, SPLIT)
    table, _ = read_table(tmp_path / "rollouts", ROLLOUTS, check_rollouts)
    assert table.num_rows == 48
    assert sizes_of({"a": [], "b": []}) == {}


def test_a_suffix_stands_behind_a_text_and_behind_the_last_message() -> None:
    chats = pa.table(
        {
            "prompt_id": ["a", "b"],
            "messages": [
                [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1?"}],
                [{"role": "user", "content": "2?"}],
            ],
        }
    )
    asks = [Ask("p03", 1, " No."), Ask("p04", 1)]
    tokens, num_long = with_suffixes(SPLIT, asks, 16, Path("policy"))
    assert [SPLIT.tokenizer.decode(tokens[name]) for name in ("p03", "p04")] == ["3? No.", "4?"]
    assert num_long == 0
    split = split_of(chats, context=256)
    tokens, _ = with_suffixes(split, [Ask("a", 1, " No."), Ask("b", 1)], 16, Path("policy"))
    text = split.tokenizer.decode(tokens["a"])
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1? No.<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")
    assert tokens["b"].tolist() == split.encoded.prompt_ids["b"].tolist()


def test_a_suffix_for_which_there_is_no_room_is_left_out_and_counted() -> None:
    asks = [Ask("p03", 1, "x" * 46), Ask("p04", 1, "x" * 47)]
    tokens, num_long = with_suffixes(SPLIT, asks, 16, Path("policy"))
    assert [len(tokens[name]) for name in ("p03", "p04")] == [48, 2]
    assert num_long == 1


def test_kept_groups_of_different_engines_are_named_both(tmp_path: Path) -> None:
    kept, _ = run(tmp_path, "retry", Counted(), tries=1)
    first, *others = kept
    kept[first] = Kept(kept[first].requests, kept[first].completions, "made up 2")
    write_kept(tmp_path / "rollouts", kept, 3, METADATA, {}, SPLIT)
    _, source = read_table(tmp_path / "rollouts", ROLLOUTS, check_rollouts)
    assert source["engine"] == "made up 1, made up 2"
    assert others


@pytest.mark.parametrize(
    ("workers", "function", "processes", "gpus", "expected"),
    [
        ({}, "reward_model", 2, [], False),  # memory of a CPU is shared
        ({}, "reward_model", None, ["0"], True),
        ({}, "exact_match", 2, ["0"], False),
        ({"kind": "ray"}, "exact_match", None, [], False),
        ({"kind": "ray"}, "exact_match", 2, [], True),
        ({"kind": "ray"}, "reward_model", None, [], True),
        ({"listen": "127.0.0.1:0"}, "exact_match", 1, [], True),
    ],
)
def test_engines_end_before_rewards_that_want_their_place(
    workers: dict[str, Any],
    function: str,
    processes: int | None,
    gpus: list[str],
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("launch.yaml").write_text(json.dumps({"score": {"workers": 1, "processes": processes}}))
    monkeypatch.setattr("gift.sampling.by_rewards.visible_gpus", lambda: gpus)
    score = {"rewards": {"one": {"function": function}}}
    assert takes_turns(score, Workers(**workers)) == expected
