"""A round's tables joined: the rows of a plain join, nulls are no zeros, gates are kept, and no list of tokens."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gift.methods.choosing import choose
from gift.methods.groups import Need
from gift.methods.making import number_answers
from gift.methods.names import SHAPE
from gift.policy.folder import Lineage
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.work import tree_digest
from gift.tables.parquet import part_name, read_file, write_file
from gift.tables.parts import write_part
from gift.tables.prompts import prompts_table, write_prompts
from gift.tables.reference import REFERENCE, check_reference
from gift.tables.rollouts import ROLLOUTS, check_rollouts
from gift.tables.scores import check_scores, scores_schema
from gift.training.inputs import Rows, read_round, rewards_of
from gift.training.settings import Update
from tests.groups import make_groups

NAMES = ("rollouts", "scores", "reference")
# Metadata are sorted by name; the columns of the scores are not.
REWARDS = {"right": {"weight": 1.0, "only_if": None}, "brief": {"weight": 0.5, "only_if": "right"}}


def write_round(folder: Path, parts: int = 3, groups: int = 2, size: int = 4, tokens: int = 9) -> None:
    """A round of completions of 1 to `tokens` tokens; some rewards failed, some abstained."""
    rng = np.random.default_rng(5)
    for index in range(parts):
        count = groups * size
        keys = [(f"p{index * groups + row // size:03d}", row % size) for row in range(count)]
        lengths = rng.integers(1, tokens + 1, count)

        def ids(lengths: Any) -> pa.Array:
            return Ragged.of([rng.integers(0, 99, length) for length in lengths], np.int32).to_arrow()

        def logprobs(lengths: Any = lengths) -> pa.Array:
            return Ragged.of([-rng.random(length) for length in lengths], np.float32).to_arrow()

        key = [[prompt for prompt, _ in keys], [sample for _, sample in keys]]
        prompts = np.repeat(rng.integers(1, 5, groups), size)
        texts = [f"#{row % 3}" if row % 4 else "none" for row in range(count)]
        columns = [*key, ids(prompts), ids(lengths), texts, logprobs(), ["stop"] * count, [0] * count]
        right = [rng.choice([0.0, 1.0, None], p=[0.4, 0.4, 0.2]) for _ in range(count)]
        brief = [float(value) if value > 0.2 else None for value in rng.random(count)]
        total = [None if value is None else value + 0.1 for value in right]
        each = [[v, ["abstain" if x is None else "ok" for x in v]] for v in (right, brief)]
        metadata = {"policy": "d", "rewards": REWARDS, "settings": {"max_tokens": tokens}}
        schema = scores_schema(REWARDS)
        rollouts, scores = pa.table(columns, ROLLOUTS), pa.table([*key, total, *each[0], *each[1]], schema)
        reference = pa.table([*key, logprobs(), logprobs()], REFERENCE)
        write_part(folder / "rollouts", index, rollouts, ROLLOUTS, check_rollouts, metadata)
        write_part(folder / "scores", index, scores, schema, check_scores, metadata)
        write_part(folder / "reference", index, reference, REFERENCE, check_reference, metadata)
    bind(folder)


def bind(folder: Path) -> None:
    """Let scores and reference say that they are of these rollouts."""
    digest = tree_digest(folder / "rollouts")
    for path in (path for name in ("scores", "reference") for path in sorted((folder / name).iterdir())):
        table, metadata = read_file(path)
        path.unlink()
        write_file(path, table, {**metadata, "rollouts": digest})


def joined(folder: Path, policy: str = "d", needs: Sequence[Need] = ()) -> Rows:
    lineage = Lineage(digest=policy, base=policy)
    beside = (needs, folder / "train.parquet", lambda text: text.partition("#")[2] or None)
    digest = tree_digest(folder / "rollouts")
    rows, _ = read_round(*(folder / name for name in NAMES), digest, lineage, folder / "policy", *beside)
    return rows


def test_what_a_method_needs_is_read_for_it_alone(tmp_path: Path) -> None:
    write_round(tmp_path)
    assert joined(tmp_path).groups.rollout_logprobs is None
    rollouts = pq.read_table(tmp_path / "rollouts")["rollout_logprobs"]
    read = joined(tmp_path, needs=["rollout_logprobs"]).groups.rollout_logprobs
    assert read is not None
    assert read.tolist() == [value for row in rollouts.to_pylist() for value in row]


def test_answers_are_numbered_inside_a_group(tmp_path: Path) -> None:
    write_round(tmp_path)
    assert (joined(tmp_path).groups.answers == -1).all()
    # Texts of a part: none #1 #2 #0, none #2 #0 #1.
    assert joined(tmp_path, needs=["answers"]).groups.answers.tolist() == [[-1, 0, 1, 2]] * 6
    assert number_answers(["a", None, "b", "a", "b", "b", "a", "b"], 4).tolist() == [[0, -1, 1, 0], [0, 0, 1, 0]]


def test_domains_are_those_of_the_prompts(tmp_path: Path) -> None:
    write_round(tmp_path)
    path = tmp_path / "train.parquet"
    names = {f"p{index:03d}": ("math", "code", None)[index % 3] for index in reversed(range(7))}
    rows = [{"prompt_id": name, "prompt": "Q", "domain": domain} for name, domain in names.items()]
    write_prompts(path, prompts_table(rows, path), {})
    assert joined(tmp_path).groups.domains == (None,) * 6
    assert joined(tmp_path, needs=["domains"]).groups.domains == ("math", "code", None) * 2
    write_prompts(path, prompts_table(rows[:4], path), {})
    with pytest.raises(UserError, match=r"^[^\n]*train.parquet: has no prompt p000, of which there are rollouts; run"):
        joined(tmp_path, needs=["domains"])
    write_prompts(path, prompts_table(rows, path).drop_columns("domain"), {})
    with pytest.raises(UserError, match=r"^[^\n]*train.parquet: has no column 'domain', which a [^\n]*$"):
        joined(tmp_path, needs=["domains"])


def test_the_join_is_a_plain_one(tmp_path: Path) -> None:
    write_round(tmp_path)
    rows = joined(tmp_path)
    tables = {name: pq.read_table(tmp_path / name).to_pylist() for name in NAMES}
    by_key = {(row["prompt_id"], row["sample"]): row for row in tables["reference"]}
    for row, rollout in enumerate(tables["rollouts"]):
        reference = by_key[rollout["prompt_id"], rollout["sample"]]
        assert rows.prompt_ids[row].tolist() == rollout["prompt_ids"]
        assert rows.completion_ids[row].tolist() == rollout["completion_ids"]
        part = rows.groups.part([row], rows.groups.step)
        assert part.ref_logprobs.tolist() == reference["ref_logprobs"]
        assert part.old_logprobs.tolist() == reference["old_logprobs"]
        assert rows.lengths[row].tolist() == [len(rollout["prompt_ids"]), len(rollout["completion_ids"])]
        score = tables["scores"][row]
        group, sample = divmod(row, 4)
        opened = score["brief"] if score["brief"] is not None and score["right"] == 1 else 0.0
        assert rows.groups.mask[group, sample] == (score["reward"] is not None)
        assert rows.groups.rewards[group, sample] == torch.tensor(score["reward"] or 0.0)
        expected = torch.tensor([score["right"] or 0.0, opened])  # in the order of the columns
        assert torch.equal(rows.groups.components[group, sample], expected)
    assert rows.groups.weights.tolist() == [1.0, 0.5]
    assert rows.groups.step.max_tokens == 9
    assert not rows.groups.truncated.any()
    sums = [sum(lengths) for lengths in rows.lengths.tolist()]
    assert rows.shortest == sums.index(min(sums))


def test_tables_that_do_not_belong_together_are_refused_by_row(tmp_path: Path) -> None:
    write_round(tmp_path)
    with pytest.raises(UserError, match=r"rollouts: made with policy d, but .*policy is other"):
        joined(tmp_path, "other")
    path = tmp_path / "reference" / part_name(1)
    table, metadata = read_file(path)
    kept = path.read_bytes()
    lists = [table[name].to_pylist() for name in ("ref_logprobs", "old_logprobs")]
    for each in lists:
        each[2] = [*each[2], -1.0]
    longer = [table["prompt_id"], table["sample"], *lists]
    write_file(path, pa.table(longer, REFERENCE), metadata)
    with pytest.raises(UserError, match=r"reference: row 10 \(prompt_id=p002, sample=2\): ref_logprobs is not as long"):
        joined(tmp_path)
    path.write_bytes(kept)
    (tmp_path / "scores" / part_name(2)).unlink()
    with pytest.raises(UserError, match=r"scores: its rows are not those of the rollouts \(16 against 24\)"):
        joined(tmp_path)


def test_rollouts_that_lost_their_last_part_are_refused(tmp_path: Path) -> None:
    write_round(tmp_path)
    for index in range(3):
        path = tmp_path / "rollouts" / part_name(index)
        table, metadata = read_file(path)
        path.unlink()
        write_file(path, table, {**metadata, "num_rows": 24})
    bind(tmp_path)
    joined(tmp_path)
    (tmp_path / "rollouts" / part_name(2)).unlink()
    with pytest.raises(UserError, match="rollouts: has 16 of the 24 rows that it was written with"):
        joined(tmp_path)


@pytest.mark.parametrize("name", ["scores", "reference"])
def test_what_was_made_of_other_rollouts_is_refused(tmp_path: Path, name: str) -> None:
    write_round(tmp_path)
    for path in sorted((tmp_path / name).iterdir()):
        table, metadata = read_file(path)
        path.unlink()
        write_file(path, table, {**metadata, "rollouts": "of another round"})
    with pytest.raises(UserError, match=f"{name}: made of other rollouts than .*rollouts; .*`dvc repro"):
        joined(tmp_path)


def test_a_table_of_another_kind_in_the_place_of_the_scores_is_refused(tmp_path: Path) -> None:
    write_round(tmp_path)
    lineage = Lineage(digest="d", base="d")
    with pytest.raises(UserError, match=r"part-00000.parquet: the column 'reward' is missing"):
        read_round(tmp_path / "rollouts", tmp_path / "reference", tmp_path / "reference", "d", lineage, tmp_path)
    path = tmp_path / "scores" / part_name(0)
    table, metadata = read_file(path)
    write_file(path, table, {**metadata, "rewards": {**REWARDS, "other": {"weight": 1.0, "only_if": None}}})
    with pytest.raises(UserError, match=r"part-00000.parquet: the column 'other' is missing"):
        joined(tmp_path)


def test_a_round_takes_few_bytes_a_token(tmp_path: Path) -> None:
    """A Python number is 24 to 32 bytes, and 8 more in its list; Arrow's part is twice 12 bytes while it joins."""
    write_round(tmp_path, parts=8, groups=8, size=8, tokens=2000)
    joined(tmp_path)  # what is made once
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        rows = joined(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    count = len(rows.completion_ids.values)
    assert count > 400_000
    assert peak < 2 * count
    assert pool.max_memory() < 32 * count


def test_components_gates_and_nulls() -> None:
    settings = {"brief": {"weight": 0.5, "only_if": "answer"}, "answer": {"weight": 1.0, "only_if": None}}
    table = pa.table(
        {
            "sample": [0, 1, 0, 1],
            "reward": [1.25, 0.0, None, 0.0],
            "answer": [1.0, 0.0, None, None],
            "brief": [0.5, 0.5, 0.5, 0.5],
        }
    )
    groups = make_groups(**rewards_of(table, settings))
    assert groups.rewards.tolist() == [[1.25, 0.0], [0.0, 0.0]]
    assert groups.mask.tolist() == [[True, True], [False, True]]
    assert groups.components.tolist() == [[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert groups.known.tolist() == [[[True, True], [True, True]], [[False, False], [False, True]]]
    assert groups.weights.tolist() == [1.0, 0.5]


def smaller(folder: Path) -> dict[str, list[int]]:
    """Take the last one to two rows off every second group of a round's tables; returns each group's samples."""
    kept: dict[str, list[int]] = {}
    sizes = {f"p{index:03d}": 4 if index % 2 else 2 + index // 2 % 2 for index in range(6)}
    laws: dict[str, Any] = {"rollouts": check_rollouts, "scores": check_scores, "reference": check_reference}
    for name, law in laws.items():
        for path in sorted((folder / name).iterdir()):
            table, metadata = read_file(path)
            rows = zip(table["prompt_id"].to_pylist(), table["sample"].to_pylist(), strict=True)
            table = table.filter(pa.array([sample < sizes[prompt] for prompt, sample in rows]))
            path.unlink()
            schema = table.schema.remove_metadata()
            write_part(folder / name, int(path.stem[5:]), table, schema, law, {**metadata, "group_sizes": sizes})
    bind(folder)
    for prompt, size in sizes.items():
        kept[prompt] = list(range(size))
    return kept


def without_rewards(folder: Path, kept: dict[str, list[int]]) -> None:
    """The same places without a reward, in groups of one size."""
    for path in sorted((folder / "scores").iterdir()):
        table, metadata = read_file(path)
        content = table.to_pylist()
        for row in content:
            if row["sample"] not in kept[row["prompt_id"]]:
                row |= {"reward": None, "right": None, "right_status": "error", "brief": None, "brief_status": "error"}
        schema = table.schema.remove_metadata()
        path.unlink()
        made = pa.Table.from_pylist(content, schema)
        write_part(folder / "scores", int(path.stem[5:]), made, schema, check_scores, metadata)


def test_groups_of_unequal_size_train_as_groups_without_the_rewards_of_the_rest(tmp_path: Path) -> None:
    """Every shape makes the same targets, and the same completions train; only the count of the unscored differs."""
    for name in ("even", "uneven"):
        write_round(tmp_path / name)
    kept = smaller(tmp_path / "uneven")
    without_rewards(tmp_path / "even", kept)
    needs: list[Need] = ["answers", "draws", "rollout_logprobs"]
    even, uneven = (joined(tmp_path / name, needs=needs) for name in ("even", "uneven"))
    assert torch.equal(even.groups.mask, uneven.groups.mask)
    assert uneven.groups.lengths.eq(0).sum() == 24 - sum(map(len, kept.values())) == 5
    assert uneven.completion_ids.lengths[uneven.shortest] > 0
    for rows in (even, uneven):
        assert rows.completion_ids.lengths.tolist() == rows.groups.lengths.flatten().tolist()
    chosen = []
    for rows in (even, uneven):
        update = Update.model_validate({"groups_per_step": 1, "lr": 1.0, "dtype": "float32", "shape": {"zscore": {}}})
        chosen.append(choose(rows.groups, update))
        places = rows.groups.mask.flatten().nonzero().squeeze(-1).tolist()
        part = rows.groups.part(places, rows.groups.step)
        assert part.old_logprobs.tolist() == pytest.approx(
            [value for place in places for value in one(even.groups.old_logprobs, even, place)]
        )
    assert torch.equal(chosen[0].targets.completions, chosen[1].targets.completions)
    for name, shape in SHAPE.items():
        if any(field.is_required() for field in shape.settings.model_fields.values()) or name == "token_weighted":
            continue  # it needs a setting, or weights that no table here has
        made = [shape.within(rows.groups, shape.settings()) for rows in (even, uneven)]
        assert torch.equal(made[0].completions, made[1].completions), name
        assert [each.pairs is None for each in made] in ([True, True], [False, False])
        if made[0].pairs is not None and made[1].pairs is not None:
            assert torch.equal(made[0].pairs, made[1].pairs), name
    assert chosen[0].indices == chosen[1].indices
    first, second = chosen[0].ledger, chosen[1].ledger
    assert first["num_completions"] - second["num_completions"] == 5
    assert first["num_completions_unscored"] - second["num_completions_unscored"] == 5
    changed = ("num_completions", "num_completions_unscored")
    assert {key: each for key, each in first.items() if key not in changed}.items() <= second.items()


def one(values: torch.Tensor, rows: Rows, place: int) -> list[float]:
    """The values of one completion's tokens."""
    start = rows.completion_ids.offsets[place]
    return values[start : start + rows.completion_ids.lengths[place]].tolist()


def test_a_group_that_lost_a_row_is_refused_where_sizes_differ_too(tmp_path: Path) -> None:
    write_round(tmp_path)
    smaller(tmp_path)
    path = tmp_path / "rollouts" / part_name(0)
    table, metadata = read_file(path)
    write_file(path, table.slice(0, table.num_rows - 1), metadata)
    with pytest.raises(UserError, match="prompt_id=p001 has 3 samples; every group must have samples 0 to 3"):
        joined(tmp_path)
