"""`gift verify`: whether what finished rounds made is whole and fits together, from bytes to log-probs."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from gift.policy.folder import PolicyFiles, find_policy, read_lineage
from gift.project.door import md5_of
from gift.project.errors import UserError
from gift.project.graph import Record, Stage
from gift.project.ragged import Ragged
from gift.project.rounds import Round
from gift.project.work import read_json, tree_digest
from gift.tables.parts import check_same_rows, read_table
from gift.tables.prompts import read_prompts
from gift.tables.reference import read_reference
from gift.tables.rollouts import ROLLOUTS, check_rollouts, without_given
from gift.tables.scores import read_answer_scores, read_notes, read_scores
from gift.upkeep.command import dvc, environment

BASE = Path("data/rounds/base/policy")


@dataclass(frozen=True)
class Checked:
    """What was looked at, and what was found: how much is right, or (`wrong`) what is not."""

    what: str
    found: str
    wrong: bool


def verify(
    stages: dict[str, Stage], lock: dict[str, Record], rounds: dict[str, Round], names: list[str], rows: int
) -> Iterator[Checked]:
    """Look at the outputs of all stages that have run, then at the rounds `names`; `rows` completions of each are
    run through their policy.
    """
    yield _checked("digests", _digests, stages, lock)
    yield _checked("prompts", _prompts)
    for name in names:
        if f"update@{name}" in lock:
            folder, parent = Path(f"data/rounds/{name}"), Path(f"data/rounds/{rounds[name].parent}")
            yield _checked(f"{name}: tables", _tables, folder)
            yield _checked(f"{name}: lineage", _lineage, folder, parent)
            yield _checked(f"{name}: ledger", _ledger, folder)
            if rows:
                yield _checked(f"{name}: log-probs", _logprobs, folder, parent, rows)


def missing_in_remote(remote: str | None) -> list[str]:
    """Outputs that DVC keeps and a remote (the default one) has not; a `UserError` where it cannot be asked."""
    words = ["status", "--cloud", "--json", *(["--remote", remote] if remote else [])]
    done = subprocess.run(dvc(*words), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`dvc {' '.join(words)}` failed: {done.stderr.strip().splitlines()[-1]}")
    return sorted(name for name, state in json.loads(done.stdout or "{}").items() if state in ("new", "missing"))


def _checked(what: str, look: Callable[..., str], *arguments: Any) -> Checked:
    try:
        return Checked(what, look(*arguments), wrong=False)
    except UserError as error:
        return Checked(what, error.message, wrong=True)
    except (OSError, ValueError, KeyError) as error:  # of a JSON file that is missing, cut or lacks a number
        return Checked(what, f"{type(error).__name__}: {error}", wrong=True)


def _digests(stages: dict[str, Stage], lock: dict[str, Record]) -> str:
    """Every output has the MD5 that DVC took of it when it was made; all of them are read."""
    number, wrong = 0, []
    for address, record in lock.items():
        for path, digest in record.outs.items() if address in stages else ():
            number += 1
            found = md5_of(Path(path)) if Path(path).exists() else None
            if found != digest:
                wrong.append(f"{path} ({'missing' if found is None else 'other bytes'})")
    if wrong:
        raise UserError(f"{len(wrong)} of {number} outputs are not what their stages made: {', '.join(wrong[:8])}")
    return f"{number} outputs have the MD5 of dvc.lock"


def _prompts() -> str:
    counts = [read_prompts(Path(f"data/prompts/{split}.parquet"))[0].num_rows for split in ("train", "eval")]
    return f"{counts[0]} of training, {counts[1]} of evaluation"


@cache
def _rollouts(folder: Path, table: str) -> Any:
    return read_table(folder / table, ROLLOUTS, check_rollouts)


def _tables(folder: Path) -> str:
    """Schemas, keys, laws and page checksums of all tables; scores and reference stand beside their rollouts."""
    rollouts, _ = _rollouts(folder, "rollouts")
    digest = tree_digest(folder / "rollouts")
    scores, scored = read_scores(folder / "scores")
    notes, noted = read_notes(folder / "notes")
    reference, referenced = read_reference(folder / "reference")
    tables = {"scores": (scores, scored), "notes": (notes, noted), "reference": (reference, referenced)}
    for name, (table, metadata) in tables.items():
        check_same_rows(table, rollouts, folder / name)
        if metadata["rollouts"] != digest:
            raise UserError(f"{folder / name}: made of other rollouts than {folder / 'rollouts'}")
    if not pc.list_value_length(rollouts["completion_ids"]).equals(pc.list_value_length(reference["old_logprobs"])):
        raise UserError(f"{folder / 'reference'}: its log-probs are not as long as the completions")
    answers, _ = _rollouts(folder, "answers")
    graded, facts = read_answer_scores(folder / "answer_scores")
    check_same_rows(graded, answers, folder / "answer_scores")
    if facts["rollouts"] != tree_digest(folder / "answers"):
        raise UserError(f"{folder / 'answer_scores'}: made of other answers than {folder / 'answers'}")
    return f"{rollouts.num_rows} completions, {answers.num_rows} answers"


def _lineage(folder: Path, parent: Path) -> str:
    """Each policy is its parent's next one, and each table was made by the policy that it says."""
    before, own = read_lineage(parent / "policy"), read_lineage(folder / "policy")
    facts = {
        "its parent": (own.parent, before.digest),
        "its base": (own.base, before.base),
        "its round": (own.round, before.round + 1),
        "the policy of its rollouts": (_rollouts(folder, "rollouts")[1]["policy"], before.digest),
        "the policy of its scores": (read_scores(folder / "scores")[1]["policy"], before.digest),
        "the policy of its reference": (read_reference(folder / "reference")[1]["policy"], before.digest),
        "the policy of its answers": (_rollouts(folder, "answers")[1]["policy"], own.digest),
        "its place in the prompt stream": (
            own.prompts_consumed,
            _rollouts(folder, "rollouts")[1]["prompts_consumed"],
        ),
    }
    for what, (found, wanted) in facts.items():
        if found != wanted:
            raise UserError(f"{folder}: {what} is {found}, must be {wanted}")
    return f"round {own.round} of base {own.base[:12]}, {own.optimizer_steps} optimizer steps"


