"""Prompts in a policy's own tokens: its chat template, its context, and the tokens that end an answer."""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gift.policy.folder import max_model_len
from gift.project.errors import UserError
from gift.sampling.settings import Sampling, room_problem

Tokens = NDArray[np.int32]
Chat = list[dict[str, str]]

PROBE = "a probe of the template"
NO_SYSTEM = "put what {} says into prepare.prompt_template in place of prepare.system_prompt"


@dataclass(frozen=True)
class EncodedPrompts:
    """What a sampler is asked with, and the room it has."""

    prompt_ids: dict[str, Tokens]  # by prompt_id
    opening: str  # what the chat template adds before every completion; empty for text prompts
    ends: list[int]  # tokens that end a completion
    context: int  # tokens of prompt and completion together


def encode_split(
    tokenizer: Any,
    model: Path,
    prompts: pa.Table,
    variables: dict[str, Any],
    sampling: Sampling,
    section: str,
    policy: Path,
) -> EncodedPrompts:
    """Every prompt of a table under one sampling section of params.yaml: `generate` or `evaluate`.

    model: the folder of the tokenizer and the model's configuration. variables: prepare.chat_template_kwargs. policy is
    what messages name. Raises `UserError` where the context, a stop token or the template does not fit.
    """
    context = max_model_len(model, sampling.max_model_len, section)
    if problem := room_problem(sampling, section, context):
        raise UserError(problem)
    ends = end_token_ids(model, tokenizer, sampling.stop_tokens, f"{section}.stop_tokens")
    encoded, opening = encode_prompts(tokenizer, prompts, variables, policy)
    return EncodedPrompts(encoded, opening, ends, context)


def encode_prompts(
    tokenizer: Any, prompts: pa.Table, variables: dict[str, Any], policy: Path
) -> tuple[dict[str, Tokens], str]:
    """Token ids of every prompt, and the template's text right before every completion (`render_chats`; else empty)."""
    if "messages" in prompts.column_names:
        texts, opening = render_chats(tokenizer, prompts["messages"].to_pylist(), variables, policy)
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    elif variables:
        raise UserError(
            f"params.yaml: prepare.chat_template_kwargs: {', '.join(variables)}: the prompts are texts, which pass "
            "no chat template; set prepare.chat to true, or remove it"
        )
    else:
        encoded, opening = tokenizer(prompts["prompt"].to_pylist())["input_ids"], ""
    tokens = (np.array(ids, dtype=np.int32) for ids in encoded)
    return dict(zip(prompts["prompt_id"].to_pylist(), tokens, strict=True)), opening


def refuse_long_prompts(encoded: EncodedPrompts, sampling: Sampling, section: str) -> tuple[EncodedPrompts, int]:
    """Only the prompts that leave room for `max_tokens`; the others are refused by id, or dropped and counted."""
    room = encoded.context - sampling.max_tokens
    long = {key: len(ids) for key, ids in encoded.prompt_ids.items() if len(ids) > room}
    if long and sampling.long_prompts == "fail":
        key, length = max(long.items(), key=lambda item: item[1])
        raise UserError(
            f"params.yaml: {section}.max_tokens: {sampling.max_tokens}: {len(long)} prompts are too long for a context "
            f"of {encoded.context} tokens, the longest prompt_id={key} with {length}; lower {section}.max_tokens, or "
            f"set {section}.long_prompts to drop"
        )
    if empty := [key for key, ids in encoded.prompt_ids.items() if not len(ids)]:
        raise UserError(f"prompt_id={empty[0]}: the tokenizer makes no token of it; mend or drop it in prepare")
    kept = {key: ids for key, ids in encoded.prompt_ids.items() if key not in long}
    return replace(encoded, prompt_ids=kept), len(long)


def render_chats(
    tokenizer: Any, chats: Sequence[Chat], variables: dict[str, Any], policy: Path
) -> tuple[list[str], str]:
    """The chats as texts that end where the policy's answer begins, and the template's own text right before it.

    That text, such as `<|im_start|>assistant\\n<think>\\n`, is what `add_generation_prompt` adds; it is the same for
    all chats, and empty where a template adds none (Llama 2, Mistral). `variables`: prepare.chat_template_kwargs.
    Refused: no template, a variable that it does not have, a chat that it raises at, a system message that it drops.
    """
    _check_template(tokenizer, variables, policy)
    texts = []
    for chat in chats:
        texts.append(render(tokenizer, chat, variables, policy))
        dropped = [each for each in chat if each["role"] == "system" and each["content"].strip() not in texts[-1]]
        if dropped:
            raise UserError(
                f"{policy}: its chat template leaves out the system message ({dropped[0]['content']!r:.40}); "
                + NO_SYSTEM.format("it")
            )
    closed = render(tokenizer, chats[0], variables, policy, add_generation_prompt=False)
    places = (place for place, (one, other) in enumerate(zip(texts[0], closed, strict=False)) if one != other)
    opening = texts[0][next(places, min(len(texts[0]), len(closed))) :]
    for number, text in enumerate(texts):
        if not text.endswith(opening):
            raise UserError(
                f"{policy}: its chat template opens the answers of prompts differently: the first with {opening!r}, "
                f"number {number} with {text[-len(opening) :]!r}; rewards must know one: split the data"
            )
    return texts, opening


