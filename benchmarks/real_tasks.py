"""Chats whose answers a few lines of code can judge, made of word lists by a seed: what the real model learns."""

import json
import random
from collections.abc import Callable
from pathlib import Path

NOUNS = """
apple bird boat book bread bridge candle castle cat chair city clock cloud coat coffee dog door dragon farm fire fish
flower forest garden ghost guitar hat horse island kitchen lake lamp letter map mirror moon mountain ocean piano
pirate queen rain river road robot school shoe snow star storm sun table teacher train tree village wind winter wolf
"""
TOPICS = """
music animals cooking football space history painting gardening trains weather dreams money friendship sleep mountains
robots school dancing poetry farming whales honey castles chess bicycles bread volcanoes museums
"""

Row = tuple[str, str]  # what the user asks, and what the answer is judged by


def sums(rng: random.Random) -> Row:
    one, two = rng.randint(1, 9), rng.randint(1, 9)
    return f"What is {one} + {two}?", str(one + two)


def words(rng: random.Random) -> Row:
    one, two = rng.sample(NOUNS.split(), 2)
    return f"Write one sentence that contains the words '{one}' and '{two}'.", f"{one} {two}"


def question(rng: random.Random) -> Row:
    one, two = rng.sample(TOPICS.split(), 2)
    return f"Ask me one short question about {one} and {two}. Write only the question.", f"{one} {two}"


def short(rng: random.Random) -> Row:
    most, topic = rng.randint(6, 12), rng.choice(TOPICS.split())
    return f"Tell me something about {topic} in at most {most} words.", str(most)


TASKS: dict[str, Callable[[random.Random], Row]] = {
    "sums": sums,
    "words": words,
    "question": question,
    "short": short,
}


def write_chats(path: Path, number: int, seed: int = 0) -> None:
    """`number` different chats of each task; a task that has fewer gives what it has."""
    with path.open("w", encoding="utf-8") as file:
        for task, ask in TASKS.items():
            rng, seen = random.Random(f"{task} {seed}"), set[str]()
            for _ in range(50 * number):
                asked, answer = ask(rng)
                if len(seen) < number and asked not in seen:
                    seen.add(asked)
                    messages = [{"role": "user", "content": asked}]
                    file.write(json.dumps({"messages": messages, "domain": task, "answer": answer}) + "\n")
