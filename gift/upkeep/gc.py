"""`gift gc`: what DVC's cache and the work folders hold for no stage any more, with its size, before it goes."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gift.project.errors import UserError, amount
from gift.project.work import ROOT, address_of
from gift.upkeep.heal import running

Sizes = dict[Path, int]
"""Bytes that go with a file or folder."""


@dataclass(frozen=True)
class Unused:
    """Files of DVC's cache that no dvc.lock needs, and work folders of stages that dvc.yaml does not have."""

    objects: Sizes
    works: Sizes

    @property
    def size(self) -> int:
        return sum(self.objects.values()) + sum(self.works.values())

    @property
    def lines(self) -> Iterator[str]:
        if self.objects:
            yield f"DVC's cache: {len(self.objects):,} files, {amount(sum(self.objects.values()))}"
        yield from (f"{path}: {amount(size)}, of no stage in dvc.yaml" for path, size in self.works.items())


def unused(cache: Path, stages: Collection[str], projects: Sequence[Path], everything: bool) -> Unused:
    """What may go. What branches, tags and experiments of the project need stays, unless `everything` else may go.

    projects: others that share the cache; a cache outside the project is theirs too, and they must be named.
    """
    if busy := running():
        (pid, command), *_ = busy.items()
        raise UserError(f"process {pid} works here ({command}): what it is making is in no dvc.lock yet; wait for it")
    if not cache.resolve().is_relative_to(Path.cwd()) and not projects:
        raise UserError(
            f"{cache}: is outside of this project, and others may keep what they need there; name them "
            "(--project DIR), or name this one where there are none (--project .)"
        )
    used = used_objects(projects, everything)
    files = cache / "files" / "md5"
    objects = {
        path: path.stat().st_size if path.stat().st_nlink == 1 else 0
        for path in sorted(files.glob("??/*"))
        if path.parent.name + path.name not in used
    }
    works = {
        path: sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        for path in sorted(ROOT.glob("*"))
        if address_of(path.name) not in stages
    }
    return Unused(objects, works)


def used_objects(projects: Sequence[Path], everything: bool) -> set[str]:
    """The MD5s that DVC needs for the working copies and, unless `everything` else may go, for what git has of them."""
    from dvc.repo import Repo

    found: set[str] = set()
    here = Path.cwd().resolve()
    for project in [here, *(path for path in projects if path.resolve() != here)]:
        with Repo(str(project)) as repo:
            kept = dict.fromkeys(("all_branches", "all_tags", "all_experiments"), not everything)
            for objects in repo.used_objs(**kept, with_deps=False, force=True).values():
                found |= {each.value for each in objects if each.value}
    return found


def remove(found: Unused) -> None:
    for path in found.objects:
        path.unlink(missing_ok=True)
    for path in found.works:
        shutil.rmtree(path, ignore_errors=True)
