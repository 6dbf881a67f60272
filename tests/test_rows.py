"""The scores table as tensors: nulls are no zeros, and a component counts only where its gate is open."""

import pyarrow as pa

from gift.project.sections import check
from gift.scoring.settings import Score
from gift.training.rows import rewards_of
from tests.groups import make_groups


def test_components_gates_and_nulls() -> None:
    functions = {"answer": {"function": "gsm8k_answer"}, "brief": {"function": "x", "weight": 0.5, "only_if": "answer"}}
    score = check(Score, {"rewards": functions}, "test")
    table = pa.table(
        {
            "reward": [1.25, 0.0, None, 0.0],
            "answer": [1.0, 0.0, None, None],
            "brief": [0.5, 0.5, 0.5, 0.5],
        }
    )
    rewards = make_groups(**rewards_of(table, score.model_dump()["rewards"], group_size=2))
    assert rewards.rewards.tolist() == [[1.25, 0.0], [0.0, 0.0]]
    assert rewards.mask.tolist() == [[True, True], [False, True]]
    assert rewards.components.tolist() == [[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert rewards.known.tolist() == [[[True, True], [True, True]], [[False, False], [False, True]]]
    assert rewards.weights.tolist() == [1.0, 0.5]
