"""Where every source row went: counts by split and source, whose sums must close."""

from collections import Counter

ALWAYS = {
    "train": ("read", "duplicates", "split_off", "in_eval", "not_taken", "written"),
    "eval": ("read", "duplicates", "not_taken", "written"),
}


class Ledger:
    """Counts of rows by split, source and fate; `read` and what became of them (`duplicates`, `written`, ...)."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter[str]] = {}

    def add(self, split: str, source: str, fate: str, num: int = 1) -> None:
        """A fate is kept even where `num` is 0: it says that a rule was applied and took nothing."""
        self.counts.setdefault((split, source), Counter())[fate] += num

    def totals(self) -> dict[str, int]:
        """`num_<split>_<fate>` over all sources; a row that is in no sum is a fault of ours."""
        numbers: dict[str, int] = {}
        for split, always in ALWAYS.items():
            total: Counter[str] = Counter(dict.fromkeys(always, 0))
            for (of, source), counts in self.counts.items():
                if of == split:
                    self._close(f"{split} of {source}", counts)
                    total.update(counts)
            order = [*always[:2], *(fate for fate in total if fate not in always), *always[2:]]
            numbers |= {f"num_{split}_{fate}": total[fate] for fate in order}
        return numbers

    def by_source(self) -> dict[str, dict[str, int]]:
        """For each source its counts as in `totals`; sources are named as in params.yaml."""
        named: dict[str, dict[str, int]] = {}
        for (split, source), counts in self.counts.items():
            named.setdefault(source, {}).update({f"num_{split}_{fate}": num for fate, num in counts.items()})
        return named

    @staticmethod
    def _close(name: str, counts: Counter[str]) -> None:
        went = {fate: num for fate, num in counts.items() if fate != "read"}
        if sum(went.values()) != counts["read"] or min(went.values(), default=0) < 0:
            raise RuntimeError(f"{name}: {counts['read']} rows were read, but {went} do not add up to them")
