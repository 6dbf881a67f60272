"""What came of a run: a line a branch, where to look, and a summary with fixed names."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gift.report.history import read_entry

ACCURACY = "eval/accuracy_greedy"
OUTCOMES = {ACCURACY: "held-out accuracy", "eval/reward": "reward"}


def outcomes(folder: Path, lines: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What came of each branch in a line: its last round that was evaluated against its first policy; standard errors.

    `r4: held-out accuracy 0.93 ± 0.018 (base 0.375 ± 0.034), reward 0.795 ± 0.02 (base 0.46 ± 0.019)`
    """
    for line in lines.values():
        made = [name for name in line if (folder / f"{name}.json").exists()]
        if made[1:]:
            first, last = (read_entry(folder / f"{name}.json")["round"] for name in (made[0], made[-1]))
            shown = [
                f"{word} {_with_error(last, key)} ({made[0]} {_with_error(first, key)})"
                for key, word in OUTCOMES.items()
                if key in last
            ]
            yield f"{made[-1]}: {', '.join(shown)}"


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a line of rounds the numbers with fixed names, for `dvc metrics` and `dvc exp show`; null is not known.

    rows: of the first policy and those after it. `accuracy` is that of greedy answers to the held-out prompts, `kl`
    that of the last round's training, in nats a token; tokens and completions are all that were trained on or sampled.
    """
    first, last = rows[0], rows[-1]
    known = [row for row in rows if row.get(ACCURACY) is not None]
    best = max(known, key=lambda row: row[ACCURACY], default={})
    found = {"rounds": len(rows) - 1, "first": first["name"], "last": last["name"], "best": best.get("name")}
    for name, row in (("accuracy", last), ("accuracy_first", first), ("accuracy_best", best)):
        found |= {name: row.get(ACCURACY), f"{name}_se": row.get(f"{ACCURACY}_se")}
    found |= {"reward": last.get("eval/reward"), "reward_se": last.get("eval/reward_se"), "kl": last.get("kl")}
    for name, column in (("tokens", "num_tokens_trained"), ("completions", "num_rollouts")):
        found[name] = sum(row.get(column) or 0 for row in rows[1:])
    return found


def closing(folder: Path, lines: Mapping[str, Sequence[str]], page: Path, pushes: bool) -> Iterator[str]:
    """The end of a run: what came of each branch, where to look, how to keep it."""
    found = list(outcomes(folder, lines))
    yield from found
    if found:
        last = found[-1].partition(":")[0]
        push = " && dvc push" if pushes else ""
        shown = f"{page}, " if page.exists() else ""
        yield f"look: {shown}`gift inspect {last}`; keep: `git add -A && git commit{push}`"


def _with_error(row: Mapping[str, Any], key: str) -> str:
    value, error = row.get(key), row.get(f"{key}_se")
    return "unknown" if value is None else f"{value:.3g}" + (f" ± {error:.2g}" if error is not None else "")
