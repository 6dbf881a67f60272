"""Chat templates in the shapes of real models: what stands before a completion, what ends one, what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gift.project.errors import UserError
from gift.sampling.encoding import chat_findings, encode_prompts, end_of_turn, end_token_ids, render_chats

POLICY = Path("policy")
ASKED = [{"role": "user", "content": "What is 2+2?"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *ASKED]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "r1": ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
}


def tokenizer_of(template: str | None, eos: str = "<eos>") -> Any:
    """One token a printable character, and the special tokens of all shapes."""
    characters = "\n" + "".join(map(chr, range(32, 127)))
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<bos>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": [token for kind in SPECIAL.values() for token in kind]})
    fast.add_special_tokens({"bos_token": "<bos>", "eos_token": eos})
    fast.chat_template = template
    return fast


def refusal(template: str | None, chat: list[dict[str, str]], **variables: Any) -> str:
    with pytest.raises(UserError) as caught:
        render_chats(tokenizer_of(template), [chat], variables, POLICY)
    assert "\n" not in caught.value.message
    return str(caught.value.message)


@pytest.mark.parametrize(
    ("template", "variables", "opening", "end"),
    [
        (CHATML, {}, "<|im_start|>assistant\n", "<|im_end|>"),
        (QWEN3, {}, "<|im_start|>assistant\n", "<|im_end|>"),
        (QWEN3, {"enable_thinking": True}, "<|im_start|>assistant\n", "<|im_end|>"),
        (QWEN3, {"enable_thinking": False}, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        (LLAMA3, {}, "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        (GEMMA, {}, "<start_of_turn>model\n", "<end_of_turn>"),
        (R1, {}, "<｜Assistant｜><think>\n", "<｜end▁of▁sentence｜>"),
        (LLAMA2, {}, "", "<eos>"),
    ],
)
def test_what_stands_before_an_answer_and_what_ends_it(
    template: str, variables: dict[str, Any], opening: str, end: str
) -> None:
    tokenizer = tokenizer_of(template)
    texts, found = render_chats(
        tokenizer, [ASKED, [*ASKED, {"role": "assistant", "content": "4"}, *ASKED]], variables, POLICY
    )
    assert found == opening
    assert all(text.endswith(opening) and "What is 2+2?" in text for text in texts)
    assert end_of_turn(tokenizer, variables, POLICY) == end


def test_chats_are_encoded_as_the_tokenizer_itself_does() -> None:
    chats = [ASKED, WITH_SYSTEM, [{"role": "user", "content": "Say <|im_end|> twice"}]]
    table = pa.table({"prompt_id": ["a", "b", "c"], "messages": chats})
    for template, variables in ((CHATML, {}), (LLAMA3, {}), (QWEN3, {"enable_thinking": False})):
        tokenizer = tokenizer_of(template)
        encoded, opening = encode_prompts(tokenizer, table, variables, POLICY)
        rows = table["messages"].to_pylist()
        own = tokenizer.apply_chat_template(rows, add_generation_prompt=True, tokenize=True, **variables)["input_ids"]
        assert {key: ids.tolist() for key, ids in encoded.items()} == dict(zip("abc", own, strict=True))
        assert tokenizer.decode(encoded["a"]).endswith(opening)
    assert encode_prompts(tokenizer_of(LLAMA3), table, {}, POLICY)[0]["a"].tolist().count(1) == 1  # one <bos>, not two


def test_texts_have_nothing_before_the_answer_and_take_no_variables() -> None:
    table = pa.table({"prompt_id": ["a", "b"], "prompt": ["1+1=", "2"]})
    tokenizer = tokenizer_of(CHATML)
    encoded, opening = encode_prompts(tokenizer, table, {}, POLICY)
    own = {"a": tokenizer("1+1=")["input_ids"], "b": tokenizer("2")["input_ids"]}
    assert ({key: ids.tolist() for key, ids in encoded.items()}, opening) == (own, "")
    with pytest.raises(UserError, match=r"prepare\.chat_template_kwargs: enable_thinking: the prompts are texts"):
        encode_prompts(tokenizer, table, {"enable_thinking": False}, POLICY)


def test_a_system_message_that_the_template_refuses_or_drops_is_one_line() -> None:
    message = refusal(GEMMA, WITH_SYSTEM)
    assert message.startswith(
        "policy: its chat template refuses a chat of system user (System role not supported); put"
    )
    assert "prepare.prompt_template" in message
    message = refusal(LLAMA2, WITH_SYSTEM)
    assert message.startswith("policy: its chat template leaves out the system message ('Be brief.')")


def test_a_template_that_raises_at_roles_says_which() -> None:
    strict = CHATML + "{% if messages[-1]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    message = refusal(strict, [*ASKED, {"role": "tool", "content": "4"}])
    assert message.startswith("policy: its chat template refuses a chat of user tool (no tools); change the chats")


def test_variables_that_the_template_does_not_have_are_refused() -> None:
    message = refusal(QWEN3, ASKED, enable_thinkin=False)
    assert message == (
        "params.yaml: prepare.chat_template_kwargs.enable_thinkin: the chat template of policy has no such variable, "
        "so it would change nothing; did you mean 'enable_thinking'?"
    )
    assert refusal(CHATML, ASKED, enable_thinking=False).endswith("it would change nothing; remove it")
    assert "has no chat template" in refusal(None, ASKED)


def test_answers_that_are_opened_in_two_ways_are_refused() -> None:
    two = CHATML.replace(
        "assistant\n{% endif %}", "assistant\n{% if messages|length > 1 %}<think>{% endif %}{% endif %}"
    )
    with pytest.raises(UserError, match="opens the answers of prompts differently"):
        render_chats(tokenizer_of(two), [ASKED, WITH_SYSTEM], {}, POLICY)


def model_folder(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_end_tokens_are_those_of_model_tokenizer_and_settings(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(CHATML)
    eos, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    model_folder(tmp_path, config={"eos_token_id": 7})
    assert end_token_ids(tmp_path, tokenizer, [], "k") == sorted({eos, 7})
    model_folder(tmp_path, config={"text_config": {"eos_token_id": [8, 9]}})
    assert end_token_ids(tmp_path, tokenizer, [], "k") == sorted({eos, 8, 9})
    model_folder(tmp_path, generation_config={"eos_token_id": [end, eos]}, config={"eos_token_id": 7})
    assert end_token_ids(tmp_path, tokenizer, [], "k") == sorted({eos, end})
    model_folder(tmp_path, generation_config={"max_new_tokens": 5})
    assert end_token_ids(tmp_path, tokenizer, ["<|im_end|>", "\n"], "k") == sorted({eos, 7, end, 3})
    with pytest.raises(
        UserError, match=r"generate\.stop_tokens: '<\|im_ed\|>': no token of .*; did you mean '<\|im_end"
    ):
        end_token_ids(tmp_path, tokenizer, ["<|im_ed|>"], "generate.stop_tokens")
    with pytest.raises(UserError, match="only a whole token can end a completion"):
        end_token_ids(tmp_path, tokenizer, ["Question:"], "generate.stop_tokens")


def findings(folder: Path, tokenizer: Any, stop_tokens: Sequence[str] = (), chat: Any = None) -> list[str]:
    """What `generate` and `gift doctor` say of a tokenizer; a refusal is the only line."""
    try:
        ends = end_token_ids(folder, tokenizer, stop_tokens, "generate.stop_tokens")
        _, opening = render_chats(tokenizer, [chat or ASKED], {}, folder)
    except UserError as error:
        return [error.message]
    return chat_findings(tokenizer, ends, opening, {}, folder)


def test_a_turn_that_ends_no_completion_is_found(tmp_path: Path) -> None:
    """A base model with an instruct model's template: <eos> ends a completion, <|im_end|> does not."""
    model_folder(tmp_path, config={"eos_token_id": 2})
    (finding,) = findings(tmp_path, tokenizer_of(CHATML))
    assert "its chat template ends an answer with <|im_end|>, which ends no completion (end tokens: <eos>)" in finding
    assert finding.endswith("To end there: stop_tokens: ['<|im_end|>']")
    assert findings(tmp_path, tokenizer_of(CHATML), ["<|im_end|>"]) == []
    assert findings(tmp_path, tokenizer_of(CHATML, eos="<|im_end|>")) == []
    assert findings(tmp_path, tokenizer_of(R1, eos="<｜end▁of▁sentence｜>")) == []


