"""Docs, dicts and presets name the same methods: none is undocumented, and nothing is documented that is not there."""

import re
from pathlib import Path

import pytest

from gift.compare.presets import read_preset
from gift.methods.names import MATCH, SELECT, SHAPE
from gift.methods.sample.names import SAMPLE

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
AXES = {
    "Losses: update.match": MATCH,
    "Targets: update.shape": SHAPE,
    "Selection: update.select": SELECT,
    "Sampling: generate.sample": SAMPLE,
}
OTHERS = {"Given answers", "Not offered"}


def section(heading: str) -> str:
    start = TEXT.index(f"\n## {heading}\n")
    return TEXT[start : (TEXT.find("\n## ", start + 1) + 1 or len(TEXT)) - 1]


@pytest.mark.parametrize("heading", AXES)
def test_every_method_has_a_section_and_a_row(heading: str) -> None:
    named = re.findall(r"^### (.+)$", section(heading), re.MULTILINE)
    assert set(named) - OTHERS == AXES[heading].keys()
    assert len(named) == len(set(named))
    for name in AXES[heading]:
        assert f"\n| [{name}](#{name}) | " in section("All of them"), name


def test_the_table_names_nothing_else() -> None:
    named = re.findall(r"^\| \[(\w+)\]\(#\1\)", section("All of them"), re.MULTILINE)
    assert sorted(named) == sorted(name for axis in AXES.values() for name in axis)


def test_every_section_names_the_file_of_its_method() -> None:
    """A path that is written in the docs is there; short ones are those below the folder of the axis."""
    for heading, folder in zip(AXES, ("match", "shape", "select", "sample"), strict=True):
        for path in re.findall(r"`((?:gift/|\w+/)?\w+\.py)(?:: \w+)?`", section(heading)):
            there = ROOT / path if path.startswith(("gift/", "tests/")) else ROOT / "gift/methods" / folder / path
            assert there.exists(), path


@pytest.mark.parametrize("path", sorted((ROOT / "presets/methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_says_whose_settings_it_has(path: Path) -> None:
    """Its first line names a source, and it holds a method and nothing else."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# .*(arXiv|verl|Ours)", first), first
    assert read_preset(path)["update"].keys() >= {"shape", "match"}


def test_all_links_between_the_docs_are_there() -> None:
    """Files, and headings in GitHub's spelling."""

    def anchors(path: Path) -> set[str]:
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    missing = []
    for source in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)\s]+)\)", source.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            path = source.parent / name if name else source
            if not path.exists() or (anchor and anchor not in anchors(path)):
                missing.append(f"{source.name}: {target}")
    assert not missing, "\n".join(missing)
