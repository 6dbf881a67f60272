"""What a token weighs by OAR: where the answer is, importance by brute force and autograd, the scale of weights."""

import json
from pathlib import Path
from typing import Any

import mini
import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from tiny import byte_tokenizer

from gift.doctor.whole import Params
from gift.logprobs.tokens import TokenLogprobs
from gift.project.errors import UserError
from gift.project.ragged import Ragged
from gift.project.sections import check, choice
from gift.project.seeds import seed_of
from gift.project.yaml import read_yaml
from gift.tables.parquet import read_file
from gift.tables.reference import WEIGHTED, check_reference, read_reference
from gift.training.final_answer import ANSWER
from gift.training.reference.importance import Reasoned, by_gradient, perturbed
from gift.training.reference.settings import TOKEN_WEIGHTS, OarG, OarP, Reference, ReferenceLaunch
from gift.training.reference.weights import padding_of, scaled, token_weights, tokens_of
from tests.test_trainer import LAYOUTS, TEMPERATURE, model

PAD = 0
EVERY = ("first", "mean", "last")


def near(*values: float) -> Any:
    return pytest.approx(list(values), abs=1e-6)


# Where the answer is.


@pytest.mark.parametrize(
    ("form", "text", "answer"),
    [
        ({"boxed": {}}, r"So \boxed{1}, no: \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        ({"boxed": {}}, r"So \boxed5", "5"),
        ({"boxed": {}}, r"\boxed{1} and \boxed{2}", "2"),
        ({"boxed": {}}, r"\boxed{\}}", r"\}"),
        ({"boxed": {}}, r"\boxed{ }", None),
        ({"boxed": {}}, "none", None),
        ({"last_number": {}}, "1 plus 2 is -1,234.50.", "-1,234.50"),
        ({"last_number": {}}, "it is $72 in all", "$72"),
        (
            {"last_number": {}},
            "\u200bis \uff11\uff0c\uff12\uff13\uff14 \u20ac\u2212\uff15\uff16!",
            "\u20ac\u2212\uff15\uff16",
        ),
        (
            {"last_number": {}},
            "\u7b54\u6848\uff0c\u662f \uff11\uff0c\uff12\uff13\uff14\u3002",
            "\uff11\uff0c\uff12\uff13\uff14",
        ),
        ({"last_number": {}}, "none", None),
        ({"pattern": {"regex": r"#(-?\d+)"}}, "#5 then #-62 end", "-62"),
        ({"pattern": {"regex": r"is .*"}}, "it is  9 ", "is  9"),
        ({"pattern": {"regex": r"a(b)?"}}, "ab a", None),
        ({"pattern": {"regex": r"a(\s*)"}}, "a  ", None),
    ],
)
def test_the_place_of_the_answer(form: dict[str, Any], text: str, answer: str | None) -> None:
    chosen = choice(ANSWER).model_validate(form)
    place = chosen.record.place(text, chosen.settings)
    assert (place and text[slice(*place)]) == answer
    if "last_number" in form:
        found = chosen.record.find(text, chosen.settings)
        assert found == (answer and chosen.record.find(answer, chosen.settings))


def test_tokens_of_a_place_are_those_that_hold_its_characters() -> None:
    """A token is a byte here: a character of three has three, and the special one at the end none."""
    tokenizer = byte_tokenizer()
    text = "a\u20acb 7\u00e92"
    ids = np.array([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], np.int32)
    starts = np.cumsum([0, *(len(letter.encode()) for letter in text)]).tolist()
    for begin in range(len(text)):
        for end in range(begin + 1, len(text) + 1):
            assert tokens_of((begin, end), text, ids, tokenizer) == (starts[begin], starts[end])


class Pieces:
    """A tokenizer that decodes to pieces of text."""

    pieces = ("x ", "is{", "7", "2}.", "<s>")

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(piece for piece in (self.pieces[index] for index in ids) if piece[0] != "<")


def test_a_token_that_is_in_part_of_the_answer_is_of_the_answer() -> None:
    ids = np.arange(5, dtype=np.int32)
    assert tokens_of((5, 7), "x is{72}.", ids, Pieces()) == (2, 4)
    assert tokens_of((4, 6), "x is{72}.", ids, Pieces()) == (1, 3)
    assert tokens_of((0, 9), "x is{72}.", ids, Pieces()) == (0, 4)


# Importance.


def rows() -> tuple[list[Reasoned], list[list[int]]]:
    """Two prompts; the last completion ends with its answer."""
    rng = np.random.default_rng(0)
    made = []
    for prompt, size, first, stop in ((3, 9, 5, 7), (3, 6, 1, 3), (5, 8, 6, 8)):
        tokens = rng.integers(1, 50, size).astype(np.int32)
        made.append(Reasoned(np.arange(1, prompt + 1, dtype=np.int32), tokens, first, stop, seed=size))
    return made, [[0, 1], [2]]


def answer_by_hand(policy: Any, row: Reasoned, at: str, noise: torch.Tensor | None = None, tokens: Any = None) -> Any:
    """Whole logits of the completion alone; and the embeddings of it, to be differentiated."""
    ids = torch.tensor([[*row.prompt, *(row.tokens if tokens is None else tokens)]])
    embedded = policy.get_input_embeddings()(ids).detach().requires_grad_()
    start = len(row.prompt)
    given = embedded
    if noise is not None:
        given = embedded + torch.nn.functional.pad(noise, (0, 0, start, ids.shape[1] - start - row.first))
    logits = policy(inputs_embeds=given).logits[0] / TEMPERATURE
    behind = {"first": [row.first], "mean": range(row.first, row.stop), "last": [row.stop]}[at]
    mean = torch.stack([logits[start + token - 1] for token in behind]).mean(0)
    return mean.log_softmax(-1), embedded


def kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.exp() * (one - other)).sum()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("at", EVERY)
def test_perturbation_is_that_of_a_forward_for_each_token(at: Any, layout: Any) -> None:
    logprobs = TokenLogprobs(model(), TEMPERATURE, layout)
    for row in rows()[0]:
        clean, _ = answer_by_hand(model(), row, at)
        expected = []
        for token in range(row.first):
            changed = row.tokens.copy()
            changed[token] = PAD
            expected.append(kl(clean, answer_by_hand(model(), row, at, tokens=changed)[0]).item())
        for budget in (1000, 30):
            assert perturbed(logprobs, row, at, PAD, budget).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("at", EVERY)
