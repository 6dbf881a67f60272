"""The files of settings: whether they load, whether the rounds make chains, and whether a secret stands in them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from gift.doctor.findings import Finding, refusal
from gift.embedded.settings import Arithmetic
from gift.policy.settings import Base
from gift.project.errors import UserError
from gift.project.params import LAUNCH, PARAMS
from gift.project.sections import Section, check
from gift.project.yaml import read_yaml
from gift.prompts.settings import Prepare
from gift.sampling.settings import Evaluate, Generate, GenerateLaunch
from gift.scoring.settings import Score, ScoreLaunch, unknown_judge
from gift.training.deepspeed_config import engine_settings
from gift.training.reference_settings import Reference, ReferenceLaunch
from gift.training.settings import Update, UpdateLaunch, refuse_launch

THEME = "settings"
ROUNDS = Path("rounds.yaml")
FILES = (Path("params.yaml"), Path("launch.yaml"), ROUNDS, Path(".dvc/config"))
# Prefixes that services give their tokens. A commit (40 hex digits) is none of them.
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{12,}|AIza[\w-]{20,}|xox[a-z]-[\w-]{10,}|nvapi-[\w-]{16,})|://[^/\s:@]+:[^/\s:@]+@"
)
_SECRET_KEY = re.compile(
    r"""^[\s{,]*["']?(?:\w*api_?key|\w*password|\w*secret\w*|\w*auth\w*_token|hf_token|account_key|sas_token)["']?"""
    r"""\s*[:=]\s*["']?(?!(?:null|true|false)\b|["'{\[#$])[^\s"'}]""",
    re.IGNORECASE,
)


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    arithmetic: Arithmetic = Arithmetic()
    prepare: Prepare
    base: Base
    generate: Generate
    score: Score
    reference: Reference
    update: Update
    evaluate: Evaluate

    @model_validator(mode="after")
    def correct_is_a_reward(self) -> "Params":
        if wrong := unknown_judge(self.evaluate.judges, self.score):
            raise ValueError(wrong)
        return self


class Launch(Section):
    """The whole of launch.yaml."""

    generate: GenerateLaunch = GenerateLaunch()
    score: ScoreLaunch = ScoreLaunch()
    reference: ReferenceLaunch = ReferenceLaunch()
    update: UpdateLaunch = UpdateLaunch()


def read_params(path: Path = PARAMS) -> Params:
    return check(Params, read_yaml(path), str(path))


def read_launch(path: Path = LAUNCH) -> Launch:
    return check(Launch, read_yaml(path) if path.exists() else {}, str(path))


@dataclass(frozen=True)
class Project:
    """The settings of a project; `rounds`: the name of each round and that of the one it starts from."""

    params: Params
    launch: Launch
    rounds: dict[str, str]

    def chain(self, name: str) -> list[str]:
        """The rounds from the base (left out) to this one."""
        parent = self.rounds[name]
        return [*(self.chain(parent) if parent != "base" else []), name]

    @property
    def longest_chain(self) -> list[str]:
        return max((self.chain(name) for name in self.rounds), key=len)


def read_project() -> tuple[Project | None, list[Finding]]:
    """The settings of the project in the working folder, or None and every file, key and value that is wrong."""
    findings = secret_findings()
    params: Params | None = None
    launch: Launch | None = None
    try:
        params = read_params()
    except UserError as error:
        findings += [refusal(THEME, UserError(line)) for line in error.message.split("\n       ")]
    try:
        read = read_launch()
        refuse_launch(read.update)
        if params:
            engine_settings(params.update, read.update)
        launch = read
    except UserError as error:
        findings += [refusal(THEME, UserError(line)) for line in error.message.split("\n       ")]
    rounds, wrong = read_rounds()
    findings += wrong
    if params is None or launch is None or not rounds:
        return None, findings
    project = Project(params, launch, rounds)
    if not findings:
        files = (
            "params.yaml, launch.yaml and rounds.yaml" if Path("launch.yaml").exists() else "params.yaml, rounds.yaml"
        )
        findings.append(Finding("ok", THEME, f"{files} load: {len(rounds)} rounds, {', '.join(list(rounds)[:8])}"))
    return project, findings


def read_rounds() -> tuple[dict[str, str], list[Finding]]:
    """rounds.yaml as name and parent; empty where it is wrong, with what is."""

    def wrong(text: str, name: object = None) -> Finding:
        return Finding("error", THEME, text, f"{ROUNDS}: rounds" + (f".{name}" if name is not None else ""))

    try:
        rounds = read_yaml(ROUNDS).get("rounds")
    except UserError as error:
        return {}, [refusal(THEME, error)]
    if not isinstance(rounds, dict) or not rounds:
        return {}, [wrong("must be a map with a line a round, such as `r1: {from: base}`")]
    findings = [problem for name, value in rounds.items() if (problem := _round_problem(name, value, rounds, wrong))]
    if any(finding.level == "error" for finding in findings):
        return {}, findings
    parents = {name: value["from"] for name, value in rounds.items()}
    reached = {"base"}
    while ready := {name for name, parent in parents.items() if parent in reached} - reached:
        reached |= ready
    circle = [name for name in parents if name not in reached]
    if circle:
        return {}, [wrong(f"`from` leads in a circle ({', '.join(circle)}); every chain begins at base", circle[0])]
    return parents, findings


def _round_problem(name: Any, value: Any, rounds: dict[Any, Any], wrong: Any) -> Finding | None:
    """What is wrong with one line of rounds.yaml, the first of it."""
    if not isinstance(name, str):
        # DVC drops the stages of a round whose key is a number, without a word (treeverse/dvc#8903).
        return wrong(f"{name!r}: the name of a round must be a text; write r{name}, or put it in quotes", name)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "base":
        return wrong("the name of a round is letters, digits, _ and -, and not base; rename it", name)
    if not isinstance(value, dict) or "from" not in value:
        return wrong("must say the round that it starts from: `{from: base}`", name)
    if value["from"] != "base" and value["from"] not in rounds:
        return wrong(
            f"{value['from']!r}: there is no such round; there are base, {', '.join(map(str, rounds))}", f"{name}.from"
        )
    extra = [key for key in value if key != "from"]
    if extra:
        return Finding("warning", THEME, "nothing reads this key; remove it", f"{ROUNDS}: rounds.{name}.{extra[0]}")
    return None


def secret_findings() -> list[Finding]:
    """Lines that hold what looks like a token; none is ever shown. These files are in git, params in artifacts too."""
    findings = []
    for path in FILES:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        remedy = "`dvc remote modify --local`" if path.name == "config" else "the environment (HF_TOKEN, say)"
        findings += [
            Finding(
                "error",
                THEME,
                f"this line looks like a token or a password, and the file is in git; put it into {remedy}, and revoke "
                "it if it was ever committed",
                f"{path}:{number}",
            )
            for number, line in enumerate(lines, 1)
            if _TOKEN.search(line) or _SECRET_KEY.search(line)
        ]
    return findings