def test_the_findings_of_odd_templates(tmp_path: Path) -> None:
    model_folder(tmp_path, config={})
    (finding,) = findings(tmp_path, tokenizer_of(LLAMA2))
    assert "adds nothing before an answer" in finding
    no_end = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    (finding,) = findings(tmp_path, tokenizer_of(no_end))
    assert "writes no special token behind an answer; the end tokens are <eos>" in finding
    assert findings(tmp_path, tokenizer_of(GEMMA), chat=WITH_SYSTEM) == [
        f"{tmp_path}: its chat template refuses a chat of system user (System role not supported); put what the system "
        "message says into prepare.prompt_template in place of prepare.system_prompt"
    ]
    assert "has no chat template" in findings(tmp_path, tokenizer_of(None))[0]
    without = tokenizer_of(CHATML)
    without.eos_token = None
    assert ["names no end token" in each for each in chat_findings(without, [], "<", {}, POLICY)] == [True]
    assert end_token_ids(tmp_path, without, [], "k") == []
    several = tokenizer_of(None)
    several.chat_template = {"rag": CHATML, "tool_use": CHATML}
    assert "multiple chat templates" in findings(tmp_path, several)[0]


def test_both_kinds_of_end_tokens_end_completions_of_the_transformers_engine() -> None:
    """With one end token more, the completions are those without it, cut behind its first place."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from gift.sampling.engine.by_transformers import transformers_sampler
    from gift.sampling.engine.requests import Request
    from gift.sampling.settings import Sampling

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=12, num_key_value_heads=1, head_dim=16, eos_token_id=0, **sizes)
    ).eval()
    requests = [Request(np.array([3, 4, 5]), seed, 1.0) for seed in range(40)]
    sampling = Sampling(engine="transformers", max_tokens=16)
    free, one, two = (transformers_sampler(model, sampling, ends, 64)(requests) for ends in ([], [0], [0, 7]))
    assert {each.finish_reason for each in free} == {"length"}
    for ends, cut in (({0}, one), ({0, 7}, two)):
        for whole, each in zip(free, cut, strict=True):
            places = [place for place, token in enumerate(whole.completion_ids) if token in ends]
            length = places[0] + 1 if places else 16
            assert each.completion_ids.tolist() == whole.completion_ids[:length].tolist()
            assert each.logprobs == pytest.approx(whole.logprobs[:length], abs=1e-6)
            assert each.finish_reason == ("stop" if places else "length")
    assert any(len(a.completion_ids) > len(b.completion_ids) for a, b in zip(one, two, strict=True))
