"""The reward model: a batch scores each row as it is scored alone, and a model that was never trained is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from gift.project.errors import UserError
from gift.rewards.reward_model import open_classifier, reward_model

CONTEXT = 96
SMALL = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
}
HEADS = {"num_key_value_heads": 1, "head_dim": 16}
EOS = tiny.SPECIAL.index("<eos>")
# A family, and the padding token of its config: none, the end token, -1 as in some Llama folders, one of its own.
FAMILIES: dict[str, tuple[Any, Any]] = {
    "qwen3 without": (Qwen3ForSequenceClassification, Qwen3Config(**SMALL, **HEADS, pad_token_id=None)),
    "qwen3 end token": (Qwen3ForSequenceClassification, Qwen3Config(**SMALL, **HEADS, pad_token_id=EOS)),
    "llama minus one": (LlamaForSequenceClassification, LlamaConfig(**SMALL, **HEADS, pad_token_id=None)),
    "gpt2 without": (
        GPT2ForSequenceClassification,
        GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2),
    ),
    "bert own": (BertForSequenceClassification, BertConfig(**SMALL, pad_token_id=0)),
}
PROMPTS = ["2+2=", "Say it.\n", "?", "Wie heißt du? ", "2+2="] * 8
COMPLETIONS = [f"{'so ' * (i % 7)}{i}{'<eos>' if i % 3 == 0 else ''}" for i in range(40)]
IDS = [[0]] * 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (model_class, config) in FAMILIES.items():
        config.num_labels = 1
        folder = tmp_path_factory.mktemp("classifier")
        made[name] = tiny.save(folder, model_class, config, tiny.byte_tokenizer(context=10**30))
        if name == "llama minus one":
            stored = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**stored, "pad_token_id": -1}))
    return made


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of three labels whose tokenizer has a chat template."""
    labels = {0: "bad", 1: "fair", 2: "good"}
    config = Qwen3Config(**SMALL, **HEADS, id2label=labels, label2id={name: index for index, name in labels.items()})
    tokenizer = tiny.byte_tokenizer(chat=True)
    return str(tiny.save(tmp_path_factory.mktemp("chat"), Qwen3ForSequenceClassification, config, tokenizer))


def scores(model: Any, prompts: list[Any], completions: list[Any], **settings: Any) -> list[float]:
    values = reward_model(
        prompts, completions, [[0]] * len(prompts), model=str(model), answer=["?"] * len(prompts), **settings
    )
    assert all(isinstance(value, float) and math.isfinite(value) for value in values), values
    return [float(value) for value in values if isinstance(value, float)]


