"""Shards: the same bytes from any number of ranks at any ZeRO stage, read back exactly, and no rank holds the whole.

Run as a script it is one rank, or, with addresses of stages after `stages`, a project's stages with small shards.
"""

import ctypes
import gc
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import mini
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gift.embedded.base_policy import make_tokenizer
from gift.logprobs.tokens import TokenLogprobs
from gift.policy.adapter import adapter_config
from gift.policy.folder import PolicyFiles
from gift.policy.open import Training, open_policy
from gift.policy.settings import Lora
from gift.project.errors import UserError
from gift.training.engine import KINDS, Engine, start_engine
from gift.training.ranks import distributed
from gift.training.saving import shards
from gift.training.saving.policy import digest_of, write_policy
from gift.training.saving.state import Stored, go_on, read_checkpoint, write_checkpoint, write_state
from tests.ranks import run_as_rank, run_ranks
from tests.states import FullState, save_policy
from tests.test_engine import settings

LORA = Lora(r=4, lora_alpha=6)
KINDS_OF = [(lora, tied) for lora in (False, True) for tied in (False, True)]
STAGES = [("float32", 0), ("float32", 1), ("float32", 2), ("float32", 3), ("bfloat16", 1), ("bfloat16", 3)]
SMALL = 12_000  # bytes of a shard: tens of them