def test_gradient_is_that_of_autograd_alone(at: Any, layout: Any) -> None:
    """At any micro-batch, so that a completion's weights depend on no other one."""
    logprobs = TokenLogprobs(model(), TEMPERATURE, layout)
    made, groups = rows()
    every = [by_gradient(logprobs, made, groups, at, 0.05, budget) for budget in (1000, 20)]
    for index, row in enumerate(made):
        generator = torch.Generator().manual_seed(row.seed)
        noise = 0.05 * torch.randn(row.first, 32, generator=generator)
        clean = answer_by_hand(model(), row, at)[0].detach()
        other, embedded = answer_by_hand(model(), row, at, noise)
        (gradient,) = torch.autograd.grad(kl(clean, other), [embedded])
        own = (gradient * embedded).sum(-1)[0, len(row.prompt) : len(row.prompt) + row.first].abs()
        for found in every:
            assert found[index].tolist() == pytest.approx(own.tolist(), rel=1e-3, abs=1e-5)


def test_what_does_not_reach_the_answer_has_no_importance() -> None:
    """Without attention only the token right before the answer says what comes next."""
    policy = model()
    for layer in policy.model.layers:  # type: ignore[union-attr]
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)  # type: ignore[union-attr, arg-type]
    logprobs = TokenLogprobs(policy, 1.0)
    row = rows()[0][0]
    settings = OarG.model_validate({"answer": {"boxed": {}}})
    for found in (
        perturbed(logprobs, row, "first", PAD, 1000),
        by_gradient(logprobs, [row], [[0]], "first", 0.05, 1000)[0],
    ):
        assert found[:-1].max() < 1e-6 < 1e-4 < found[-1]
        assert scaled(np.round(found, 6), settings).tolist() == near(1, 1, 1, 1, 2)


# The scale.


def settings_of_scale(**fields: Any) -> OarP:
    return OarP.model_validate({"answer": {"last_number": {}}, **fields})


