"""Failed rows of each reward function, against the limit over the whole table."""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from gift.project.errors import UserError
from gift.scoring.settings import Score

FAILED = ("timeout", "error", "invalid")
NUM_EXAMPLES = 5


@dataclass
class Failures:
    """How many rows each function failed for, and the first of them; `num_asked`: of how many, by function."""

    score: Score
    num_asked: dict[str, int]
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reward: str, prompt_id: str, sample: int, status: str, message: str | None) -> None:
        """Count a failure; the stage stops as soon as no later row could bring the share back under the limit."""
        self.counts[reward] = self.counts.get(reward, 0) + 1
        line = f"prompt_id={prompt_id}, sample={sample}: {status}: {message}"
        self.examples[reward] = sorted([*self.examples.get(reward, []), line])[:NUM_EXAMPLES]
        limit, num_asked = self.score.max_failed_share, self.num_asked[reward]
        if self.counts[reward] <= limit * num_asked:
            return
        settings = self.score.rewards[reward]
        raise UserError(
            f"score.rewards.{reward} ({settings.function}) failed for {self.counts[reward]} of {num_asked} completions"
            f"{' of its prompts' if settings.where else ''}; score.max_failed_share allows {limit:g} of them:\n       "
            + "\n       ".join(self.examples[reward])
            + "\n       Nothing was published. Mend the function, raise score.max_failed_share or timeout_seconds, or "
            f"say which prompts are its own (score.rewards.{reward}.where). "
            f"The finished parts are in {self.folder}: remove it to try what failed in them again with nothing changed"
        )

    def add_table(self, scores: pa.Table) -> None:
        """Count the failures of a part that was scored before."""
        for name in self.score.rewards:
            columns = [
                scores[column].to_pylist() for column in ("prompt_id", "sample", f"{name}_status", f"{name}_message")
            ]
            for prompt_id, sample, status, message in zip(*columns, strict=True):
                if status in FAILED:
                    self.add(name, prompt_id, sample, status, message)
