"""What the object store answers: routes, objects and their ranges, control URLs, injected faults.

Settings change at run time; everything else is decided per request. Bytes are moved by
``http_protocol.py``, heads and small bodies made in ``answers.py``, documents in ``listing.py``, files
found by ``buckets.py``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import random
import resource
import signal
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lazystore.config import parse_bytes
from lazystore.errors import ConfigError
from lazystore.testing.answers import XML, bytes_answer, file_answer, json_answer, parse_target, xml_error
from lazystore.testing.buckets import Buckets, StoreError
from lazystore.testing.faults import Decision, FaultPlan, Faults
from lazystore.testing.http_protocol import Answer, Connection, Request
from lazystore.testing.listing import folder_html, list_buckets_xml, list_objects_xml, list_page
from lazystore.testing.traffic import Pacer, Traffic

__all__ = ["Buckets", "Service", "Settings", "serve"]

HOST = "127.0.0.1"
BACKLOG = 4096
PARENT_POLL_S = 0.5
MAX_LATENCY_MS = 600_000.0

CONTROL = "/-/"
LOCAL_NAMES = frozenset({"127.0.0.1", "localhost"})

#: Query names that ask an object for something other than its bytes.
SUBRESOURCES = frozenset(
    ("acl", "attributes", "legal-hold", "restore", "retention", "tagging", "torrent", "uploadId", "uploads")
)


#: Headers that tell an S3 client, or a reader of bytes, from one that follows links.
_S3_MARKS = frozenset(("amz-sdk-invocation-id", "authorization", "range", "x-amz-content-sha256"))


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be changed while the server runs.

    Attributes:
        latency_ms: milliseconds before each answer.
        jitter: sigma of a lognormal factor on it.
        bandwidth: bytes per second in all; None: unlimited.
        faults: what goes wrong; None: nothing.

    Raises:
        ConfigError: a value out of its range.
    """

    latency_ms: float = 0.0
    jitter: float = 0.0
    bandwidth: int | None = None
    faults: Faults | None = None

    def __post_init__(self) -> None:
        for name, limit in (("latency_ms", MAX_LATENCY_MS), ("jitter", 5.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= limit:
                raise ConfigError(f"{name}={value!r} must be between 0 and {limit:g}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], base: Settings | None = None) -> Settings:
        """Plain values over those of ``base``.

        Raises:
            ConfigError: an unknown name, or a value that cannot work.
        """
        known = {name: getattr(base or cls(), name) for name in cls.__slots__}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"there is no setting {unknown[0]!r}; known: {', '.join(known)}")
        known.update(values)
        if known["bandwidth"] is not None:
            known["bandwidth"] = parse_bytes(known["bandwidth"], name="bandwidth")
        if isinstance(known["faults"], Mapping):
            known["faults"] = Faults.from_dict(known["faults"])
        if known["faults"] is not None and not isinstance(known["faults"], Faults):
            raise ConfigError(f"faults={known['faults']!r} is not a set of rates such as {{}}")
        return cls(**known)


class Service:
    """The application behind every connection; lives on one event loop.

    Args:
        buckets: what is served.
        settings: how.
        log: how many of the latest requests the stats URL shows.

    Raises:
        ConfigError: ``log`` is negative.
    """

    def __init__(self, buckets: Buckets, settings: Settings, *, log: int) -> None:
        if log < 0:
            raise ConfigError(f"log={log} must not be negative")
        self._buckets = buckets
        self.bodies = 0
        self.traffic = Traffic(log=log, now=time.monotonic())
        self._settings = settings
        self.pacer = Pacer(settings.bandwidth)
        self._restart_faults()

    def configure(self, values: Mapping[str, Any]) -> None:
        """Change these settings from the next request on; faults that are given start a plan of their own.

        Raises:
            ConfigError: an unknown name, or a value that cannot work; then nothing changes.
        """
        old, self._settings = self._settings, Settings.from_dict(values, self._settings)
        if self._settings.bandwidth != old.bandwidth:
            self.pacer = Pacer(self._settings.bandwidth)
        if "faults" in values:
            self._restart_faults()

    def _restart_faults(self) -> None:
        faults = self._settings.faults or Faults()
        self._plan: FaultPlan = faults.plan()
        self._random = random.Random(faults.seed)

    async def listen(self, port: int) -> str:
        """Accept connections on 127.0.0.1; returns the URL.

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), HOST, port, backlog=BACKLOG)
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    # -- what connections call

    def arrived(self, request: Request) -> float:
        """Count the request; seconds until it is to be answered (control requests: 0 and uncounted)."""
        if request.target.startswith(CONTROL):
            return 0.0
        now = asyncio.get_running_loop().time()
        path = parse_target(request.target)[0] or request.target
        request.record = self.traffic.begin(request.method, path, now)
        delay = self._settings.latency_ms / 1000.0
        if self._settings.jitter and delay:
            delay *= math.exp(self._random.gauss(0.0, self._settings.jitter))
        return delay

    def answer(self, request: Request) -> Answer:
        """The answer, with the accident that the fault plan has for it."""
        try:
            if request.headers.get("host", HOST).rsplit(":", 1)[0] not in LOCAL_NAMES:
                # A web page that rebinds its own name to this address must not read these files.
                raise StoreError(421, "MisdirectedRequest", "This store answers to 127.0.0.1 and localhost")
            if request.record is None:
                answer = self._control(request)
            else:
                answer = self._with_fault(request)
        except StoreError as error:
            answer = xml_error(request, error)
        if request.record is not None:
            self.traffic.status(request.record, 0 if answer.silent else int(answer.head[9:12]))
        return answer

    # -- faults

    def _with_fault(self, request: Request) -> Answer:
        record = request.record
        assert record is not None
        wanted = request.headers.get("range", "")
        fault = self._plan.draw(record.path.lstrip("/"), request.method, request.target, wanted)
        if fault.kind == "ignore_range" and not wanted:
            fault = Decision("", 0.0)
        if fault.kind:
            self.traffic.fault(record, fault.kind)
        if fault.kind == "error_503":
            raise StoreError(503, "SlowDown", "Please reduce your request rate.")
        if fault.kind == "ignore_range":
            del request.headers["range"]
        try:
            answer = self._route(request)
        except StoreError as error:
            answer = xml_error(request, error)
        if fault.kind in ("cut", "stall"):
            answer.ending = fault.kind
            length = answer.end - answer.begin
            if fault.kind == "cut":
                answer.silent = not length
                answer.end = answer.begin + int(length * fault.fraction)
            else:
                answer.silent = not length or fault.fraction < 0.5
                answer.end = answer.begin + (0 if answer.silent else length // 2)
        return answer

    # -- routes

    def _control(self, request: Request) -> Answer:
        verb = request.target[len(CONTROL) :]
        if (request.method, verb) == ("GET", "stats"):
            return json_answer(request, self.traffic.snapshot())
        if (request.method, verb) == ("POST", "reset"):
            self.traffic.reset(asyncio.get_running_loop().time())
            self._restart_faults()
            return json_answer(request, {})
        if (request.method, verb) == ("POST", "configure"):
            try:
                values = json.loads(request.body)
                if not isinstance(values, dict):
                    raise ConfigError("send a JSON object of settings")
                self.configure(values)
            except (ValueError, TypeError) as error:  # ConfigError is a ValueError
                return bytes_answer(request, 400, f"{error}\n".encode(), "text/plain; charset=utf-8")
            return json_answer(request, {})
        message = "known: GET /-/stats, POST /-/reset, POST /-/configure\n"
        return bytes_answer(request, 404, message.encode(), "text/plain")

    def _route(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            raise StoreError(501, "NotImplemented", f"This store is read-only; {request.method} is not known")
        path, query = parse_target(request.target)
        if not path:
            raise StoreError(400, "InvalidURI", "The path is not percent-encoded UTF-8")
        bucket, _, key = path[1:].partition("/")
        if path == "/":
            return bytes_answer(request, 200, list_buckets_xml(self._buckets.names()), XML)
        if key and not key.endswith("/"):
            if not SUBRESOURCES.isdisjoint(query):
                raise StoreError(501, "NotImplemented", "Only the bytes of an object are served")
            try:
                return self._object(request, bucket, key)
            except StoreError as error:
                if error.status != 404 or not self._wants_folder(request, bucket, key):
                    raise
                key += "/"
        if query.get("list-type") == "2" and not key:
            page = list_page(self._buckets, bucket, query)
            return bytes_answer(request, 200, list_objects_xml(bucket, query, page), XML)
        if query:
            raise StoreError(501, "NotImplemented", "A bucket answers ListObjectsV2 (list-type=2) only")
        if request.method == "HEAD" and not key:
            self._buckets.folder(bucket)
            return bytes_answer(request, 200, b"", XML, "x-amz-bucket-region: us-east-1\r\n")
        if request.method == "HEAD" or not self._buckets.is_folder(bucket, key):
            raise StoreError(404, "NoSuchKey", "The specified key does not exist.")
        entries = self._buckets.keys(bucket, prefix=key, shallow=True)
        return bytes_answer(request, 200, folder_html(bucket, key, entries), "text/html; charset=utf-8")

    def _wants_folder(self, request: Request, bucket: str, key: str) -> bool:
        """Whether a plain HTTP client walks through links, having dropped the "/" of a folder's.

        To S3, a folder is no object and its name no key: clients that speak S3 must be told so.
        """
        if request.method != "GET" or not _S3_MARKS.isdisjoint(request.headers):
            return False
        if request.headers.get("user-agent", "").startswith("object_store/"):
            return False
        return self._buckets.is_folder(bucket, key)

    def _object(self, request: Request, bucket: str, key: str) -> Answer:
        return file_answer(request, self._buckets.open(bucket, key))


# -- the process


def serve(service: Service, port: int) -> None:
    """Listen on 127.0.0.1, print the URL, and run until interrupted, terminated or orphaned.

    When stdin is a pipe, its end or that of the parent process ends the server.

    Raises:
        OSError: the port is taken.
    """
    _raise_descriptor_limit()
    try:
        asyncio.run(_run(service, port))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


async def _run(service: Service, port: int) -> None:
    loop = asyncio.get_running_loop()
    url = await service.listen(port)
    stopped = asyncio.Event()
    parent = os.getppid()

    def watch_parent() -> None:
        if os.getppid() != parent:
            stopped.set()
        loop.call_later(PARENT_POLL_S, watch_parent)

    def watch_stdin() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stopped.set()

    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        loop.add_reader(0, watch_stdin)
        watch_parent()
    gc.freeze()
    print(url, flush=True)
    await stopped.wait()


def _raise_descriptor_limit() -> None:
    """One connection, one descriptor: the usual soft limit of 1,024 is low for many clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < min(hard, 65_536):
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