def problem(model: Any, prompts: Any = ("?",), completions: Any = ("!",), **settings: Any) -> str:
    """What all rows say is wrong: one and the same mistake of the user, on one line."""
    values = reward_model(list(prompts), list(completions), [[0]] * len(prompts), model=str(model), **settings)
    assert len(values) == len(prompts)
    assert all(isinstance(value, UserError) for value in values), values
    assert len({str(value) for value in values}) == 1
    assert "\n" not in str(values[0])
    return str(values[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_scores_each_row_as_alone(folders: dict[str, Path], family: str) -> None:
    together = scores(folders[family], PROMPTS, COMPLETIONS)
    alone = [scores(folders[family], [p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.02


@pytest.mark.parametrize("family", ["qwen3 without", "llama minus one", "gpt2 without"])
def test_the_score_is_the_head_on_the_last_token(folders: dict[str, Path], family: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folders[family]).eval()
    tokenizer = tiny.byte_tokenizer()
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = tokenizer(prompt + completion)["input_ids"]
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state
            expected.append(float(model.score.weight[0] @ hidden[0, -1]))
    assert scores(folders[family], PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_where_the_config_names_a_padding_token_the_score_is_the_models_own(folders: dict[str, Path]) -> None:
    """transformers then passes over padding tokens at a row's end; its published scores are made so."""
    model = AutoModelForSequenceClassification.from_pretrained(folders["qwen3 end token"]).eval()
    ids = tiny.byte_tokenizer()("2+2=4<eos>")["input_ids"]
    with torch.inference_mode():
        own = float(model(torch.tensor([ids])).logits[0, 0])
    assert scores(folders["qwen3 end token"], ["2+2=", "?"], ["4<eos>", "long, long"])[0] == pytest.approx(
        own, abs=1e-5
    )


def test_a_chat_goes_through_the_tokenizers_template(chat: str) -> None:
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "2+2?"}]
    answer = [{"role": "assistant", "content": "4"}]
    text = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    )
    expected = scores(chat, [""], [text], form="text", score_label="good")
    assert scores(chat, [prompt], [answer], score_label="good") == pytest.approx(expected, abs=1e-6)


def test_a_text_prompt_is_a_user_message_where_there_is_a_template(chat: str, folders: dict[str, Path]) -> None:
    wrapped = "<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    as_chat = scores(chat, [""], [wrapped], form="text", score_label=0)
    as_text = scores(chat, ["2+2=4"], [""], form="text", score_label=0)
    assert scores(chat, ["2+2="], ["4"], score_label=0) == pytest.approx(as_chat, abs=1e-6)
    assert scores(chat, ["2+2="], ["4"], score_label=0, form="chat") == pytest.approx(as_chat, abs=1e-6)
    assert scores(chat, ["2+2="], ["4"], score_label=0, form="text") == pytest.approx(as_text, abs=1e-6)
    assert abs(as_chat[0] - as_text[0]) > 1e-3
    plain = folders["bert own"]
    assert scores(plain, ["2+2="], ["4"]) == scores(plain, ["2+2="], ["4"], form="text")


def test_labels_have_names_numbers_and_logprobs(chat: str) -> None:
    settings: list[dict[str, Any]] = [{"score_label": label} for label in ("bad", "fair", "good")]
    logits = [scores(chat, ["?"], ["!"], **each)[0] for each in settings]
    assert [scores(chat, ["?"], ["!"], score_label=index)[0] for index in range(3)] == logits
    logprobs = [scores(chat, ["?"], ["!"], output="logprob", **each)[0] for each in settings]
    total = math.log(sum(map(math.exp, logits)))
    assert logprobs == pytest.approx([logit - total for logit in logits], abs=1e-5)


def test_which_label_is_never_guessed(chat: str, folders: dict[str, Path]) -> None:
    for wrong in (None, "best", 3, -1):
        assert problem(chat, score_label=wrong).endswith("must be one of the labels 0: bad, 1: fair, 2: good")
    assert "has one label" in problem(folders["bert own"], score_label=0)
    assert "has one label" in problem(folders["bert own"], output="logprob")


def test_a_row_that_is_too_long_is_an_error_of_its_own(folders: dict[str, Path]) -> None:
    model = folders["qwen3 without"]
    short, long = reward_model(["?"] * 2, ["!", "!" * CONTEXT], IDS[:2], model=str(model))
    assert short == pytest.approx(scores(model, ["?"], ["!"])[0], abs=1e-5)
    assert isinstance(long, ValueError)
    assert str(long).startswith(f"{CONTEXT + 1} tokens; the reward model takes {CONTEXT}")
    assert isinstance(reward_model(["?"], ["1234"], IDS[:1], model=str(model), max_length=4)[0], ValueError)
    assert "lower it" in problem(model, max_length=CONTEXT + 1)


def test_truncate_left_keeps_the_end(folders: dict[str, Path]) -> None:
    model = folders["qwen3 without"]
    cut = scores(model, ["abcdef", "f"], ["ghij", "gh"], max_length=4, too_long="truncate_left")
    assert cut == pytest.approx(scores(model, ["gh", "fg"], ["ij", "h"]), abs=1e-5)
    # A special token that opens the row (BERT reads its score there) stays.
    kept = scores(model, ["<eos>abcdef"], ["ghij"], max_length=4, too_long="truncate_left")
    assert kept == pytest.approx(scores(model, ["<eos>h"], ["ij"]), abs=1e-5)


def test_a_row_without_tokens_has_no_score(folders: dict[str, Path]) -> None:
    (value,) = reward_model([""], [""], IDS[:1], model=str(folders["qwen3 without"]))
    assert isinstance(value, ValueError)


def test_a_token_that_the_model_has_no_embedding_for_is_an_error_of_its_row(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A tokenizer that was extended, and a model that was not resized; the rows beside it keep their values."""
    plain = folders["gpt2 without"]
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    tokenizer = tiny.byte_tokenizer(context=10**30)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    good, new, other = reward_model(["?"] * 3, ["!", "<new>!", "so"], IDS[:3], model=str(tmp_path))
    assert [good, other] == pytest.approx(scores(plain, ["?"] * 2, ["!", "so"]), abs=1e-5)
    assert isinstance(new, ValueError)
    assert str(new).startswith(f"token {tiny.VOCABULARY} ('<new>') has no embedding")
    assert isinstance(scores(tmp_path, ["<new>"], ["!!"], max_length=2, too_long="truncate_left")[0], float)


def test_a_padding_token_without_an_embedding_is_none(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = folders["gpt2 without"]
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": tiny.VOCABULARY}))
    assert scores(tmp_path, PROMPTS, COMPLETIONS) == scores(plain, PROMPTS, COMPLETIONS)


def test_bfloat16_is_near(folders: dict[str, Path]) -> None:
    model = folders["qwen3 without"]
    exact, near = scores(model, PROMPTS, COMPLETIONS), scores(model, PROMPTS, COMPLETIONS, dtype="bfloat16")
    assert near != exact
    assert near == pytest.approx(exact, abs=0.1 * (max(exact) - min(exact)))


def test_a_classifier_is_opened_once(folders: dict[str, Path]) -> None:
    scores(folders["bert own"], ["?"], ["!"])
    opened = open_classifier.cache_info().misses
    scores(folders["bert own"], ["!"], ["?"])
    assert open_classifier.cache_info().misses == opened


def test_a_causal_model_is_refused_for_its_head_would_be_random(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, Qwen3ForCausalLM, Qwen3Config(**SMALL, **HEADS), tiny.byte_tokenizer())
    said = problem(folder, PROMPTS, COMPLETIONS)
    assert "its files lack score.weight, so the score would be random" in said
    assert "Qwen3ForCausalLM" in said


def test_pickled_weights_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folders["bert own"])
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    assert "pickled weights are not read" in problem(tmp_path)


def test_a_models_own_code_never_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    config = json.loads((folders["bert own"] / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.Mine", "AutoModelForSequenceClassification": "code.Mine"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: pass\n")
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    shutil.copy(folders["bert own"] / "model.safetensors", tmp_path)
    assert "cannot be opened" in problem(tmp_path)
    assert not ran.exists()


def test_a_model_that_is_not_there_is_one_clear_line(folders: dict[str, Path], tmp_path: Path) -> None:
    assert problem(tmp_path / "none").endswith("no such folder")
    assert "is no folder here, and as a hub model cannot be opened" in problem("someone/some-reward-model")
    assert "config.json is missing" in problem(tmp_path)
    assert "has no revision" in problem(folders["bert own"], revision="main")


def test_wrong_settings_are_named(folders: dict[str, Path]) -> None:
    model = folders["bert own"]
    assert "dtype: 'float16'" in problem(model, dtype="float16")
    assert "max_length" in problem(model, max_length=0)
    assert "too_long" in problem(model, too_long="cut")
    assert "settings.score_label: ['a']: must be" in problem(model, score_label=["a"])  # a column hides the setting


def test_chats_need_a_template_and_text_forbids_them(chat: str, folders: dict[str, Path]) -> None:
    prompt, answer = [{"role": "user", "content": "?"}], [{"role": "assistant", "content": "!"}]
    assert "has no chat template" in problem(folders["bert own"], [prompt], [answer])
    assert "has no chat template" in problem(folders["bert own"], form="chat")
    assert "the prompts are chats" in problem(chat, [prompt], [answer], form="text", score_label=0)


def test_a_template_that_leaves_the_answer_out_is_refused_and_not_one_score_for_all(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer(chat=True)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    config = Qwen3Config(**SMALL, **HEADS, num_labels=1)
    model = tiny.save(tmp_path, Qwen3ForSequenceClassification, config, tokenizer)
    assert "its chat template leaves the message of the assistant out" in problem(model, form="chat")
    assert scores(model, ["?", "?"], ["a", "b"], form="text")[0] != scores(model, ["?"], ["b"], form="text")[0]