def _ledger(folder: Path) -> str:
    """The counts of the metrics are those of the tables, and add up."""
    numbers = {name: _metrics(folder / f"metrics/{name}.json") for name in ("generate", "score", "update")}
    rollouts = without_given(_rollouts(folder, "rollouts")[0])
    generate, score, update = numbers["generate"], numbers["score"], numbers["update"]
    sums = {
        "generate.json: num_completions": (generate["num_completions"], rollouts.num_rows),
        "generate.json: num_groups": (generate["num_groups"], len(pc.unique(rollouts["prompt_id"]))),
        "generate.json: num_tokens": (
            generate["num_tokens"],
            pc.sum(pc.list_value_length(rollouts["completion_ids"])).as_py(),
        ),
        "score.json: num_rollouts": (score["num_rollouts"], rollouts.num_rows),
        "score.json: num_scored + num_failed + num_abstained": (
            score["num_scored"] + score["num_failed"] + score["num_abstained"],
            score["num_rollouts"],
        ),
        "update.json: num_groups": (update["num_groups"], generate["num_groups"]),
    }
    for what, (found, wanted) in sums.items():
        if found != wanted:
            raise UserError(f"{folder}/metrics/{what}: {found}, must be {wanted}")
    return f"{len(sums)} sums"


def _metrics(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: missing; git has it, or its stage makes it again")
    return dict(read_json(path))


def _logprobs(folder: Path, parent: Path, rows: int) -> str:
    """The policy that a round starts from gives completions, spread over the table, the log-probs of `old_logprobs`."""
    import torch

    from gift.logprobs.tokens import ROUNDING, TokenLogprobs, completion_logprobs
    from gift.policy.open import open_policy

    table, source = _rollouts(folder, "rollouts")
    reference, facts = read_reference(folder / "reference")
    dtype = facts["settings"]["dtype"]
    files: PolicyFiles = find_policy(parent / "policy", BASE)[0]
    chosen = np.unique(np.linspace(0, table.num_rows - 1, min(rows, table.num_rows)).astype(int))
    prompts, texts, wanted = (
        Ragged.from_arrow(column).take(chosen)
        for column in (table["prompt_ids"], table["completion_ids"], reference["old_logprobs"])
    )
    model = TokenLogprobs(open_policy(files, dtype), source["temperature"])
    found = completion_logprobs(model, prompts, texts, [[row] for row in range(len(chosen))])
    gap, limit = float(np.abs(found.values - wanted.values).max()), ROUNDING[getattr(torch, dtype)]
    if not gap <= limit:
        raise UserError(
            f"{folder / 'reference'}: old_logprobs differ by up to {gap:.3g} nats from those of {parent / 'policy'} "
            f"(rounding explains {limit:g}): another policy made them, or they were changed"
        )
    return f"{len(chosen)} completions, within {gap:.2g} nats"
