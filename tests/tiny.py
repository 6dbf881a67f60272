"""Small real tokenizers and models, made in a moment: one token a byte, weights by a seed."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(chat: bool = False, context: int = 1024) -> PreTrainedTokenizerFast:
    """One token a byte behind the special ones; with `chat` a chat template in the manner of Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = CHAT_TEMPLATE if chat else None
    return made


def save(folder: Path, model_class: Any, config: Any, tokenizer: Any, scale: float = 0.2) -> Path:
    """A model of this class with normal weights of this scale (the seed is fixed), and its tokenizer, in `folder`."""
    model = model_class(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