def _check_template(tokenizer: Any, variables: dict[str, Any], policy: Path) -> None:
    if not tokenizer.chat_template:
        raise UserError(
            f"{policy}: its tokenizer has no chat template, but the prompts are messages; use an instruct "
            "model as base.model, or prompts that are texts (a column of texts and prepare.chat: false)"
        )
    try:
        text = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none of them is the default
        raise UserError(f"{policy}: {str(error).splitlines()[0]}") from None
    for name in variables:
        if not re.search(rf"\b{re.escape(name)}\b", text):
            known = sorted(set(re.findall(r"\b([a-z_]+) is (?:not )?defined", text)) - {"tools"})
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "remove it"
            raise UserError(
                f"params.yaml: prepare.chat_template_kwargs.{name}: the chat template of {policy} has no such "
                f"variable, so it would change nothing; {hint}"
            )


def render(
    tokenizer: Any, chat: Chat, variables: dict[str, Any], policy: Path, add_generation_prompt: bool = True
) -> str:
    """A chat as text; `add_generation_prompt`: up to where the policy's answer begins."""
    import jinja2

    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt, **variables}
    try:
        return str(tokenizer.apply_chat_template(chat, **options))
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        roles = " ".join(each["role"] for each in chat)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "change the chats in prepare, or take another model"
        if "system" in roles:
            remedy = NO_SYSTEM.format("the system message")
        raise UserError(f"{policy}: its chat template refuses a chat of {roles} ({reason}); {remedy}") from None


def end_token_ids(folder: Path, tokenizer: Any, stop_tokens: Sequence[str], key: str) -> list[int]:
    """Ids of the tokens that end a completion: the model's, the tokenizer's, and `stop_tokens` by name; sorted.

    The model's are those of generation_config.json, or of config.json where it has none (as transformers and vLLM read
    them). `key` is the setting of `stop_tokens`, such as 'generate.stop_tokens'.
    """
    ends = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for path in (folder / "generation_config.json", folder / "config.json"):
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        found = content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
        if found is not None:
            ends |= {found} if isinstance(found, int) else set(found)
            break
    vocabulary = tokenizer.get_vocab() if stop_tokens else {}
    for token in stop_tokens:
        if token not in vocabulary:
            close = difflib.get_close_matches(token, tokenizer.get_added_vocab(), n=1)
            hint = f"did you mean '{close[0]}'?" if close else "only a whole token can end a completion"
            raise UserError(f"params.yaml: {key}: '{token}': no token of {folder}; {hint}")
        ends.add(vocabulary[token])
    return sorted(ends)


def end_of_turn(tokenizer: Any, variables: dict[str, Any], policy: Path) -> str | None:
    """The special token that the template writes behind an answer, such as `<|im_end|>`; None where it writes none."""
    chat = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    text = render(tokenizer, chat, variables, policy, add_generation_prompt=False)
    ids = tokenizer(text[text.rindex(PROBE) + len(PROBE) :], add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    end = next((number for number in ids if number in special), None)
    return None if end is None else str(tokenizer.convert_ids_to_tokens(end))


def chat_findings(
    tokenizer: Any, ends: Sequence[int], opening: str, variables: dict[str, Any], policy: Path
) -> list[str]:
    """What is odd about how the template begins and ends an answer, one line each; empty where nothing is.

    ends: of `end_token_ids`. opening: of `render_chats`.
    """
    found = []
    if not opening:
        found.append(
            f"{policy}: its chat template adds nothing before an answer (add_generation_prompt); right for Llama 2 and "
            "Mistral, wrong where an answer begins with a header"
        )
    if not ends:
        return [*found, f"{policy}: names no end token; every completion runs to max_tokens. Set stop_tokens"]
    try:
        token = end_of_turn(tokenizer, variables, policy)
    except (UserError, ValueError):  # a template that takes no answer, or changes it: nothing can be said
        return found
    names = ", ".join(tokenizer.convert_ids_to_tokens(list(ends)))
    if token is None:
        found.append(
            f"{policy}: its chat template writes no special token behind an answer; the end tokens are {names}"
        )
    elif tokenizer.convert_tokens_to_ids(token) not in ends:
        found.append(
            f"{policy}: its chat template ends an answer with {token}, which ends no completion (end tokens: {names}); "
            f"where the policy says it, completions run on to max_tokens. To end there: stop_tokens: ['{token}']"
        )
    return found