def make_base(folder: Path, tied: bool, model_class: str = "Qwen3", **more: Any) -> Path:
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied, **more}
    config = getattr(transformers, f"{model_class}Config")(**{**size, **heads})
    getattr(transformers, f"{model_class}ForCausalLM")(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def start(
    base: Path, lora: bool, stage: int, dtype: str = "float32", head: bool = True, **more: Any
) -> tuple[Engine, Any]:
    """An engine around a policy, with a learned head beside it, and the config of its adapter."""
    policy = open_policy(PolicyFiles(base), dtype, training=Training(LORA if lora else None, 0))
    module = TokenLogprobs(policy, 1.0, "auto")
    if head:
        module.learned = nn.Linear(5, 3)
    engine = start_engine(module, settings(stage, dtype, **more), checkpointing=False)
    return engine, adapter_config(policy) if lora else None


def drawn(engine: Engine) -> FullState:
    """Some state: weights and moments by the seed."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        kind: {name: torch.randn(shape, generator=generator) / 8 for name, shape in engine.shapes.items()}
        for kind in KINDS
    }
    return FullState(7, {**tensors, "exp_avg_sq": {name: each**2 for name, each in tensors["exp_avg_sq"].items()}})


def save(engine: Engine, base: Path, folder: Path, adapter: Any, dtype: str) -> None:
    write_policy(engine, folder / "policy", PolicyFiles(base), dtype, adapter)
    unsealed = write_state(engine, folder / "optimizer" / "state.safetensors")
    if unsealed is not None:
        unsealed.seal({"policy": "p"})


def name_of(lora: bool, tied: bool, dtype: str) -> str:
    return f"{'lora' if lora else 'full'}-{'tied' if tied else 'untied'}-{dtype}"


def base_of(folder: Path, tied: bool) -> Path:
    return folder / f"base-{'tied' if tied else 'untied'}"


def reference(folder: Path, kinds: list[tuple[bool, bool]], dtypes: tuple[str, ...]) -> None:
    """What one process makes of a drawn state: in shards, and in one file of each."""
    with distributed():
        for lora, tied in kinds:
            if not base_of(folder, tied).exists():
                make_base(base_of(folder, tied), tied)
            for dtype in dtypes:
                engine, adapter = start(base_of(folder, tied), lora, 1 if dtype == "bfloat16" else 0, dtype)
                engine.load(drawn(engine))
                for limit, kind in ((SMALL, "shards"), (10**9, "whole")):
                    shards.SHARD_BYTES = limit
                    place = folder / kind / name_of(lora, tied, dtype)
                    save(engine, base_of(folder, tied), place, adapter, dtype)
                engine.close()


def worker(folder: Path) -> None:
    """A rank that goes on from the shards of one process, and saves: every case in a folder of its own."""
    from gift.project import console

    console.quiet()
    shards.SHARD_BYTES = SMALL
    if "MEASURE" in os.environ:
        measure(folder, int(os.environ["MEASURE"]))
        return
    with distributed():
        for lora, tied, dtype, stage in json.loads(os.environ["CASES"]):
            name = name_of(lora, tied, dtype)
            engine, adapter = start(base_of(folder, tied), lora, stage, dtype)
            state = folder / "shards" / name / "optimizer" / "state.safetensors.index.json"
            facts = go_on(engine, lambda state=state: Stored(state))
            assert facts == {"optimizer_step": 7, "policy": "p"}
            assert engine.steps == 7
            save(engine, base_of(folder, tied), folder / f"{engine.world_size}-{stage}" / name, adapter, dtype)
            engine.close()


def same_shards(folder: Path, number: int, cases: list[tuple[bool, bool, str, int]]) -> None:
    assert run_ranks(number, __file__, folder, CASES=json.dumps(cases), **mini.QUIET) == [(0, "")] * number
    for lora, tied, dtype, stage in cases:
        name = name_of(lora, tied, dtype)
        made, expected = mini.content(folder / f"{number}-{stage}" / name), mini.content(folder / "shards" / name)
        assert made.keys() == expected.keys()
        assert [file for file in made if made[file] != expected[file]] == [], (number, name, stage)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    reference(folder, [(False, True)], ("float32",))
    return folder


def test_two_ranks_write_the_shards_of_one(few: Path) -> None:
    same_shards(few, 2, [(False, True, "float32", 3)])


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_same_bytes_from_all_ranks_at_all_stages(tmp_path: Path, number: int) -> None:
    reference(tmp_path, KINDS_OF, ("float32", "bfloat16"))
    cases = [(lora, tied, dtype, stage) for lora, tied in KINDS_OF for dtype, stage in STAGES]
    same_shards(tmp_path, number, cases)


def test_in_one_file_and_in_shards_is_the_same(few: Path) -> None:
    """No shard is larger than it may be, but for a single tensor; together they have what the one file has."""
    name = name_of(False, True, "float32")
    for part, stem in (("policy", "model"), ("optimizer", "state")):
        cut, whole = few / "shards" / name / part, few / "whole" / name / part
        found = sorted(cut.glob("*.safetensors"))
        assert [path.name for path in found] == shards.file_names(stem, len(found))
        assert len(found) > 5
        tensors = [load_file(path) for path in found]
        sizes = [sum(each.nbytes for each in held.values()) for held in tensors]
        assert all(size <= SMALL or len(held) == 1 for size, held in zip(sizes, tensors, strict=True))
        together = {key: each for held in tensors for key, each in held.items()}
        assert [path.name for path in whole.glob("*.safetensors")] == [f"{stem}.safetensors"]
        one = load_file(whole / f"{stem}.safetensors")
        assert together.keys() == one.keys()
        assert all(torch.equal(together[key], one[key]) for key in one)
        rest, others = (
            {file for file in mini.content(each) if ".safetensors" not in file and not file.startswith(stem)}
            for each in (cut, whole)
        )
        assert rest == others
    assert not any(key.startswith("learned.") for key in load_file(few / "whole" / name / "policy/model.safetensors"))
    assert "weight/learned.weight" in one


def test_a_file_that_an_earlier_version_wrote_is_read(few: Path, tmp_path: Path) -> None:
    """One file, however large, with its facts in the header: `seal` makes the very bytes, and shards are no other."""
    name = name_of(False, True, "float32")
    new = few / "whole" / name / "optimizer/state.safetensors"
    index = few / "shards" / name / "optimizer/state.safetensors.index.json"
    facts = {"gift": json.dumps({"optimizer_step": 7, "policy": "p"}, sort_keys=True)}
    old = tmp_path / "state.safetensors"
    save_file(load_file(new), old, metadata=facts)
    assert old.read_bytes() == new.read_bytes()
    one, many = Stored(old), Stored(index)
    assert (one.step, one.facts, one.shapes) == (many.step, many.facts, many.shapes)
    for kind, shapes in one.shapes.items():
        for parameter in shapes:
            assert torch.equal(one.tensor(kind, parameter), many.tensor(kind, parameter))


@pytest.mark.parametrize(
    ("model_class", "more"),
    [
        ("Qwen3", {}),
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),  # names of its own
    ],
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_is_what_save_pretrained_would_make_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_class: str, more: dict[str, Any], tied: bool, dtype: str
) -> None:
    base = PolicyFiles(make_base(tmp_path / "base", tied, model_class, **more))
    model = open_policy(base, dtype)
    weights = {f"model.{name}": (each.detach() * 1.5) for name, each in model.named_parameters()}
    cast = {name.removeprefix("model."): each for name, each in weights.items()}
    model.save_pretrained(tmp_path / "theirs", state_dict=dict(cast))
    make_tokenizer().save_pretrained(tmp_path / "theirs")
    ours = save_policy(tmp_path / "ours", base, weights, dtype, None)
    assert mini.content(ours.folder) == mini.content(tmp_path / "theirs")

    monkeypatch.setattr(shards, "SHARD_BYTES", SMALL)
    cut = save_policy(tmp_path / "cut", base, weights, dtype, None)
    index = json.loads((cut.folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    opened = dict(open_policy(cut, dtype).named_parameters())
    assert {name: digest_of(each) for name, each in opened.items()} == {
        name: digest_of(each) for name, each in cast.items()
    }
    model.save_pretrained(tmp_path / "their cut", state_dict=dict(cast), max_shard_size=SMALL)  # in another order
    theirs = json.loads((tmp_path / "their cut/model.safetensors.index.json").read_text())
    assert index["metadata"] == theirs["metadata"]
    assert index["weight_map"].keys() == theirs["weight_map"].keys()
    for file in ("config.json", "generation_config.json"):
        assert (cut.folder / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes()


def test_a_model_whose_files_join_what_it_trains_apart_is_refused_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gift.training.saving import policy

    base = PolicyFiles(make_base(tmp_path / "base", True))
    weights = {f"model.{name}": each for name, each in open_policy(base, "float32").named_parameters()}
    monkeypatch.setattr(shards, "SHARD_BYTES", SMALL)
    monkeypatch.setattr(policy, "check_written", lambda *_: {"qkv": 8})
    with pytest.raises(UserError, match=r"qkv would stand in model-00001-of-\d+.safetensors and in model-00002-of"):
        save_policy(tmp_path / "policy", base, weights, "float32", None)


# --- memory -----------------------------------------------------------------------------------------------------------


class Peak:
    """The most anonymous memory that this process has while it stands, bytes."""

    def __init__(self) -> None:
        gc.collect()
        libc = ctypes.CDLL(None)
        libc.mallopt(
            -3, 1 << 16
        )  # tensors as large as real ones are mapped one by one, and given back at once: so these
        libc.malloc_trim(0)
        self.before = self.most = self.now()
        self.ends = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def watch(self) -> None:
        while not self.ends.is_set():
            self.most = max(self.most, self.now())
            time.sleep(0.0005)

    def __enter__(self) -> "Peak":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.set()
        self.thread.join()


def measure(folder: Path, stage: int) -> None:
    """A rank that saves and loads, and writes by how much its memory rose meanwhile."""
    shards.SHARD_BYTES = 8_000_000
    with distributed():
        engine, _ = start(folder / "base", False, stage, head=False)
        index = folder / "saved" / "optimizer" / "state.safetensors.index.json"
        with Peak() as saving:
            save(engine, folder / "base", folder / "saved", None, "float32")
        go_on(engine, lambda: Stored(index))  # weights that were the pages of a file are its own now
        with Peak() as loading:
            go_on(engine, lambda: Stored(index))
        engine.close()
        # What stages 1 and 2 take to share all weights out at once, as after each step, is not the load's.
        rises = [peak.most - peak.before for peak in (saving, loading)[: 2 if stage in (0, 3) else 1]]
    (folder / f"rises-{os.environ['RANK']}.json").write_text(json.dumps(rises))


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("stage", range(4))
def test_no_rank_holds_the_whole_while_it_saves_or_loads(tmp_path: Path, number: int, stage: int) -> None:
    """42 million parameters, 500 MB of state in shards of 8: a rank needs little beside its share.

    At stage 3 gloo is some tensors ahead of who takes them: some 50 MB here, whatever the number of ranks.
    """
    layer = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "head_dim": 64}
    base = make_base(tmp_path / "base", True, **layer, vocab_size=2048, num_attention_heads=8, num_key_value_heads=8)
    assert run_ranks(number, __file__, tmp_path, MEASURE=str(stage), **mini.QUIET) == [(0, "")] * number
    share = 3 * sum(path.stat().st_size for path in base.glob("*.safetensors")) / number
    for rank in range(number):
        rises = json.loads((tmp_path / f"rises-{rank}.json").read_text())
        # At stage 3 gloo runs ahead by as many tensors as the machine is busy: 0.38 to 0.71 of a share were seen.
        assert max(rises) < (1.0 if stage == 3 else 0.2) * share


# --- what is damaged --------------------------------------------------------------------------------------------------


def test_a_damaged_or_missing_shard_is_refused_by_name(few: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(few / "shards" / name_of(False, True, "float32") / "optimizer", tmp_path / "state"))
    index, (first, second, *_) = folder / "state.safetensors.index.json", sorted(folder.glob("*.safetensors"))
    remedy = r"remove its folder, then `dvc checkout`$"
    content = second.read_bytes()

    def refused(path: Path, why: str) -> None:
        with pytest.raises(UserError, match=rf"^{path}: not a readable training state \({why}.*\); {remedy}") as error:
            Stored(index)
        assert "\n" not in error.value.message

    Stored(index)
    second.unlink()
    refused(second, "it is missing")
    second.write_bytes(content[:-4])
    refused(second, "")
    second.write_text("no weights")
    refused(second, "")
    second.write_bytes(content.replace(b'optimizer_step\\": 7', b'optimizer_step\\": 8'))
    refused(second, "it belongs to another optimizer step")
    second.write_bytes(first.read_bytes())
    refused(second, "it should have other tensors: ")
    second.write_bytes(content)
    index.write_text(index.read_text()[:-20])
    refused(index, "")


def test_a_rank_reads_back_what_it_wrote(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(2)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    assert shards.check_written(path, tensors) == {"a": 12, "b": 8}
    with pytest.raises(UserError, match=r"x\.safetensors: b reads otherwise than it was written"):
        shards.check_written(path, {**tensors, "b": torch.tensor([0.0, -0.0])})


def test_a_checkpoint_counts_from_the_moment_it_is_whole(few: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", SMALL)
    path = tmp_path / "checkpoint.safetensors"
    index = path.with_name("checkpoint.safetensors.index.json")

    def rows() -> Any:
        found = read_checkpoint(path)
        return found and found.facts["rows"]

    with distributed():
        engine, _ = start(base_of(few, True), False, 0)
        assert rows() is None
        write_state(engine, path, "checkpoint-0")
        assert rows() is None, "shards without an index"
        write_checkpoint(engine, path, {"rows": [1, float("nan")]})
        assert rows()[0] == 1
        state = drawn(engine)
        engine.load(state)
        second = write_state(engine, path, f"checkpoint-{engine.steps}")
        assert rows()[0] == 1, "that of before, until the index is there"
        assert second is not None
        second.seal({"rows": [1, 2]})
        assert rows() == [1, 2]
        assert {each.name.split("-")[1] for each in tmp_path.glob("checkpoint-*")} == {"7"}, "no others are left"
        read = read_checkpoint(path)
        assert read is not None
        for kind in KINDS:
            for name in engine.shapes:
                assert torch.equal(read.tensor(kind, name), state.tensor(kind, name))
        engine.close()
    next(tmp_path.glob("checkpoint-7-00002-*")).unlink()  # a damaged unit, which the next run removes
    assert rows() is None
    assert not index.exists(), "what is left must not be taken for whole when its other shards are made again"


if __name__ == "__main__":
    run_as_rank(worker)
