"""Reward of a trained model: any Hugging Face sequence classifier, opened once in the worker's process, in batches."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gift.project.errors import UserError
from gift.project.sections import Count, Dtype, Section
from gift.rewards.signature import takes
from gift.rewards.text import Completions, completion_text

ROWS_PER_FORWARD = 16  # a call may hold any number of rows; so many of them are padded to one length
NO_LIMIT = 10**9  # a tokenizer that knows no limit says 10**30
Prompts = Sequence[str | list[dict[str, str]]]


class RewardModelSettings(Section):
    """The settings of `reward_model`."""

    model: str
    revision: str | None = None
    dtype: Dtype = "float32"
    form: Literal["auto", "chat", "text"] = "auto"
    max_length: Count | None = None
    too_long: Literal["error", "truncate_left"] = "error"
    output: Literal["logit", "logprob"] = "logit"
    score_label: str | int | None = None


@dataclass(frozen=True)
class Classifier:
    """An open classifier."""

    name: str
    model: Any
    tokenizer: Any
    pad: int | None  # the padding token that its config names
    context: int | None  # its limit in tokens
    vocabulary: int  # the number of tokens that it has embeddings for; its tokenizer may know more


@takes
def reward_model(
    prompts: Prompts, completions: Completions, completion_ids: Any, *, settings: RewardModelSettings, **columns: Any
) -> list[float | Exception]:
    """The classifier's score of each row: prompt and completion, one value of its head (docs/judges.md).

    `model` is a local folder or a hub id with a `revision`, in safetensors. A chat goes through the tokenizer's own
    chat template. A text prompt does so as one user message (`form: chat`), or stands before the completion as it
    is (`text`); `auto` is chat where the tokenizer has a template. The value is the `logit` of the only label, or of
    `score_label` (its name or number), or its natural log-probability among all labels (`logprob`). A row of more than
    `max_length` tokens (null: the model's own limit) is an error, or loses its first tokens (`truncate_left`).
    Whatever keeps the model from opening is the error of every row.
    """
    classifier = open_classifier(settings.model, settings.revision, settings.dtype)
    if isinstance(classifier, UserError):
        raise classifier
    if settings.max_length and classifier.context and settings.max_length > classifier.context:
        most = f"'{classifier.name}' takes {classifier.context} tokens; lower it"
        raise UserError(f"reward_model: settings.max_length: {settings.max_length}: {most}")
    label, limit = _label(classifier, settings), settings.max_length or classifier.context
    template = _uses_template(classifier, settings.form, prompts)
    values: list[float | Exception] = []
    rows: dict[int, list[int]] = {}
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = _tokens(classifier.tokenizer, prompt, completion_text(completion), template[index])
        problem = _fit(ids, limit, settings.too_long, classifier)
        if problem is None:
            rows[index] = ids
        values.append(problem or 0.0)
    # Rows of like length are padded together; the order of equal ones is that of the call.
    order = sorted(rows, key=lambda index: len(rows[index]))
    for start in range(0, len(order), ROWS_PER_FORWARD):
        batch = order[start : start + ROWS_PER_FORWARD]
        scores = _scores(classifier, [rows[index] for index in batch], label, settings.output)
        for index, score in zip(batch, scores, strict=True):
            values[index] = score
    return values


@functools.cache
def open_classifier(model: str, revision: str | None, dtype: str) -> Classifier | UserError:
    """The classifier in evaluation mode, on the GPU where there is one; or what keeps it from opening, found once."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = f"reward_model: settings.model: '{model}'"
    if wrong := _wrong_folder(model, revision):
        return UserError(f"{where}: {wrong}")
    options = {"revision": revision or "main", "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        loaded, report = AutoModelForSequenceClassification.from_pretrained(
            model, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # the libraries raise a dozen kinds, all of which mean: no model
        said = " ".join(str(error).split()).partition(". ")[0][:200]
        hint = "" if Path(model).is_dir() else "is no folder here, and as a hub model "
        return UserError(f"{where}: {hint}cannot be opened: {type(error).__name__}: {said}")
    if loaded._hf_peft_config_loaded:
        return UserError(f"{where}: is an adapter; merge it into its model and save that")
    # transformers would fill these with random numbers: so it goes where a causal LM is given.
    random = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if random:
        return UserError(
            f"{where}: its files lack {', '.join(random[:3])}, so the score would be random; it must be a trained "
            f"sequence classifier (this one is {', '.join(loaded.config.architectures or ['unnamed'])})"
        )
    loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    config = loaded.config.get_text_config()
    config.use_cache = False  # one forward a row: keys and values are not needed again
    named = config.to_dict()
    limits = [named.get("max_position_embeddings"), tokenizer.model_max_length]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < NO_LIMIT]
    vocabulary = loaded.get_input_embeddings().weight.shape[0]
    # A padding token without an embedding cannot stand behind a row, nor in one: it is as if none were named.
    pad = named.get("pad_token_id") if named.get("pad_token_id") in range(vocabulary) else None
    return Classifier(model, loaded, tokenizer, pad, min(known, default=None), vocabulary)


def _wrong_folder(model: str, revision: str | None) -> str | None:
    """What keeps a local folder from being a reward model; a name that may be the hub's is left to the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return "no such folder" if folder.is_absolute() or model.startswith(".") else None
    if revision is not None:
        return "is a local folder, which has no revision; leave settings.revision out"
    if not (folder / "config.json").is_file():
        return "no model there (config.json is missing)"
    if not list(folder.glob("*.safetensors")):
        return "no *.safetensors there (pickled weights are not read); save it with save_pretrained"
    return None


def _label(classifier: Classifier, settings: RewardModelSettings) -> int:
    """The column of the head's output that is the score."""
    names = {int(index): str(name) for index, name in classifier.model.config.id2label.items()}
    wanted = settings.score_label
    if len(names) == 1:
        if settings.output == "logprob" or wanted is not None:
            raise UserError(f"reward_model: '{classifier.name}' has one label: leave output and score_label out")
        return 0
    found = [index for index, name in names.items() if wanted in (index, name)]
    if len(found) != 1:
        known = ", ".join(f"{index}: {name}" for index, name in names.items())
        raise UserError(f"reward_model: settings.score_label: {wanted!r}: must be one of the labels {known}")
    return found[0]


def _uses_template(classifier: Classifier, form: str, prompts: Prompts) -> list[bool]:
    """For each row, whether it goes through the tokenizer's chat template."""
    has_template = bool(classifier.tokenizer.chat_template)
    uses = [form == "chat" or not isinstance(prompt, str) or (form == "auto" and has_template) for prompt in prompts]
    if any(uses) and not has_template:
        raise UserError(
            f"reward_model: '{classifier.name}' has no chat template: chats cannot be scored, and text prompts need "
            "form: text"
        )
    if form == "text" and any(uses):
        raise UserError("reward_model: settings.form: text: the prompts are chats; leave it out, or set chat")
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    for each in chat if has_template and form != "text" else []:
        # A template that leaves a message out would score all completions alike.
        if each["content"] not in classifier.tokenizer.apply_chat_template(chat, tokenize=False):
            problem = f"its chat template leaves the message of the {each['role']} out"
            raise UserError(f"reward_model: '{classifier.name}': {problem}")
    return uses


def _tokens(tokenizer: Any, prompt: str | list[dict[str, str]], text: str, template: bool) -> list[int]:
    """The tokens of a row; the template writes its own special tokens, a plain text gets the tokenizer's."""
    if not template:
        return list(tokenizer(f"{prompt}{text}")["input_ids"])
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    chat = [*asked, {"role": "assistant", "content": text}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _fit(ids: list[int], limit: int | None, too_long: str, classifier: Classifier) -> Exception | None:
    """Cut a row that is too long, in place, or say why it has no score; a special token at its start stays."""
    if not ids:
        return ValueError("prompt and completion are no tokens for the reward model")
    if limit is not None and len(ids) > limit:
        if too_long == "error":
            text = f"{len(ids)} tokens; the reward model takes {limit} (too_long: truncate_left drops the first)"
            return ValueError(text)
        kept = int(ids[0] in classifier.tokenizer.all_special_ids)
        del ids[kept : kept + len(ids) - limit]
    largest = max(ids)  # a token without an embedding would break the process on a GPU, and all later rows with it
    if largest < classifier.vocabulary:
        return None
    return ValueError(
        f"token {largest} ({classifier.tokenizer.convert_ids_to_tokens(largest)!r}) has no embedding: the reward model "
        f"has {classifier.vocabulary} tokens and its tokenizer more; resize the model's embeddings and save it again"
    )


def _scores(classifier: Classifier, rows: list[list[int]], label: int, output: str) -> list[float]:
    """The values of rows padded right to one length: those that each has alone, up to float rounding."""
    import torch

    model = classifier.model
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    pad = _padding(classifier, {row[-1] for row in rows})
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    with torch.inference_mode():
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.float()
        values = logits if output == "logit" else logits.log_softmax(-1)
        return [float(value) for value in values[:, label].cpu()]


def _padding(classifier: Classifier, last: set[int]) -> int:
    """The token to pad with.

    A causal classifier scores the rightmost token that is not its padding token. Where its config names none (or -1),
    transformers takes a batch of one only, and its last token. So any token that ends no row is named, for this batch:
    the last token of each row is then found, and what stands behind it touches nothing before it.
    """
    if classifier.pad is not None:
        return classifier.pad
    free = min(set(range(len(last) + 1)) - last)
    classifier.model.config.pad_token_id = classifier.model.config.get_text_config().pad_token_id = free
    return free
