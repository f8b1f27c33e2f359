"""What the local hub answers: the API of dataset repositories, files and where they lie, refusals, accidents.

Follows the Hub's API documentation (https://huggingface.co/docs/hub/api) and what `huggingface_hub` and
`datasets` read of it. Files are described by ``hub_repos.py``; bytes, faults and counters are those of
the object store. This module runs in the server's process; the handle is ``hub.py``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import posixpath
import socket
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazystore.errors import ConfigError
from lazystore.testing.answers import bytes_answer, file_answer, json_answer, parse_target
from lazystore.testing.buckets import Buckets, StoreError
from lazystore.testing.http_protocol import Answer, Connection, Request
from lazystore.testing.hub_repos import MAIN, Commit, HubFile, Repo
from lazystore.testing.service import BACKLOG, CONTROL, HOST, Service, Settings

__all__ = ["HubService", "kind_of"]

BLOBS = "blobs"
VERBS = ("revision", "tree", "paths-info", "refs", "resolve")
#: Entries on a page of a listing, and of one with commits (as the Hub's API documentation has it).
PAGE = 1000
EXPANDED_PAGE = 50


class Refusal(Exception):
    """A request that the hub refuses: status, X-Error-Code ("" for none), message, more header lines."""

    def __init__(self, status: int, code: str, message: str, more: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.more = more


@dataclass(slots=True)
class Weather:
    """What befalls the whole hub.

    Attributes:
        down: nobody can connect.
        requests: so many more are answered, then it is down; None: no such limit.
        bytes: so many more bytes of bodies leave, then it is down; None: no such limit.
        busy: so many requests get 429.
        retry_after: seconds that those are told to wait.
        page: entries on a page of a listing.
    """

    down: bool = False
    requests: int | None = None
    bytes: int | None = None
    busy: int = 0
    retry_after: int = 0
    page: int = PAGE


class HubConnection(Connection):
    """A connection that the hub can drop when it goes down."""

    def __init__(self, service: HubService) -> None:
        super().__init__(service)
        self._everyone = service.open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._everyone.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._everyone.discard(self)
        super().connection_lost(error)

    def drop(self) -> None:
        """End it as a crash would."""
        self._transport.abort()


class Door:
    """A port that can be shut, so that connecting is refused, and opened again. It stays ours all the while."""

    def __init__(self, service: HubService) -> None:
        self._service = service
        self._server: asyncio.Server | None = None

    def claim(self, port: int) -> None:
        """Take the port, or any that is free if 0, without listening."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, port))
        self.port = int(self._socket.getsockname()[1])

    def open(self) -> None:
        """Listen; accepting begins with the loop's next turn."""
        self._socket.listen(BACKLOG)
        self._task = asyncio.get_running_loop().create_task(self._accept(self._socket))

    async def _accept(self, listening: socket.socket) -> None:
        make = functools.partial(HubConnection, self._service)
        server = await asyncio.get_running_loop().create_server(make, sock=listening, backlog=BACKLOG)
        if self._socket is listening:
            self._server = server
        else:  # shut meanwhile
            server.close()

    def shut(self) -> None:
        """Stop listening; open connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.claim(self.port)


class HubService(Service):
    """The application behind the hub's port, its CDN's and the control port.

    Args:
        folder: the files, by SHA-256.
        settings: latency, bandwidth and faults; :meth:`calm` returns to them.
        log: how many of the latest requests are kept.
    """

    def __init__(self, folder: str, settings: Settings, *, log: int) -> None:
        super().__init__(Buckets(None, {BLOBS: folder}), settings, log=log)
        self._folder = folder
        self._base = settings
        self._repos: dict[str, Repo] = {}
        self._weather = Weather()
        self._kinds: Counter[str] = Counter()
        #: Links to files carry it; those that carry an older one have expired.
        self._signature = 1
        self.open: set[HubConnection] = set()
        self._hub = Door(self)
        self._cdn = Door(self)

    async def listen(self, port: int) -> str:
        """Open all ports; returns the URLs, as JSON."""
        control = await super().listen(0)
        for door, wanted in ((self._hub, port), (self._cdn, 0)):
            door.claim(wanted)
            door.open()
        hub = f"http://{HOST}:{self._hub.port}"
        return json.dumps({"endpoint": hub, "cdn": self._cdn_url, "control": control, "folder": self._folder})

    @property
    def _cdn_url(self) -> str:
        return f"http://{HOST}:{self._cdn.port}"

    # -- every request

    def arrived(self, request: Request) -> float:
        """Count it by kind; seconds until it is to be answered."""
        delay = super().arrived(request)
        if request.record is not None:
            self._kinds[kind_of(request.record.path)] += 1
        return delay

    def answer(self, request: Request) -> Answer:
        """The answer, unless the hub is down or busy."""
        if request.record is None:
            return super().answer(request)
        weather = self._weather
        if weather.down:
            answer = Answer(b"")
            answer.silent, answer.ending = True, "cut"
            return answer
        if weather.busy:
            weather.busy -= 1
            self.traffic.status(request.record, 429)
            more = f"Retry-After: {weather.retry_after}\r\n"
            return json_answer(request, {"error": "Too many requests"}, 429, more)
        answer = super().answer(request)
        self._spend(answer)
        return answer

    def _spend(self, answer: Answer) -> None:
        """Take the answer from what may still be said; at the end of that the hub goes down."""
        weather = self._weather
        if weather.requests is not None:
            weather.requests -= 1
        if weather.bytes is not None:
            length = answer.end - answer.begin
            if length >= weather.bytes:
                answer.end = answer.begin + weather.bytes
                answer.ending = "cut"
            weather.bytes -= min(length, weather.bytes)
        if 0 in (weather.requests, weather.bytes):
            self._fall()

    def _fall(self) -> None:
        """Nobody connects any more; answers that are under way are still given."""
        if not self._weather.down:
            self._weather.down = True
            self._hub.shut()
            self._cdn.shut()

    def _set_weather(self, weather: Weather) -> None:
        was_down = self._weather.down
        self._weather = weather
        if weather.down or 0 in (weather.requests, weather.bytes):
            weather.down = was_down
            self._fall()
            for connection in list(self.open):
                connection.drop()
        elif was_down:
            self._hub.open()
            self._cdn.open()

    # -- control

    def _control(self, request: Request) -> Answer:
        verb = request.target[len(CONTROL) :]
        if (request.method, verb) == ("GET", "stats"):
            return json_answer(request, self.traffic.snapshot() | {"kinds": dict(self._kinds)})
        if request.method != "POST" or verb not in ("add", "remove", "weather", "expire", "calm", "reset"):
            return super()._control(request)
        try:
            self._obey(verb, json.loads(request.body))
        except (ValueError, TypeError, KeyError, OSError) as error:
            return bytes_answer(request, 400, f"{error}\n".encode(), "text/plain; charset=utf-8")
        return json_answer(request, {})

    def _obey(self, verb: str, values: dict[str, Any]) -> None:
        if verb == "add":
            manifest = json.loads(Path(self._folder, values["manifest"]).read_text())
            self._repos.setdefault(manifest["repo"], Repo(manifest["repo"])).add(manifest)
        elif verb == "remove":
            if self._repos.pop(values["repo"], None) is None:
                raise ConfigError(f"there is no {values['repo']!r}; there are: {', '.join(self._repos) or 'none'}")
        elif verb == "weather":
            self._set_weather(Weather(**values))
        elif verb == "expire":
            self._signature += 1
        elif verb == "calm":
            self._set_weather(Weather())
            self.configure({name: getattr(self._base, name) for name in Settings.__slots__})
        if verb in ("calm", "reset"):
            self._kinds.clear()
            self.traffic.reset(asyncio.get_running_loop().time())
            self._restart_faults()

    # -- routes

    def _route(self, request: Request) -> Answer:
        try:
            return self._find_answer(request)
        except Refusal as refusal:
            # What was asked for is part of some messages: no line ends, nothing beyond ASCII.
            message = str(refusal).encode("unicode_escape").decode()
            more = f"X-Error-Message: {message}\r\n{refusal.more}"
            if refusal.code:
                more = f"X-Error-Code: {refusal.code}\r\n{more}"
            return json_answer(request, {"error": str(refusal)}, refusal.status, more)

    def _find_answer(self, request: Request) -> Answer:
        raw = request.target.partition("?")[0]
        parts = [urllib.parse.unquote(part) for part in raw.strip("/").split("/")]
        if request.headers.get("host", "").endswith(f":{self._cdn.port}"):
            return self._from_cdn(request, parts)
        if parts[:2] == ["api", "whoami-v2"]:
            return self._whoami(request)
        if parts[:2] == ["api", "datasets"] and len(parts) > 2:
            repo, rest = split_repo(parts[2:])
            return self._api(request, repo, *(rest or ["revision", MAIN]))
        if parts[0] == "datasets" and len(parts) > 2:
            repo, rest = split_repo(parts[1:])
            if rest and rest[0] == "resolve":
                return self._resolve(request, repo, rest[1:])
        raise Refusal(404, "", "Sorry, this hub does not know that page")

    def _api(self, request: Request, repo_id: str, verb: str, *rest: str) -> Answer:
        repo = self._readable(request, repo_id, contents=False)
        if verb == "refs":
            return json_answer(request, repo.describe_refs())
        revision, path = split_revision(rest)
        commit = self._commit(repo, revision)
        query = parse_target(request.target)[1]
        if verb == "revision" and not path:
            return json_answer(request, repo.describe(commit, blobs=_is_true(query.get("blobs", ""))))
        if verb == "tree":
            return self._tree(request, commit, path, query)
        if verb == "paths-info" and request.method == "POST":
            wanted, expand = paths_asked(request)
            return json_answer(request, commit.paths(wanted, expand=expand))
        raise Refusal(404, "", "Sorry, this hub does not know that page")

    def _tree(self, request: Request, commit: Commit, path: str, query: Mapping[str, str]) -> Answer:
        expand = _is_true(query.get("expand", ""))
        entries = commit.tree(path, recursive=_is_true(query.get("recursive", "")), expand=expand)
        if entries is None:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {commit.sha!r}")
        cursor = query.get("cursor", "0")
        if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 9:
            raise Refusal(400, "", "Invalid cursor")
        begin = int(cursor)
        end = begin + min(self._weather.page, EXPANDED_PAGE if expand else PAGE)
        more = ""
        if end < len(entries):
            again = urllib.parse.urlencode({**query, "cursor": end})
            here = f"http://{HOST}:{self._hub.port}{request.target.partition('?')[0]}"
            more = f'Link: <{here}?{again}>; rel="next"\r\n'
        return json_answer(request, entries[begin:end], more=more)

    def _whoami(self, request: Request) -> Answer:
        token = self._token(request)
        if token is None:
            raise Refusal(401, "", "Invalid username or password.")
        role = {"type": "access_token", "accessToken": {"displayName": token, "role": "read"}}
        return json_answer(request, {"type": "user", "name": "somebody", "orgs": [], "auth": role})

    # -- files

    def _resolve(self, request: Request, repo_id: str, rest: list[str]) -> Answer:
        repo = self._readable(request, repo_id, contents=True)
        revision, path = split_revision(rest)
        commit = self._commit(repo, revision)
        here = f"X-Repo-Commit: {commit.sha}\r\n"
        file = commit.files.get(path)
        if file is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", here)
        if not file.lfs:
            return self._file(request, file, file.oid, here)
        quoted = urllib.parse.quote(f"repos/{repo.id}/{commit.sha}/{path}")
        url = f"{self._cdn_url}/{quoted}?Expires=4102444800&Signature={self._signature}"
        here += f'X-Linked-Size: {file.size}\r\nX-Linked-ETag: "{file.sha256}"\r\nETag: "{file.oid}"\r\n'
        here += f"Accept-Ranges: bytes\r\nLocation: {url}\r\n"
        return bytes_answer(request, 302, f"Found. Redirecting to {url}".encode(), "text/plain", here)

    def _from_cdn(self, request: Request, parts: list[str]) -> Answer:
        """A file by a signed link; a store refuses one that comes with another claim to be let in."""
        if "authorization" in request.headers:
            raise StoreError(400, "InvalidArgument", "Only one auth mechanism allowed")
        if parse_target(request.target)[1].get("Signature") != str(self._signature):
            raise StoreError(403, "AccessDenied", "Request has expired")
        # The name has one part or two, the commit's id one, the path any number.
        count = 2 if "/".join(parts[1:3]) in self._repos else 1
        repo_id, rest = "/".join(parts[1 : 1 + count]), parts[1 + count :]
        repo = self._repos.get(repo_id)
        commit = repo.find(rest[0]) if repo is not None and rest else None
        file = commit.files.get("/".join(rest[1:])) if commit is not None else None
        if file is None:
            raise StoreError(404, "NoSuchKey", "The specified key does not exist.")
        return self._file(request, file, file.sha256, "")

    def _file(self, request: Request, file: HubFile, etag: str, more: str) -> Answer:
        if request.method not in ("GET", "HEAD"):
            raise StoreError(501, "NotImplemented", f"This hub is read-only; {request.method} is not known")
        stored = self._buckets.open(BLOBS, file.sha256)
        stored.etag = f'"{etag}"'
        return file_answer(request, stored, more=more)

    # -- who asks

    def _token(self, request: Request) -> str | None:
        """The token that came along, if any.

        Raises:
            Refusal: 401, nobody has that token.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        if not any(token in repo.tokens for repo in self._repos.values()):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return token

    def _readable(self, request: Request, repo_id: str, *, contents: bool) -> Repo:
        """The repository, if whoever asks may see it, or read its files.

        Raises:
            Refusal: as the Hub words it for those who may not know whether it exists, and for those who do.
        """
        token = self._token(request)
        repo = self._repos.get(repo_id)
        if repo is None or (repo.private and token not in repo.tokens):
            if token is None:
                raise Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if repo.disabled:
            raise Refusal(403, "", "Access to this resource is disabled.")
        if contents and repo.gated and token not in repo.tokens:
            message = f"Access to dataset {repo.id} is restricted. You must have access to it and be authenticated."
            raise Refusal(401 if token is None else 403, "GatedRepo", message)
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


