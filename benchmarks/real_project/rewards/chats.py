"""Whether an answer does what its chat asks for: the reward of benchmarks/real_model.py, as a user would write it."""

import re
from typing import Any

END = r"[.!?]"


def number(text: str, answer: str) -> bool:
    """The last number of the text."""
    return re.findall(r"\d+", text)[-1:] == [answer]


def words(text: str, answer: str, end: str = END) -> bool:
    """One sentence with the words in it, and nothing else."""
    said = re.findall(r"[a-z]+", text.lower())
    return all(word in said for word in answer.split()) and re.fullmatch(rf"[^.!?\n]+{end}", text) is not None


def question(text: str, answer: str) -> bool:
    """One question with both topics in it."""
    return words(text, answer, r"\?")


def short(text: str, answer: str) -> bool:
    """A finished sentence of some words, and no more words than allowed."""
    return 3 <= len(text.split()) <= int(answer) and re.search(rf"{END}$", text) is not None


JUDGES = {"sums": number, "words": words, "question": question, "short": short}


def does_it(
    prompts: list[Any],
    completions: list[Any],
    completion_ids: list[list[int]],
    domain: list[str],
    answer: list[str],
    **columns: Any,
) -> list[float]:
    """1 or 0; `domain` names the task."""
    texts = [completion[0]["content"].strip() for completion in completions]
    return [float(JUDGES[task](text, right)) for text, task, right in zip(texts, domain, answer, strict=True)]