def test_weights_by_hand() -> None:
    importance = np.expm1(np.arange(5.0) / 2)  # u: 0, 1/4, 1/2, 3/4, 1
    assert scaled(importance, settings_of_scale()).tolist() == near(0.1, 1, 4 / 3, 5 / 3, 2)
    assert scaled(importance, settings_of_scale(quantile=0.5, beta=0.5)).tolist() == near(0.1, 0.5, 1, 1.25, 1.5)
    assert scaled(importance, settings_of_scale(sum_to_length=True)).tolist() == near(
        *(5 / 6.1 * each for each in (0.1, 1, 4 / 3, 5 / 3, 2))
    )
    assert scaled(np.zeros(3), settings_of_scale()).tolist() == [1, 1, 1]
    assert scaled(np.ones(1), settings_of_scale()).tolist() == [1]


def test_weights_are_positive_and_keep_the_order_of_importance() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        importance = rng.gamma(0.3, 10, rng.integers(1, 40))
        fields = {"quantile": rng.random(), "floor": 0.01 + 0.9 * rng.random(), "beta": 3 * rng.random()}
        weights = scaled(importance, settings_of_scale(**fields))
        assert weights.min() >= fields["floor"] - 1e-9
        assert weights.max() <= 1 + fields["beta"] + 1e-9
        assert (np.diff(weights[importance.argsort()]) >= -1e-9).all()
        kept = scaled(importance, settings_of_scale(**fields, sum_to_length=True))
        assert kept.sum() == pytest.approx(len(kept))
        assert (kept > 0).all()


# The column.


def byte_policy() -> tuple[Any, Any]:
    tokenizer = byte_tokenizer()
    policy = model()
    policy.resize_token_embeddings(len(tokenizer))  # type: ignore[operator]
    return policy, tokenizer


def table_of(tokenizer: Any, texts: list[str], prompts: list[str]) -> pa.Table:
    ids = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    return pa.table(
        {
            "prompt_ids": Ragged.of([ids(prompt) for prompt in prompts], np.int32).to_arrow(),
            "completion_ids": Ragged.of([[*ids(text), 1] for text in texts], np.int32).to_arrow(),
            "completion": texts,
            "seed": [seed_of(text) for text in texts],
        }
    )


TEXTS = ["2+3=5 #5", "no answer", "#7", "so #12 and on", "2+3=6 #6"]


def weights_of(
    texts: list[str], form: dict[str, Any], budget: int = 1000, layout: Any = "shared"
) -> list[NDArray[Any]]:
    policy, tokenizer = byte_policy()
    chosen = choice(TOKEN_WEIGHTS).model_validate(form)
    prompts = ["a?", "a?", "a?", "b??", "b??"][: len(texts)]
    groups = [[row for row, prompt in enumerate(prompts) if prompt == each] for each in dict.fromkeys(prompts)]
    launch = ReferenceLaunch(tokens_per_batch=budget)
    logprobs = TokenLogprobs(policy, 1.0, layout)
    column = token_weights(logprobs, table_of(tokenizer, texts, prompts), groups, tokenizer, chosen.settings, launch)
    made = Ragged.from_arrow(pa.chunked_array([column]))
    return [made[row] for row in range(len(made))]


HASH = {"pattern": {"regex": r"#(\d+)"}}
BOTH: list[dict[str, Any]] = [{"oar_p": {"answer": HASH}}, {"oar_g": {"answer": HASH}}]


@pytest.mark.parametrize("form", BOTH, ids=lambda form: next(iter(form)))
def test_only_what_stands_before_an_answer_has_another_weight(form: dict[str, Any]) -> None:
    made = weights_of(TEXTS, form)
    assert [len(each) for each in made] == [len(text) + 1 for text in TEXTS]
    assert [int((each != 1).any()) for each in made] == [1, 0, 0, 1, 1]
    for each, first in zip(made, (7, 0, 1, 4, 7), strict=True):
        assert (each[first:] == 1).all()
        assert (each > 0).all()
    assert made[0][:7].max() == pytest.approx(2)
    for other in (weights_of(TEXTS, form, 60, "padded"), weights_of(TEXTS, form, 40, "packed")):
        for one, two in zip(made, other, strict=True):
            assert one == pytest.approx(two, abs=0.02)  # oar_g's gradient is of the size of its noise, 1e-3
    assert made[0] == pytest.approx(weights_of(TEXTS[:1], form)[0], abs=0.02)  # without siblings


