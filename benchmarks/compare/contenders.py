"""Who takes part in what: the libraries, the formats they read, and the children that run them.

A library that cannot do a work is left out of it here, with the reason in its line. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from data import CLASSIC, Data
from harness import Contender

from compare.checksum import expected

if TYPE_CHECKING:
    from lazystore.testing import ObjectStore

__all__ = ["BUCKET", "Field", "Library"]

BUCKET = "bench"
#: Peers find the object store here; a proxy would be asked for localhost.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
LOCAL = frozenset(("passes", "shuffled", "warm", "loader"))
REMOTE = frozenset(("epoch", "cold"))
#: What streams can do: there are no lookups in them.
STREAM = (LOCAL | REMOTE) - {"warm", "cold"}


@dataclass(frozen=True)
class Library:
    """One contender in all works.

    Attributes:
        name: its row.
        opener: its function in libraries.py.
        format: which of data.FORMATS it reads; "": the classic one, whoever wrote it.
        works: the works it can do.
        via: lazystore's way to the object store.
        side: the side folder it is installed in.
        loader: its name in the DataLoader bench's readers, or a new one; "": the opener's.
        start: how its DataLoader workers start; "": torch's default.
    """

    name: str
    opener: str
    format: str
    works: frozenset[str] = LOCAL | REMOTE
    via: str = ""
    side: str = ""
    loader: str = ""
    start: str = ""


OURS = "lazystore"
LIBRARIES = (
    Library(OURS, "lazystore", "", via="http"),
    Library("lazystore, s3fs", "lazystore", "", REMOTE, via="s3"),
    Library("lazystore, obstore", "lazystore", "", REMOTE, via="obstore"),
    Library("LitData 0.2.76", "litdata", "litdata-0.2.76"),
    # Its Arrow-row chunks are slow to look up, and cannot be on a remote store.
    Library("LitData 0.2.76, classic data", "litdata", CLASSIC, frozenset(("warm", "cold"))),
    Library("LitData 0.2.61", "litdata", CLASSIC, side=CLASSIC),
    Library("MosaicML", "mosaicml", "mds"),
    Library("WebDataset", "webdataset", "webdataset", STREAM),
    Library("HF datasets, map", "hf", "hf", loader="hf_map"),
    Library("HF datasets, iterable", "hf_iterable", "parquet", STREAM, loader="hf_iterable, Parquet"),
    # ArrayRecord's published reader opens local files only, and crashes in forked workers.
    Library("Grain, ArrayRecord", "grain", "array_record", LOCAL, start="spawn"),
    # Its DataLoader needs a dataset class of its own and batches of Arrow; its threads do not survive a fork.
    Library("Lance", "lance", "lance", LOCAL - {"loader"} | REMOTE),
)


class Field:
    """Makes the children of a work, and checks each reader once against the samples that were made.

    Args:
        data: the datasets; missing ones are made now.
        options: --only, --limit, and what harness.compare takes.
        scratch: a folder for the caches of the libraries.
        store: the object store, if there is one.
    """

    def __init__(self, data: Data, options: argparse.Namespace, scratch: str, store: ObjectStore | None) -> None:
        self.data = data
        self.options = options
        self.scratch = scratch
        self.store = store
        self.verdicts: dict[str, str] = {}

    def contenders(self, call: str, work: str, kind: str, **spec: Any) -> list[Contender]:
        """One child a library: ``call`` in works.py, for those that can do ``work``."""
        return list(self._contenders(call, work, kind, **spec))

    def _contenders(self, call: str, work: str, kind: str, **spec: Any) -> Iterator[Contender]:
        for library in LIBRARIES:
            ours = library.opener == OURS
            if work not in library.works or not (ours or self.options.peers):
                continue
            if self.options.only and self.options.only not in library.name:
                continue
            try:
                path = self.data.ensure(kind, library.format) if library.format else self.data.classic(kind)
            except (harness.NotInstalled, harness.ContenderFailed) as absent:
                self.verdicts[library.name] = f"no data: {str(absent).splitlines()[0]}"
                path = ""
            yield self._child(library, f"compare.works:{call}", path, kind, work in REMOTE, spec)

    def _child(
        self, library: Library, call: str, path: str, kind: str, distant: bool, spec: dict[str, Any]
    ) -> Contender:
        common = {
            "library": library.opener,
            "kind": kind,
            "count": self.data.profile.counts[kind],
            "memory": self.options.memory if distant else self.data.profile.memory,
            "scratch": self.scratch,
            "shuffle": False,
            "loader": library.loader or library.opener,
            "start": library.start,
            "files": sorted(os.listdir(path)) if path else [],
        }
        environment = dict(ENVIRONMENT)
        if distant:
            assert self.store is not None
            common |= {"endpoint": self.store.url, "bucket": BUCKET, "via": library.via}
            common["prefix"] = f"{kind}/{Path(path).name}"
            environment["S3_ENDPOINT_URL"] = self.store.url
        else:
            common["path"] = path
        return Contender(
            library.name,
            call,
            common | spec,
            side=library.side,
            limit_s=self.options.limit,
            environment=environment,
        )

    def struck(self, contenders: Sequence[Contender]) -> dict[str, str]:
        """The reasons not to start some of them: a pass of theirs gives other samples, or none at all.

        Each reader is tried once per dataset, place and order, whatever the number of works that want it.
        """
        reasons: dict[str, str] = {}
        for contender in contenders:
            spec = contender.spec
            place = "remote" if "endpoint" in spec else "local"
            name = f"{contender.name}, {spec['kind']}, {place}, {'shuffled' if spec['shuffle'] else 'in order'}"
            if contender.name in self.verdicts:
                reasons[contender.name] = self.verdicts[contender.name]
                continue
            if name not in self.verdicts:
                print(f"  check: {name}", flush=True, file=sys.stderr)
                self.verdicts[name] = self._check(contender)
            if self.verdicts[name]:
                reasons[contender.name] = self.verdicts[name]
        return reasons

    def _check(self, contender: Contender) -> str:
        """Why the contender must not take part; "" when it yields what was written."""
        child = Contender(
            contender.name,
            "compare.works:check",
            contender.spec,
            contender.side,
            contender.limit_s,
            contender.environment,
        )
        try:
            result = harness.run_child(child)
        except (harness.NotInstalled, harness.ContenderFailed) as failure:
            print(f"    {failure}", flush=True, file=sys.stderr)
            return f"in the check: {str(failure).splitlines()[0]}"
        spec = contender.spec
        if result["items"] != spec["count"]:
            return f"yields {result['items']} of {spec['count']} samples"
        wanted = expected(spec["kind"], spec["count"], self.data.root / "checksums.json")
        return "" if result["checksum"] == wanted else "yields other samples than were written"
