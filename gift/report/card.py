"""`gift card`: a policy as a folder to share, with a card that says how it was made and what it was evaluated on."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gift.policy.folder import ADAPTER_CONFIG, LINEAGE_FILE, is_adapter, read_lineage
from gift.project.errors import UserError
from gift.project.params import PARAMS
from gift.project.rounds import Round, read_rounds
from gift.project.work import read_json
from gift.project.yaml import read_yaml
from gift.report.history import HISTORY, read_entry
from gift.report.page.made import facts, method_of, notes_of, source_of
from gift.report.runs import Row
from gift.upkeep.guard import inputs_of

COLUMNS = {
    "eval/accuracy_greedy": "held-out accuracy",
    "eval/reward": "held-out reward",
    "reward": "reward of rollouts",
    "kl": "KL, nats a token",
    "num_rollouts": "rollouts",
    "num_tokens_trained": "tokens trained on",
}


def write_card(policy: Path, out: Path, name: str) -> None:
    """Copy `policy` (data/rounds/<round>/policy) to the new folder `out`, with a README.md that the Hub shows.

    An adapter names the model that `base.model` names, in place of this project's folder.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; nothing was changed. Name another folder, or remove it")
    lineage = read_lineage(policy)
    round_, rounds = policy.resolve().parent.name, read_rounds()
    if round_ not in rounds or policy.resolve() != Path("data/rounds", round_, "policy").resolve():
        raise UserError(f"{policy}: no policy of a round of this project; name one such as data/rounds/r1/policy")
    line = _line(round_, rounds)
    text = card(name, round_, line, is_adapter(policy), lineage.model_dump())
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        unfinished = Path(scratch, "policy")
        shutil.copytree(policy, unfinished, ignore=shutil.ignore_patterns(LINEAGE_FILE))
        base = _base()
        if is_adapter(policy) and base:
            config = read_json(unfinished / ADAPTER_CONFIG) | {"base_model_name_or_path": base}
            (unfinished / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(text, encoding="utf-8")
        os.rename(unfinished, out)


def _base() -> str | None:
    """The model on the Hub that the project began from; None where it is a folder, or made here."""
    model = str(read_yaml(PARAMS)["base"]["model"])
    return None if model == "arithmetic" or Path(model).exists() else model


def _line(name: str, rounds: Mapping[str, Round]) -> list[str]:
    """The policies from the base to a round."""
    line = [name]
    while line[0] != "base":
        line.insert(0, rounds[line[0]].parent)
    return line


def card(name: str, round_: str, line: Sequence[str], adapter: bool, lineage: Mapping[str, Any]) -> str:
    """The card as text: what the Hub reads (YAML), then what people read."""
    from huggingface_hub import EvalResult, ModelCardData

    params, known = read_yaml(PARAMS), read_rounds()
    rows = [read_entry(path)["round"] for each in line if (path := HISTORY / f"{each}.json").exists()]
    accuracy = rows[-1].get("eval/accuracy_greedy") if rows and rows[-1]["name"] == round_ else None
    source = source_of(params)
    result = EvalResult("text-generation", source, f"held-out prompts of {source}", "accuracy", accuracy)
    header = ModelCardData(
        model_name=name,
        base_model=_base(),
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["gift", "reinforcement-learning"],
        eval_results=None if accuracy is None else [result],
    )
    own = {name: known[name] for name in line if name in known}
    said = [[word, value] for word, value in facts(own, notes_of(own)) if word != "others"]
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {name}",
        f"Round {round_} of a [GIFT](https://arxiv.org/abs/2510.23868) pipeline: {' -> '.join(line)}, trained with the "
        f"method {method_of(round_) or 'that params.yaml names'} on {source}.",
        "## Evaluation\n\nGreedy accuracy and mean reward on held-out prompts, with standard errors.",
        "\n".join(_table(rows)),
        "## How it was made",
        "\n".join(["| | |", "|---|---|", *(f"| {word} | {_cell(value)} |" for word, value in said)]),
        "Lineage:\n\n"
        + "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in lineage.items() if value is not None),
        "## Settings",
        f"Of the update, as it noted them:\n\n{_json(inputs_of(f'update@{round_}').get('update'))}",
        f"`params.yaml`, when this card was written:\n\n{_json(params)}",
    ]
    return "\n\n".join(parts) + "\n"


def _json(content: Any) -> str:
    return f"```json\n{json.dumps(content, indent=1, default=str)}\n```"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    columns = {name: word for name, word in COLUMNS.items() if any(name in row for row in rows)}
    yield f"| policy | {' | '.join(columns.values())} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {row['name']} | {' | '.join(_number(row, name) for name in columns)} |"


def _number(row: Row, name: str) -> str:
    value, error = row.get(name), row.get(f"{name}_se")
    if value is None:
        return ""
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return shown + (f" ± {error:.2g}" if error is not None else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
