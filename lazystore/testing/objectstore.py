"""A local object store in a process of its own: the handle, and the command line.

    with ObjectStore("datasets", latency_ms=20, bandwidth="200MB") as store:
        fsspec.open(store.http_url("text", "index.json"))

Serves folders as S3 buckets (read-only, path style) and as plain HTTP, on 127.0.0.1 only, with
latency, a bandwidth limit and faults on demand. What it answers is in ``service.py``, how bytes
travel in ``http_protocol.py``, how the process is run in ``server_process.py``.
Needs a POSIX system and nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from lazystore.config import parse_bytes
from lazystore.errors import ConfigError, DatasetNotFoundError, LazyStoreError
from lazystore.testing.faults import Faults
from lazystore.testing.server_process import UNSET, ServerProcess, Unset

__all__ = ["ObjectStore", "main"]

DEFAULT_LOG = 4096

Root = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]


class ObjectStore(ServerProcess):
    """A local object store serving ``root``; a context manager.

    Args:
        root: a folder whose sub-folders are the buckets, or a mapping of bucket name to folder.
        latency_ms: milliseconds from the arrival of a request to the first byte of its answer, for
            each request on its own: parallel requests wait at the same time.
        jitter: sigma of a lognormal factor on the latency (0: fixed; 0.5: a p99 of 3.2 times the
            median ``latency_ms``).
        bandwidth: bytes per second over all connections together, as an int or "200MB"; None: unlimited.
        faults: what goes wrong, and how often; None: nothing.
        port: TCP port on 127.0.0.1; 0 takes a free one.
        log: how many of the latest requests :meth:`stats` returns.
        start_timeout: seconds to wait for the process to answer.

    Raises (from :meth:`start`, which ``with`` calls):
        ConfigError: an argument that cannot work.
        DatasetNotFoundError: ``root`` or one of the folders does not exist.
        LazyStoreError: the process did not come up.

    The server ends with :meth:`close`, and by itself when this process goes away, in whatever way.
    Methods may be called from any thread once started. Do not pickle it: hand ``url`` to other
    processes. A forked child may read ``url``, and its ``close()`` leaves the server alone. Starting
    costs about 0.2 s; the server holds at most 32 MiB of bodies plus about 25 MiB of interpreter.
    """

    def __init__(
        self,
        root: Root,
        *,
        latency_ms: float = 0.0,
        jitter: float = 0.0,
        bandwidth: int | str | None = None,
        faults: Faults | None = None,
        port: int = 0,
        log: int = DEFAULT_LOG,
        start_timeout: float = 20.0,
    ) -> None:
        arguments = _root_arguments(root)
        arguments += ["--latency-ms", repr(float(latency_ms)), "--jitter", repr(float(jitter))]
        arguments += ["--port", str(port), "--log", str(log)]
        if bandwidth is not None:
            arguments += ["--bandwidth", str(parse_bytes(bandwidth, name="bandwidth"))]
        if faults is not None:
            arguments += ["--faults", json.dumps(faults.to_dict())]
        super().__init__("lazystore.testing.objectstore", arguments, noun="object store", start_timeout=start_timeout)

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``, which is also the S3 endpoint."""
        return self._announced()

    def http_url(self, bucket: str, key: str = "") -> str:
        """URL of an object, or of a folder when ``key`` ends in "/", for any HTTP client."""
        return f"{self.url}/{urllib.parse.quote(bucket)}/{urllib.parse.quote(key)}"

    def s3_url(self, bucket: str, key: str = "") -> str:
        """``s3://bucket/key``, to be used with :meth:`s3_options`."""
        return f"s3://{bucket}/{key}"

    def s3_options(self) -> dict[str, Any]:
        """``storage_options`` that point fsspec's s3 filesystem (s3fs) here."""
        return {
            "anon": True,
            "endpoint_url": self.url,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def obstore_options(self) -> dict[str, Any]:
        """Keyword arguments that point ``obstore.store.S3Store(bucket, ...)`` here."""
        return {
            "endpoint": self.url,
            "region": "us-east-1",
            "skip_signature": True,
            "virtual_hosted_style_request": False,
            "client_options": {"allow_http": True},
        }

    def stats(self) -> dict[str, Any]:
        """Counters since the start or the last :meth:`reset`; control requests are not counted.

        Keys: ``requests`` (by method), ``gets``, ``statuses`` (by status), ``bytes_sent`` (bodies only),
        ``faults`` (injected, by kind), ``in_flight``, ``peak_concurrent``, ``connections`` (opened, those of
        control requests included), and ``log``:
        the latest requests, each with ``method, path, begin, end`` (of the body, half open; None where
        there is none), ``status, fault, sent, received, finished`` (seconds since the reset;
        ``finished`` is None while under way) and ``log_dropped``, how many older ones were forgotten.
        ``lazystore.testing.dependent_waves(log)`` counts the waves in it.
        """
        return self._control(self.url, "GET", "stats")

    def reset(self) -> None:
        """Set all counters to zero, forget the log and start the fault plan from its beginning."""
        self._control(self.url, "POST", "reset")

    def configure(
        self,
        *,
        latency_ms: float | Unset = UNSET,
        jitter: float | Unset = UNSET,
        bandwidth: int | str | Unset | None = UNSET,
        faults: Faults | Unset | None = UNSET,
    ) -> None:
        """Change what is given, from the next request on; the rest stays as it is.

        ``faults`` that are given start their plan from its beginning, even if they are the same as before.

        Raises:
            ConfigError: a value that cannot work.
        """
        changes: dict[str, Any] = {}
        if not isinstance(latency_ms, Unset):
            changes["latency_ms"] = latency_ms
        if not isinstance(jitter, Unset):
            changes["jitter"] = jitter
        if not isinstance(bandwidth, Unset):
            changes["bandwidth"] = None if bandwidth is None else parse_bytes(bandwidth, name="bandwidth")
        if not isinstance(faults, Unset):
            changes["faults"] = None if faults is None else faults.to_dict()
        self._control(self.url, "POST", "configure", changes)

    def __repr__(self) -> str:
        return f"<ObjectStore {self._line or 'not running'}>"


def _root_arguments(root: Root) -> list[str]:
    if not isinstance(root, Mapping):
        _check_folder(root)
        return ["--root", os.path.abspath(root)]
    if not root:
        raise ConfigError("root={} names no bucket; give a folder, or a mapping of bucket name to folder")
    arguments: list[str] = []
    for bucket, folder in root.items():
        _check_folder(folder)
        arguments += ["--bucket", f"{bucket}={os.path.abspath(folder)}"]
    return arguments


def _check_folder(folder: str | os.PathLike[str]) -> None:
    if not os.path.isdir(folder):
        raise DatasetNotFoundError(f"{os.fspath(folder)!r} is not a folder the object store could serve")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lazystore.testing.objectstore",
        description="Serve folders as S3 buckets and over HTTP on 127.0.0.1, with latency and faults.",
    )
    parser.add_argument("--root", metavar="DIR", help="folder whose sub-folders are the buckets")
    parser.add_argument(
        "--bucket", metavar="NAME=DIR", action="append", default=[], help="one more bucket (repeatable)"
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (0: any free one)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="milliseconds before each answer")
    parser.add_argument("--jitter", type=float, default=0.0, help="sigma of a lognormal factor on it")
    parser.add_argument("--bandwidth", default=None, help="bytes per second in all, e.g. 200MB")
    parser.add_argument("--faults", type=json.loads, default=None, help='JSON, e.g. {"cut": 0.1, "seed": 1}')
    parser.add_argument("--log", type=int, default=DEFAULT_LOG, help="requests kept for the stats URL")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server in this process until it is interrupted or its parent goes away."""
    from lazystore.testing import service

    options = _parser().parse_args(argv)
    buckets: dict[str, str] = {}
    for entry in options.bucket:
        name, equals, folder = entry.partition("=")
        if not equals:
            print(f"error: --bucket {entry!r} must read NAME=DIR", file=sys.stderr)
            return 2
        buckets[name] = folder
    try:
        settings = service.Settings.from_dict(
            {
                "latency_ms": options.latency_ms,
                "jitter": options.jitter,
                "bandwidth": options.bandwidth,
                "faults": options.faults,
            }
        )
        served = service.Service(service.Buckets(options.root, buckets), settings, log=options.log)
        service.serve(served, options.port)
    except (LazyStoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
