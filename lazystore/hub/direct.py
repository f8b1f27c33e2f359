"""`open_direct`: a split of a hub dataset whose files are Parquet, as a StreamingDataset over our own ranged reader.

One question to the hub says what there is; after it come the files' footers, then the pages wanted. What is not plain
Parquet is :class:`NotDirect`, with the reason; reading that is ``hub_name.py``'s business.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lazystore.errors import ConfigError, FetchError
from lazystore.formats.arrow import ParquetFormat
from lazystore.formats.format import Opened, Options, Place
from lazystore.formats.parquet_images import ParquetFooter
from lazystore.hub.data_files import Choice, NotDirect, choose, converted_card, info_of
from lazystore.hub.features import Decoding, Feature, card_features, decoding_of, fits, schema_features, stored_as
from lazystore.hub.near import near
from lazystore.hub.repository import Repository, access_error, hub_headers, hub_token, read_file, read_repository
from lazystore.streaming.dataset import StreamingDataset

__all__ = ["NotDirect", "open_direct"]

#: Footers of all files are read before the first sample.
MAX_FILES = 1000
#: The branch where the hub keeps datasets of other kinds, converted to Parquet: a folder a config, in it one a split.
CONVERTED = "refs/convert/parquet"
#: What older versions of ``datasets`` wrote beside the files: infos by config, which the card's own go before.
LEGACY = "dataset_infos.json"
_REFUSED = re.compile(r"HTTP 40[13]\b")


def open_direct(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    columns: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    memory: int | str | None = None,
    timeout: float = 60.0,
) -> StreamingDataset:
    """A split of a hub dataset: the samples ``datasets.load_dataset(name, config, split=split, streaming=True)`` gives.

    Parameters:
        name: of the repository, "org/name".
        config, split: None: the default config.
        columns: only these are fetched and in the samples; None: all.
        revision: a branch, tag or commit; None: the main branch. The commit it is now is read to the end.
        token: a token; True: the login's; False: none; None: the login's if there is one.
        memory: as :class:`StreamingDataset` takes it.
        timeout: seconds for the hub's answer, and for each read.

    Raises:
        NotDirect: the dataset is not plain Parquet.
        ConfigError: no such config, split or column; names those there are.
        DatasetNotFoundError, HubAccessError, FetchError: the repository is not there, refused, or does not answer.
        BudgetTooSmallError, MissingExtraError, FormatError.

    Cost: a request to the hub, then one for every file's footer, 64 at a time, before the first sample's own.
    Pickling: by the files at this commit; the hub is not asked again, the token travels along.
    """
    if os.path.isdir(name):
        raise NotDirect(f"{name!r} is a folder here")
    if isinstance(columns, str) or (columns is not None and not columns):
        raise ConfigError(f"columns={columns!r} must be a list of column names, or None for all")
    shown = hub_token(token)
    repository = read_repository(name, revision=revision, token=shown, timeout=timeout)
    chosen = _choose(repository, config, split, converted=revision == CONVERTED)
    features = _features(repository, chosen, shown, timeout)
    if features is not None:
        _check_columns(repository.name, features, columns)
    files = {path: repository.files[path] for path in chosen.files}
    form = HubParquet(repository.name, repository.sha, files, features)
    try:
        return StreamingDataset(
            repository.url,
            format=form, columns=columns, memory=memory, storage_options={"headers": hub_headers(shown)},
            timeout=timeout, backend="fsspec",  # which remembers where files were redirected to
        )  # fmt: skip
    except FetchError as error:
        if _REFUSED.search(str(error)):
            raise access_error(repository.name, token=shown is not None) from error
        raise


def _choose(repository: Repository, config: str | None, split: str, *, converted: bool) -> Choice:
    """The files of a split."""
    if not repository.whole:
        raise NotDirect("it has so many files that the hub may not have named all")
    card = {**repository.card, **converted_card(repository.files)} if converted else repository.card
    chosen = choose(repository.name, card, repository.files, config, split)
    if any(repository.files[path] < 0 for path in chosen.files):
        raise NotDirect("the hub does not say how long its files are")
    if len(chosen.files) > MAX_FILES:
        raise NotDirect(f"it has {len(chosen.files)} files, whose footers would all be read first")
    return chosen


def _features(
    repository: Repository, chosen: Choice, token: str | None, timeout: float
) -> Mapping[str, Feature] | None:
    """What is written about the columns beside the files; None: nothing is."""
    info = chosen.info
    if not info and LEGACY in repository.files:
        info = _legacy_info(read_file(repository, LEGACY, token=token, timeout=timeout), chosen.config)
    return card_features(info)


def _legacy_info(written: bytes, config: str | None) -> Mapping[str, Any]:
    """What the file has about a config."""
    try:
        infos = json.loads(written)
    except ValueError as error:
        raise NotDirect(f"its {LEGACY} is no JSON: {error}") from error
    if not isinstance(infos, Mapping) or not all(isinstance(info, Mapping) for info in infos.values()):
        raise NotDirect(f"its {LEGACY} is no mapping of infos")
    # A single one has an old way to write the repository's name for its own.
    return info_of({"default": next(iter(infos.values()))} if len(infos) == 1 else infos, config)


def _check_columns(name: str, known: Mapping[str, Any], columns: Sequence[str] | None) -> None:
    for column in columns or ():
        if column not in known:
            raise ConfigError(f"{name} has no column {column!r}, it has {', '.join(known)}{near(column, known)}")


class HubParquet(ParquetFormat):
    """Parquet files of a hub dataset: their names and sizes are known, and its features say what cells mean.

    Parameters:
        dataset: in messages.
        commit: where the files are from.
        files: sizes in bytes, in the order in which they are read.
        features: of the card; None: what the first file's schema says.

    Pickling: by these.
    """

    def __init__(
        self, dataset: str, commit: str, files: Mapping[str, int], features: Mapping[str, Feature] | None
    ) -> None:
        self.dataset, self.commit = dataset, commit
        self.files = dict(files)
        self.features = features
        self._decoding: Decoding | None = None

    def open(self, place: Place, options: Options) -> Opened:
        """See :meth:`Format.open`."""
        opened = super().open(place, options)
        opened.transform = self._decoding
        opened.about["commit"] = self.commit
        return opened

    def examine(self, footers: Sequence[ParquetFooter], options: Options) -> None:
        """Whether all files have the features' columns, and what is to be done about their cells.

        Raises:
            NotDirect: they would have to be cast, or a feature is not read here.
        """
        first, columns = footers[0].schema, options.columns
        _check_columns(self.dataset, dict.fromkeys(first.names), columns)
        features: Mapping[str, Feature | None] = self.features or schema_features(first, columns)
        types = {
            name: first.field(name).type if feature is None else stored_as(feature)
            for name, feature in features.items()
            if (columns is None or name in columns) and name in first.names
        }
        for footer in {footer.schema: footer for footer in footers}.values():
            schema = footer.schema
            if set(schema.names) != set(features):
                raise NotDirect(f"{footer.name} has the columns {schema.names}, not {list(features)}")
            for name, type_ in types.items():
                if not fits(schema.field(name).type, type_):
                    raise NotDirect(f"column {name!r} of {footer.name} is {schema.field(name).type}, not {type_}")
        self._decoding = decoding_of(self.dataset, features, first, columns)
