"""Chat templates: chats as the policy's tokenizer writes them, what stands before a completion, and what ends one."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gift.project.errors import UserError

Chat = list[dict[str, str]]

PROBE = "a probe of the template"


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
        texts.append(_render(tokenizer, chat, variables, policy))
        dropped = [each for each in chat if each["role"] == "system" and each["content"].strip() not in texts[-1]]
        if dropped:
            raise UserError(
                f"{policy}: its chat template leaves out the system message ({dropped[0]['content']!r:.40}); put what "
                "it says into prepare.prompt_template in place of prepare.system_prompt"
            )
    opening = generation_prompt(tokenizer, chats[0], variables, policy)
    for number, text in enumerate(texts):
        if not text.endswith(opening):
            raise UserError(
                f"{policy}: its chat template opens the answers of prompts differently: the first with {opening!r}, "
                f"number {number} with {text[-len(opening) :]!r}; rewards must know one: split the data"
            )
    return texts, opening


def generation_prompt(tokenizer: Any, chat: Chat, variables: dict[str, Any], policy: Path) -> str:
    """What the template adds behind a chat for the policy to answer."""
    asked = _render(tokenizer, chat, variables, policy)
    closed = _render(tokenizer, chat, variables, policy, add_generation_prompt=False)
    pairs = enumerate(zip(asked, closed, strict=False))
    return asked[next((place for place, (one, other) in pairs if one != other), min(len(asked), len(closed))) :]


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
    text = _render(tokenizer, chat, variables, policy, add_generation_prompt=False)
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


def _check_template(tokenizer: Any, variables: dict[str, Any], policy: Path) -> None:
    if not tokenizer.chat_template:
        raise UserError(
            f"{policy}: its tokenizer has no chat template, but the prompts are messages; set prepare.chat to "
            "false, or use an instruct model as base.model"
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


def _render(
    tokenizer: Any, chat: Chat, variables: dict[str, Any], policy: Path, add_generation_prompt: bool = True
) -> str:
    import jinja2

    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt, **variables}
    try:
        return str(tokenizer.apply_chat_template(chat, **options))
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        roles = " ".join(each["role"] for each in chat)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "change the chats in prepare, or take another model"
        if "system" in roles:
            remedy = "put what the system message says into prepare.prompt_template in place of prepare.system_prompt"
        raise UserError(f"{policy}: its chat template refuses a chat of {roles} ({reason}); {remedy}") from None
