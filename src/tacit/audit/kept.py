"""The cases of a long reproduction: run side by side, each finished one kept, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

from joblib import Parallel, delayed

from tacit.audit.provenance import plain, sources_digest
from tacit.core.files import make_folder, write_file

Found = dict[str, Any]
"""What a case gave, as plain values."""


class Case(Protocol):
    """A part of a reproduction that runs on its own; a frozen dataclass."""

    @property
    def name(self) -> str:
        """Of its figures."""
        ...

    @property
    def seed(self) -> int:
        """Of everything that it draws."""
        ...

    @property
    def key(self) -> str:
        """Tells cases apart: see `key_of`."""
        ...


C = TypeVar("C")
K = TypeVar("K", bound=Case)


def key_of(case: Case) -> str:
    """The name, the seed and a digest of all settings."""
    said = json.dumps(plain(case), sort_keys=True).encode()
    return f"{case.name} seed {case.seed} {hashlib.sha256(said).hexdigest()[:12]}"


def side_by_side(todo: Sequence[C], run: Callable[[C], Found]) -> Iterable[tuple[C, Found]]:
    """Run cases, as many at once as there are processors, and give each back as it is finished.

    Args:
        todo: the cases, the longest first.
        run: a function of a module, as it is sent to other processes.
    """
    if not todo:
        return ()
    workers = max(1, min(os.cpu_count() or 1, len(todo)))
    finished: Iterable[tuple[C, Found]] = Parallel(n_jobs=workers, return_as="generator_unordered")(
        delayed(_named)(run, case) for case in todo
    )
    return finished


def _named(run: Callable[[C], Found], case: C) -> tuple[C, Found]:
    return case, run(case)


@dataclass(slots=True)
class Kept:
    """Finished cases, saved after each. A reproduction says in which file, and what each must hold.

    Args:
        path: of the file; None keeps nothing.
        sources: digest of the code that the cases ran with.
        found: what they gave, by key.
    """

    file: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]]

    path: Path | None
    sources: str
    found: dict[str, Found]

    @classmethod
    def opened(cls, folder: Path | None) -> Self:
        """What an earlier run of this very code left; a damaged file, or another version's, counts as nothing.

        Raises:
            OutputError: nothing can be kept there.
        """
        kept = cls(folder / cls.file if folder else None, sources_digest(), {})
        if folder is not None:
            make_folder(folder)
            kept._save()  # that this fails must show before hours of training
        return kept

    def keep(self, case: Case, found: Found) -> None:
        """Add what a case gave."""
        self.found[case.key] = found
        self._save()

    def finished(
        self,
        wanted: Sequence[K],
        run: Callable[[Sequence[K]], Iterable[tuple[K, Found]]],
        progress: Callable[[str], None],
    ) -> Iterator[tuple[K, Found]]:
        """Run the cases that are not kept yet, and keep and give back each as it is finished.

        Args:
            wanted: all cases, the longest first.
            run: for instance `side_by_side` of a function.
            progress: told how many are done already.

        Raises:
            OutputError: one cannot be kept.
        """
        todo = [case for case in wanted if case.key not in self.found]
        if len(todo) < len(wanted):
            progress(f"{len(wanted) - len(todo)} of {len(wanted)} parts are done already")
        for case, found in run(todo):
            self.keep(case, found)
            yield case, found

    def _save(self) -> None:
        if self.path is None:
            return
        self.found = self._saved() | self.found  # another run in this folder may have finished some
        write_file(self.path, json.dumps({"sources": self.sources, "cases": self.found}))

    def _saved(self) -> dict[str, Found]:
        try:
            saved = json.loads(self.path.read_text() if self.path else "{}")
            if saved["sources"] != self.sources:
                return {}
            return {key: found for key, found in saved["cases"].items() if self._is_whole(found)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _is_whole(self, found: object) -> bool:
        return isinstance(found, dict) and all(
            isinstance(found.get(name), int | float) for name in self.numbers
        )
