"""The output folder of a run: which file names are free, what an earlier run left, and the moment of publication."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lazystore.errors import ConfigError, DatasetNotFoundError
from lazystore.formats.chunk_files import Folder
from lazystore.formats.dataset_folder import INDEX_NAME, Claim, claim, finish_dataset
from lazystore.formats.index_writer import Part, part_of
from lazystore.formats.write_settings import WriteSettings
from lazystore.formats.writer import keys_of, settings_to_append
from lazystore.parallel.writing.checkpoint import RUN_NAME, Checkpoint
from lazystore.parallel.writing.tasks import Done

__all__ = ["Target"]

_CHUNK = re.compile(r"chunk-.*\.bin")


class Target:
    """One run's hold on its output folder.

    Parameters:
        folder, mode: see :class:`~lazystore.DatasetWriter`.
        checkpoint: of the run.
        keyed: items have keys.

    Attributes:
        finished: an earlier run was killed after it had published the dataset.

    Raises:
        ConfigError: a dataset, or somebody's unfinished run, is in the way.
    """

    def __init__(
        self, folder: Folder, mode: str | None, checkpoint: Checkpoint, *, keyed: bool, use_checkpoint: bool
    ) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._kept = use_checkpoint
        self._there = self._chunks()
        self.finished = False
        continued = use_checkpoint and checkpoint.load()
        if not use_checkpoint and mode != "overwrite" and RUN_NAME in folder.names():
            raise ConfigError(
                f"{folder.url} holds an unfinished run; use_checkpoint=True continues it, mode='overwrite' begins again"
            )
        if continued:
            self.finished = checkpoint.base != self._base()
        else:
            checkpoint.base = self._base()
        self._claim = Claim() if continued and mode is None else claim(folder, mode)
        if not continued:
            checkpoint.before = [] if mode == "overwrite" else self._there
            checkpoint.held = self._claim.part.count
        mine = {name for done in checkpoint.records.values() for name in done.files}
        # A worker of a killed run may still be alive and write: each run has names of its own.
        version = self._claim.version + checkpoint.runs
        self._claim = replace(
            self._claim, version=version, old=tuple(name for name in self._claim.old if name not in mine)
        )
        self._keys = None if self.finished else keys_of(self._claim, folder.url, wanted=keyed)
        folder.prepare()

    def begin(self) -> None:
        """Note the run, where it is to be continued if it ends early: nothing can stop it now but its work."""
        if self._kept:
            self._checkpoint.begin()

    def settings(self, settings: WriteSettings) -> WriteSettings:
        """Settings for the folder: a dataset that is added to has a compression already."""
        return settings_to_append(settings, self._claim)

    @property
    def names(self) -> Claim:
        """What workers need of the claim."""
        return replace(self._claim, part=Part(), extra={}, keys={}, old=())

    @property
    def like(self) -> dict[str, Any] | None:
        """The config of the dataset that is added to."""
        return self._claim.part.config

    def finish_clearing(self) -> int:
        """Clear away what a run that had published left; the number of its items."""
        place = f"{self._folder.url}/{INDEX_NAME}"
        part = part_of(json.loads(self._folder.read(INDEX_NAME)), place=place)
        self._sweep(chunk["filename"] for chunk in part.chunks)
        self._checkpoint.clear()
        return part.count - self._checkpoint.held

    def publish(self, results: Sequence[Done]) -> int:
        """Make the results the folder's dataset; the number of new items.

        Raises:
            ConfigError: there is not one item.
            FormatError: two items with one key.
            WriteError: the storage refused; the old dataset is as it was.
        """
        items = sum(done.part.count for done in results)
        if not items and not self._claim.part.chunks:
            raise ConfigError(f"no sample was written to {self._folder.url}: a dataset's format comes from its samples")
        parts = [(f"inputs {done.first} to {done.first + done.count - 1}", done.part) for done in results]
        if self._keys is not None:
            for done in results:
                if done.keys is not None:
                    self._keys.extend(done.keys)
        index = finish_dataset(self._folder, parts, claim=self._claim, keys=self._keys, settled=self._kept)
        self._sweep(chunk["filename"] for chunk in index["chunks"])
        self._checkpoint.clear()
        return items

    def take_back(self) -> None:
        """Remove what a run that failed wrote, unless it is kept for the next one, or published already."""
        if not self._kept and self._base() == self._checkpoint.base:
            self._remove_others(set(self._there))
            self._folder.sweep()

    def _sweep(self, listed: Iterable[str]) -> None:
        """Remove chunks that no index lists: of tasks that were run again, of runs that were killed."""
        self._remove_others({*listed, *self._checkpoint.before})

    def _remove_others(self, spared: set[str]) -> None:
        for name in self._chunks():
            if name not in spared:
                self._folder.delete(name)

    def _chunks(self) -> list[str]:
        return [name for name in self._folder.names() if _CHUNK.fullmatch(name)]

    def _base(self) -> str:
        """What tells one index from another; "" for none."""
        try:
            return hashlib.blake2b(self._folder.read(INDEX_NAME), digest_size=16).hexdigest()
        except DatasetNotFoundError:
            return ""
