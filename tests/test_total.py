"""Weights and gates: hand numbers of what counts in a row, and laws of the total."""

import itertools
import math

import numpy as np
import pytest

from gift.rewards.total import Floats, Term, counting, gated, totals

NAN = math.nan
TERMS = {"right": Term(2.0), "bonus": Term(3.0, "right"), "form": Term(-0.5)}


def columns(**values: list[float]) -> dict[str, Floats]:
    return {name: np.array(each) for name, each in values.items()}


VALUES = columns(
    right=[1.0, 0.0, 0.5, NAN, NAN, 1.0, 1.0, 1 + 2**-40],
    bonus=[0.5, 0.5, 0.5, 0.5, 0.5, NAN, 0.5, 0.5],
    form=[1.0, 1.0, NAN, 1.0, NAN, NAN, 1.0, NAN],
)
FAILED = np.array([False, False, False, False, False, False, True, False])


def test_hand_numbers() -> None:
    # 2 + 1.5 - 0.5; gate 0; gate 0.5; gate without a value; only a shut bonus; the gate alone; failed; not quite 1
    assert totals(VALUES, FAILED, TERMS) == [3.0, -0.5, 1.0, -0.5, None, 2.0, None, 2 + 2**-39]
    shown = {name: each.tolist() for name, each in gated(VALUES, TERMS).items()}
    assert shown["bonus"] == pytest.approx([0.5, 0.0, 0.0, 0.0, 0.0, NAN, 0.5, 0.0], nan_ok=True)
    assert shown["right"] == pytest.approx(VALUES["right"].tolist(), nan_ok=True)


def test_the_order_of_components_changes_no_bit() -> None:
    values = columns(**{str(number): [0.1 * 3**number, -0.7 / 3**number] for number in range(5)})
    terms = {name: Term(1e8 if name == "3" else 0.3) for name in values}
    fine = np.zeros(2, dtype=bool)
    found = {
        tuple(totals(values, fine, {name: terms[name] for name in order})) for order in itertools.permutations(terms)
    }
    assert len(found) == 1


def test_a_row_alone_has_the_total_that_it_has_among_others() -> None:
    alone = [
        totals({name: each[row : row + 1] for name, each in VALUES.items()}, FAILED[row : row + 1], TERMS)[0]
        for row in range(len(FAILED))
    ]
    assert alone == totals(VALUES, FAILED, TERMS)


def test_a_gate_must_open_in_the_same_row() -> None:
    there = {"right": np.array([True, False, False]), "bonus": np.array([True, True, False])}
    counts = counting(there, there, {name: TERMS[name] for name in there})
    assert {name: each.tolist() for name, each in counts.items()} == {
        "right": [True, False, False],
        "bonus": [True, False, False],
    }