def split_repo(parts: list[str]) -> tuple[str, list[str]]:
    """The repository's name, of one part or two, and what follows it."""
    count = 1 if len(parts) == 1 or parts[1] in VERBS else 2
    return "/".join(parts[:count]), parts[count:]


def split_revision(parts: list[str] | tuple[str, ...]) -> tuple[str, str]:
    """Revision and path; a ref such as refs/convert/parquet may come in three parts instead of one."""
    count = 3 if parts and parts[0] == "refs" else 1
    return "/".join(parts[:count]) or MAIN, posixpath.join("", *parts[count:])


def paths_asked(request: Request) -> tuple[list[str], bool]:
    """The paths that a request's body names, as a form or as JSON, and whether their commits are wanted.

    Raises:
        Refusal: 400, it does not.
    """
    try:
        if "json" in request.headers.get("content-type", ""):
            values = json.loads(request.body)
            return [str(path) for path in values["paths"]], bool(values.get("expand"))
        form = urllib.parse.parse_qs(request.body.decode())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refusal(400, "", "Send paths and expand, as a form or as JSON") from None
    return form.get("paths", []), _is_true(form.get("expand", [""])[0])


def kind_of(path: str) -> str:
    """What a request is about: "info", "tree", "paths", "resolve", "cdn" or "other"."""
    if path.startswith("/repos/"):
        return "cdn"
    if path.startswith("/datasets/"):
        return "resolve"
    if not path.startswith("/api/datasets/"):
        return "other"
    rest = split_repo(path.removeprefix("/api/datasets/").split("/"))[1]
    return {"tree": "tree", "paths-info": "paths", "refs": "other"}.get(rest[0] if rest else "", "info")


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1")
