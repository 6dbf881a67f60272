"""Ways to sample a round, without an engine: what they ask for, what they keep, where the stream stands then."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from gift.methods.sample.epochs import take_prompts
from gift.methods.sample.names import SAMPLE
from gift.methods.sample.passes import Ask, Got, Stream, Wanted
from gift.methods.sample.posterior import Posterior, posterior, shares, spread_of
from gift.methods.sample.refine import SUFFIX
from gift.project.errors import UserError

IDS = [f"p{number}" for number in range(20)]
Judge = Callable[[int, Ask, int], float | None]


WANTED = Wanted(4, 3)
FIELDS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "retry": {"tries": 2},
    "refine": {},
    "posterior": {"pool": 3},
}


def drive(name: str, judge: Judge, wanted: Wanted = WANTED, start: int = 0, **fields: Any) -> Any:
    """Run a way: judge(pass, ask, sample) is the reward; returns the passes, what was kept, and the stream."""
    stream = Stream(IDS, start, 7)
    way = SAMPLE[name].passes(stream, wanted, SAMPLE[name].settings.model_validate(fields))
    passes: list[list[Ask]] = []
    asks = next(way)
    while True:
        passes.append(asks)
        number = len(passes) - 1
        got = [
            Got(
                ask,
                [f"{ask.prompt_id} {number} {i}" for i in range(ask.count)],
                [judge(number, ask, i) for i in range(ask.count)],
            )
            for ask in asks
        ]
        try:
            asks = way.send(got)
        except StopIteration as end:
            return passes, end.value, stream


def names(asks: list[Ask]) -> list[str]:
    return [ask.prompt_id for ask in asks]


def test_a_stream_goes_on_where_it_stopped() -> None:
    stream = Stream(IDS, 5, 7)
    both = stream.take(4) + stream.take(3)
    assert (both, stream.position) == take_prompts(IDS, 5, 7, 7)
    assert stream.left == 13


def test_dynamic_goes_on_until_enough_groups_differ() -> None:
    """Only every third prompt of the stream differs: 12 are sampled for 4, or 8 for 3 where the budget ends."""
    order, _ = take_prompts(IDS, 0, 20, 7)
    useful = order[::3]

    def judge(_: int, ask: Ask, sample: int) -> float:
        return float(ask.prompt_id in useful and sample == 0)

    passes, kept, stream = drive("dynamic", judge)
    assert [len(asks) for asks in passes] == [4, 4, 4]
    assert names(kept) == useful[:4]
    assert stream.position == 12
    passes, kept, stream = drive("dynamic", judge, max_passes=2)
    assert [len(asks) for asks in passes] == [4, 4]
    assert names(kept) == useful[:3]
    assert [len(asks) for asks in drive("dynamic", judge, batch=5)[0]] == [5, 5]
    with pytest.raises(
        UserError, match=r"max_passes: 2: of 8 prompts none has completions whose rewards differ[^\n]*$"
    ):
        drive("dynamic", lambda *_: 1.0, max_passes=2)
    assert sum(map(len, drive("dynamic", judge, Wanted(20, 3), max_passes=99)[0])) == 20, "there are no more"


def test_dynamic_wants_right_and_wrong_ones_where_it_knows_what_is_right() -> None:
    """All right with other rewards for their form: a difference, but nothing to learn."""
    order, _ = take_prompts(IDS, 0, 20, 7)

    def judge(_: int, ask: Ask, sample: int) -> float:
        return (0.0 if sample == 2 else 1.0) if ask.prompt_id in order[2::4] else 1.0 + 0.1 * sample

    assert names(drive("dynamic", judge)[1]) == order[:4]
    assert names(drive("dynamic", judge, correct_from=0.5)[1]) == order[2:18:4]
    with pytest.raises(UserError, match=r"of 4 prompts none has both rewards of 2 or more and less; look[^\n]*$"):
        drive("dynamic", judge, max_passes=1, correct_from=2.0)


def test_failed_rewards_are_no_difference() -> None:
    def judge(_: int, ask: Ask, sample: int) -> float | None:
        return None if sample else 1.0

    with pytest.raises(UserError, match="of 4 prompts none"):
        drive("dynamic", judge, max_passes=1)


def test_retry_replaces_what_failed() -> None:
    """The first prompt is right at once, the second in the third try, the others never."""
    order, _ = take_prompts(IDS, 0, 4, 7)

    def judge(number: int, ask: Ask, _: int) -> float:
        return float(ask.prompt_id == order[0] or (ask.prompt_id == order[1] and number == 2))

    passes, kept, _ = drive("retry", judge, tries=3)
    assert [names(asks) for asks in passes] == [order, order[1:], order[1:], order[2:]]
    assert names(kept) == order
    assert [passes[0].index(ask) if ask in passes[0] else -1 for ask in kept] == [0, -1, 2, 3]
    assert kept[1] in passes[2]
    assert len(drive("retry", lambda *_: 1.0, tries=3)[0]) == 1


def test_refine_asks_with_the_best_draft() -> None:
    """Of equal drafts the first; where none has a reward the prompt stands alone."""
    order, _ = take_prompts(IDS, 0, 4, 7)

    def judge(_: int, ask: Ask, sample: int) -> float | None:
        return None if ask.prompt_id == order[3] else float(sample in (1, 2))

    passes, kept, _ = drive("refine", judge, drafts=4)
    assert [ask.count for ask in passes[0]] == [4] * 4
    behind = [f"{SUFFIX[:-7]}{name} 0 1" for name in order[:3]]
    assert [ask.suffix for ask in passes[1]] == [*behind, ""]
    assert kept == passes[1]
    assert {ask.count for ask in kept} == {3}


@pytest.mark.parametrize("name", SAMPLE)
def test_what_is_kept_is_a_group_of_each_prompt(name: str) -> None:
    fields: dict[str, Any] = FIELDS[name]
    passes, kept, _ = drive(
        name, lambda number, ask, sample: float((number + sample + int(ask.prompt_id[1:])) % 3 == 0), **fields
    )
    assert len({*names(kept)}) == len(kept) <= 4
    assert all(ask.count == 3 for ask in kept)
    assert {*kept} <= {ask for asks in passes for ask in asks}


def test_the_posterior_takes_what_is_neither_known_nor_hopeless() -> None:
    """Of 12 candidates six are half right; at a low temperature the four come from them, at a high one from all."""
    order, _ = take_prompts(IDS, 0, 12, 7)

    def judge(_: int, ask: Ask, sample: int) -> float:
        return float(sample % 2) if ask.prompt_id in order[::2] else 1.0

    passes, kept, stream = drive("posterior", judge, pool=3, temperature=0.001)
    assert [ask.count for ask in passes[0]] == [4] * 12
    assert {*names(kept)} <= {*order[::2]}
    assert kept == passes[1]
    assert stream.position == 12
    often = [0] * 12
    for start in range(400):
        way = posterior(Stream(IDS[:12], 12 * start, 7), Wanted(1, 3), Posterior(pool=12, temperature=0.1))
        asks = next(way)
        got = [Got(ask, ["x"] * 4, [1.0, 1.0, 0.0, None] if ask.prompt_id < "p2" else [1.0] * 4) for ask in asks]
        often[IDS.index(way.send(got)[0].prompt_id)] += 1
    # Two right and one wrong of three known: p = 3/5, of four right ones 5/6: exp(10 x (0.490 - 0.373)) = 3.23.
    first = sum(often[IDS.index(name)] for name in IDS[:12] if name < "p2")
    num = sum(name < "p2" for name in IDS[:12])
    share = 3.23 * num / (3.23 * num + 12 - num)
    assert abs(first / 400 - share) < 3 * math.sqrt(share * (1 - share) / 400)


def test_the_spread_of_a_posterior_by_hand() -> None:
    """Three right and one wrong: p = 2/3, sqrt(p (1 - p)) = 0.4714; what has no reward says nothing."""
    ask = Ask("p", 5)
    assert spread_of(Got(ask, [""] * 5, [1.0, 0.7, 0.5, 0.4, None]), 0.5) == pytest.approx(0.4714, abs=1e-4)
    assert spread_of(Got(ask, [""] * 5, [None] * 5), 0.5) == 0.5


def test_a_pool_of_more_prompts_than_there_are_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"sample\.posterior: takes 24 prompts, but there are only 20; lower its numbers"
    ):
        drive("posterior", lambda *_: 1.0, pool=6)


def test_quotas_are_shares_by_the_spread() -> None:
    """24 completions of three prompts, 2 each at least; 18 by .5 : .4 : .1, that is 9, 7.2 and 1.8."""
    assert shares([0.5, 0.4, 0.1], 24) == [11, 9, 4]
    assert shares([1.0, 1.0], 7) == [4, 3]
    assert shares([1.0, 1.0, 1.0], 6) == [2, 2, 2]

    def judge(_: int, ask: Ask, sample: int) -> float:
        return float(sample % 2 or ask.prompt_id < "p14")

    _, kept, _ = drive("posterior", judge, pool=5, temperature=10.0, quotas=True)
    counts = {ask.prompt_id: ask.count for ask in kept}
    assert sum(counts.values()) == 12
    assert all(count >= 2 for count in counts.values())
    hard = [count for prompt, count in counts.items() if prompt >= "p14"]
    easy = [count for prompt, count in counts.items() if prompt < "p14"]
    assert not hard or not easy or min(hard) >= max(easy)
