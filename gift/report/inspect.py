"""Completions for a person at a terminal: prompts, wrapped texts, rewards with messages; two rounds side by side."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from gift.evaluation.paired import paired
from gift.project.errors import UserError, counted
from gift.report.rows import Found, Key, Places, Query, Row, find, prompts_of, rights_of, rows_of, turns

MAX_TEXT = 4000  # characters of a completion or prompt that are shown
MAX_CELL = 200  # the same of another column of a prompt
MAX_COLUMNS = 8
ROLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
# What would move the cursor, change colours or turn the direction of writing; new lines and tabs may stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def show(console: Console, folder: Path, query: Query, answers: bool, against: Path | None, whole: bool) -> None:
    """Print what a query finds in a round (a folder), its answers in place of its rollouts where asked for.

    against: another round, whose completions of the same prompts and samples stand beside them.
    """
    most = None if whole else MAX_TEXT
    if against and against.resolve() == folder.resolve():
        raise UserError(f"--against {against.name}: is the round itself; name another")
    both = [against, folder] if against else [folder]  # from left to right
    alike = len({each.name for each in both}) < len(both)
    names = {each: str(each) if alike else each.name for each in both}
    now, rounds = names[folder], {name: Places.of(each, answers) for each, name in names.items()}
    rights = {name: rights_of(places.scores) for name, places in rounds.items()}
    found = find(rounds[now], query, rights[now], rights[names[against]] if against else {})
    if against and all(rights.values()):
        for line in _differences(rights):
            console.print(line, highlight=False)
    prompts = prompts_of(rounds[now], list(found.samples))
    rows = {name: rows_of(each, list(found.samples)) for name, each in rounds.items()}
    for prompt_id, samples in found.samples.items():
        group = [row for key, row in rows[now].items() if key[0] == prompt_id]
        console.print(Rule(Text(_title(prompt_id, group)), style="dim", align="left"))
        console.print(_prompt(prompts[prompt_id], most))
        columns = {
            name: [_completion(rows[name].get((prompt_id, sample)), rights[name], most) for sample in samples]
            for name in rounds
        }
        console.print(_completions(columns))
    console.print(Text(_count(found, "answers" if answers else "completions"), style="dim"))


def clean(text: str, most: int | None) -> str:
    """A text that does nothing to a terminal; of a long one the beginning, and how much more there is."""
    more = len(text) - most if most is not None else 0
    shown = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text[:most].replace("\r\n", "\n"))
    return f"{shown}... ({more:,} characters more; --whole shows them)" if more > 0 else shown


def _cell(text: str) -> str:
    return clean(text[:MAX_CELL], None) + "..." * (len(text) > MAX_CELL)


def _title(prompt_id: str, group: Sequence[Row]) -> str:
    rewards = [row.reward for row in group if row.reward is not None]
    words = [_cell(prompt_id), f"{len(group)} completions"]
    if rewards:
        words.append(f"reward {sum(rewards) / len(rewards):.3g} ({min(rewards):.3g} to {max(rewards):.3g})")
    if failed := len(group) - len(rewards):
        words.append(f"{failed} without a reward")
    return ", ".join(words)


def _prompt(columns: Mapping[str, object], most: int | None) -> RenderableType:
    """Its messages by role, then the other columns, cut and counted."""
    parts: list[RenderableType] = []
    for role, text in turns(columns.get("messages") or columns["prompt"]):  # type: ignore[arg-type]
        line = Text(f"{role}: ", style=ROLES.get(role, "bold")) if role else Text()
        parts.append(line + Text(clean(text, most)))
    others = {name: value for name, value in columns.items() if name not in ("prompt", "messages")}
    for name in list(others)[:MAX_COLUMNS]:
        parts.append(Text(f"{name}: ", style="dim") + Text(_cell(str(others[name]))))
    if len(others) > MAX_COLUMNS:
        parts.append(Text(f"and {len(others) - MAX_COLUMNS} columns more", style="dim"))
    return Padding(Group(*parts), (0, 0, 0, 2))


def _completions(columns: Mapping[str, Sequence[RenderableType]]) -> RenderableType:
    """The completions of a prompt, those of two rounds beside each other."""
    table = Table(box=None, expand=True, padding=(0, 2, 1, 2), show_edge=False, show_header=len(columns) > 1)
    for name in columns:
        table.add_column(Text(name, style="bold"), ratio=1, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _completion(row: Row | None, rights: Mapping[Key, float], most: int | None) -> RenderableType:
    if row is None:
        return Text("this prompt was not sampled here", style="dim")
    right = {1.0: ("right", "green"), 0.0: ("wrong", "red")}.get(rights.get(row.key, -1.0))
    head = Text(f"[{row.key[1]}] ", style="bold")
    if right:
        head += Text(f"{right[0]}, ", style=right[1])
    head += Text("no reward" if row.reward is None else f"reward {row.reward:.3g}", style="bold")
    parts = [f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in row.rewards.items()]
    head += Text(f" ({', '.join(parts)}), {row.num_tokens} tokens, {row.finish_reason}", style="dim")
    lines = [head, Text(clean(row.text, most))]
    lines += [Text(f"{name}: {_cell(said)}", style="yellow") for name, said in row.messages.items()]
    return Group(*lines)


def _differences(rights: Mapping[str, Mapping[Key, float]]) -> Iterator[Text]:
    """How the later round's answers differ from the earlier one's, over the prompts that both answered."""
    (before, one), (after, other) = rights.items()
    for greedy, what in ((True, "greedy answers"), (False, "sampled answers")):
        if not any((sample == 0) == greedy for _, sample in one):
            continue
        found = paired(one, other, greedy=greedy)
        low, high = found.interval
        text = f"{after} less {before}, {what}: {found.mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, "
        text += f"{found.num_prompts} prompts)"
        if greedy:
            text += f"; {len(found.gained)} became right, {len(found.lost)} wrong"
        yield Text(text, style="bold")


def _count(found: Found, what: str) -> str:
    num = sum(map(len, found.samples.values()))
    if found.counts is None:
        return f"the first {counted(len(found.samples), 'prompt')}; --by, --only and --search look at all"
    num_prompts, num_rows = found.counts
    if not num_rows:
        return f"none of the {what} is such a one"
    return f"{num:,} of {num_rows:,} {what}, {len(found.samples):,} of {counted(num_prompts, 'prompt')}"