def test_long_reasoning_is_left_as_it_is() -> None:
    made = weights_of(TEXTS, {"oar_p": {"answer": HASH, "max_tokens": 4}})
    assert [int((each != 1).any()) for each in made] == [0, 0, 0, 1, 0]


def test_what_stands_in_for_a_token() -> None:
    tokenizer = byte_tokenizer()
    assert padding_of(tokenizer) == tokenizer.eos_token_id
    tokenizer.pad_token = "<pad>"
    assert padding_of(tokenizer) == 0
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"neither a padding nor an end token; use oar_g$"):
        padding_of(tokenizer)


def test_a_weight_of_0_is_refused_by_row() -> None:
    lists = Ragged.of([[-1.0, -1.0], [-1.0]], np.float32).to_arrow()
    weights = Ragged.of([[1.0, 0.5], [0.0]], np.float32).to_arrow()
    table = pa.table([["p", "p"], pa.array([0, 1], pa.int32()), lists, lists, weights], WEIGHTED)
    with pytest.raises(
        UserError, match=r"^t: row 1 \(prompt_id=p, sample=1\): token_weights holds 0; a weight is finite"
    ):
        check_reference(table, Path("t"))


# The stages.

SETTINGS = {"answer": {"pattern": {"regex": r"(\d)"}}}


@pytest.mark.parametrize("form", ["oar_p", "oar_g"])
def test_the_reference_stage_writes_weights_and_the_update_reads_them(copied: Path, form: str) -> None:
    folder = copied / "data/rounds/r1"
    plain = read_file(folder / "reference/part-00000.parquet")
    params = mini.read_yaml(copied / "params.yaml")
    params["update"] |= {"shape": {"token_weighted": {}}, "match": {"clipped": {}}}
    (copied / "params.yaml").write_text(json.dumps(params))
    mini.remove_outputs(copied, "update@r1")
    with pytest.raises(AssertionError, match=r"error: data/rounds/r1/reference: has no token_weights, .*; set ref"):
        mini.run_stages(copied, ["update@r1"])
    params["reference"] |= {"token_weights": {form: SETTINGS}}
    (copied / "params.yaml").write_text(json.dumps(params))
    mini.remove_outputs(copied, "reference@r1")
    mini.run_stages(copied, ["reference@r1", "update@r1"])
    table, metadata = read_reference(folder / "reference", weighted=True)
    assert metadata["settings"] == {**plain[1]["settings"], "token_weights": {form: SETTINGS}}
    assert table.slice(0, plain[0].num_rows).select(plain[0].column_names).equals(plain[0].replace_schema_metadata())
    numbers = json.loads((folder / "metrics/reference.json").read_text())
    assert 0 <= numbers["token_weights/num_unweighted"] < table.num_rows
    assert 0 < numbers["token_weights/min"] <= numbers["token_weights/mean"] <= numbers["token_weights/max"] <= 2.0001


def test_what_settings_refuse() -> None:
    for given, message in (
        ({"oar_p": {}}, "params.yaml: token_weights.oar_p.answer: missing; it is where a completion has its final"),
        ({"oar_p": {"answer": {"boxed": {}}, "noise": 1.0}}, "token_weights.oar_p.noise: unknown key"),
        ({"oar_g": {"answer": {"boxed": {}}, "floor": 0.0}}, "token_weights.oar_g.floor: 0.0: must be greater than 0"),
        ({"oar_g": {"answer": {"box": {}}}}, "token_weights.oar_g.answer.box: unknown key; did you mean 'boxed'"),
    ):
        with pytest.raises(UserError, match=f"^[^\n]*{message}"):
            check(Reference, {"token_weights": given}, "params.yaml")
    params = read_yaml(mini.ROOT / "params.yaml")
    params["update"] |= {"shape": {"token_weighted": {}}, "match": {"clipped": {}}}
    with pytest.raises(UserError) as refused:
        check(Params, params, "params.yaml")
    assert str(refused.value) == (
        "params.yaml: update: shape: token_weighted: needs what each token weighs; set reference.token_weights, such "
        "as {oar_g: {answer: {boxed: {}}}}"
    )
