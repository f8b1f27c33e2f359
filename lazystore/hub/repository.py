"""`Repository`: what a hub says of a dataset repository, by one question: its commit, files with sizes, card.

Which of the files make a split is ``data_files.py``'s business; their bytes come through ``lazystore.fetch``. The hub
is asked with the standard library alone, so that nothing need be imported that costs more than the answer.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from lazystore.cache.retries import Retries
from lazystore.errors import (
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    HubAccessError,
    LazyStoreError,
)

if TYPE_CHECKING:
    from http.client import HTTPResponse

__all__ = ["Repository", "access_error", "hub_endpoint", "hub_headers", "hub_token", "read_file", "read_repository"]

#: Seconds one attempt may be silent.
PATIENCE_S = 10.0
#: Attempts in all, and where nobody listens.
ATTEMPTS = 8
BRIEF_ATTEMPTS = 4
#: An answer about a repository of 50,000 files has some 20 MB.
MAX_ANSWER = 256 << 20
#: Bytes of an answer that are taken at once.
PIECE = 64 << 10
#: The hub's list of files may be cut at about so many (huggingface_hub asks for it page by page then).
MAX_FILES = 50_000
MAX_REDIRECTS = 5
TRUE = frozenset({"1", "ON", "YES", "TRUE"})
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repository:
    """A dataset repository at one commit.

    Attributes:
        name: as the hub has it ("org/name"), which may be another than what was asked for.
        sha: of the commit.
        url: below which its files are.
        files: sizes of all of them in bytes, by path.
        card: the metadata of its card.
        gated: files are only for those who asked for access.
        whole: the list of files is all of it.
    """

    name: str
    sha: str
    url: str
    files: Mapping[str, int] = field(repr=False)
    card: Mapping[str, Any] = field(repr=False)
    gated: bool = False
    whole: bool = True


def hub_endpoint() -> str:
    """Where the hub is, as ``HF_ENDPOINT`` says now; else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_token(token: str | bool | None) -> str | None:
    """The token to show: the one given; else, unless False, the one of the environment or of a login.

    Parameters:
        token: a token; True: there must be one; False: none; None: one if there is one.

    Raises:
        HubAccessError: there must be one, and there is none.
        ConfigError: no request could carry it. It is not shown.
    """
    if isinstance(token, str):
        return _clean(token)
    if token is False or (token is None and _is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return None
    found = (os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip()
    if not found and (_token_path().is_file() or "google.colab" in sys.modules or os.environ.get("HF_OIDC_RESOURCE")):
        # A login's token may have to be renewed, which only its own package can.
        try:
            from huggingface_hub import get_token
        except ImportError:
            found = _token_path().read_text().strip() if _token_path().is_file() else ""
        else:
            found = get_token() or ""
    if not found and token is True:
        raise HubAccessError("token=True, but there is none: set HF_TOKEN, or log in with: hf auth login")
    return _clean(found)


def _clean(token: str) -> str | None:
    """Without what files and shells leave around it."""
    token = token.strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError("the token has characters that no token has: give it as the hub shows it, like 'hf_...'")
    return token or None


def _token_path() -> Path:
    if told := os.environ.get("HF_TOKEN_PATH"):
        return Path(told).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "token"


def hub_headers(token: str | None) -> dict[str, str]:
    """Headers of requests to the hub."""
    headers = {"User-Agent": "lazystore"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def read_repository(name: str, *, revision: str | None, token: str | None, timeout: float) -> Repository:
    """Ask the hub about a dataset repository.

    Parameters:
        name: "org/name", or "name" of the hub's oldest ones.
        revision: a branch, tag or commit; None: the main branch.
        token: what :func:`hub_token` gave.
        timeout: seconds in all, retries included.

    Raises:
        ConfigError: no name of a repository.
        DatasetNotFoundError: there is no such repository or revision.
        HubAccessError: it is private, gated or disabled, or the token is wrong.
        FetchError: the hub does not answer, or something else; :class:`FetchTimeoutError` after ``timeout``.

    Cost: one request; more after redirects (of repositories that were renamed) and failures.
    """
    name = name.removeprefix("hf://").removeprefix("datasets/")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a dataset on the hub: it is like 'org/name'")
    if _is_true("HF_HUB_OFFLINE") or _is_true("TRANSFORMERS_OFFLINE"):
        raise FetchError(
            f"cannot ask the hub about {name}: HF_HUB_OFFLINE is set; unset it, or read what `datasets` has "
            "downloaded before with streaming=False"
        )
    url = f"{hub_endpoint()}/api/datasets/{name}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    answer = _ask(f"{url}?blobs=true", name, revision, hub_headers(token), timeout)
    try:
        return _repository(json.loads(answer), name)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FetchError(
            f"{url} answers with something that is no description of a repository: {error!r}; check HF_ENDPOINT"
        ) from error


def _repository(found: Any, name: str) -> Repository:
    if not isinstance(found, dict):
        raise TypeError(f"it is a {type(found).__name__}")
    siblings = found.get("siblings") or []
    files = {str(one["rfilename"]): -1 if one.get("size") is None else int(one["size"]) for one in siblings}
    real, sha = str(found.get("id") or name), str(found["sha"])
    if not _NAME.fullmatch(real) or not _COMMIT.fullmatch(sha):  # they become parts of addresses
        raise ValueError(f"id {real!r}, sha {sha!r}")
    card = found.get("cardData")
    return Repository(
        real, sha, f"{hub_endpoint()}/datasets/{real}/resolve/{sha}", files, card if isinstance(card, dict) else {},
        gated=bool(found.get("gated")), whole=len(files) < MAX_FILES,
    )  # fmt: skip


def read_file(repository: Repository, path: str, *, token: str | None, timeout: float) -> bytes:
    """All of a small file of a repository.

    Raises:
        DatasetNotFoundError, HubAccessError, FetchError: as :func:`read_repository`.
    """
    return _ask(f"{repository.url}/{quote(path)}", repository.name, repository.sha, hub_headers(token), timeout)


def access_error(name: str, *, token: bool, detail: str = "") -> HubAccessError:
    """Why a repository's files are refused, and what to do.

    Parameters:
        token: one was shown.
        detail: the hub's own words.
    """
    remedy = (
        f"the token does not give access: ask for it at {hub_endpoint()}/datasets/{name} with its account"
        if token
        else f"log in (hf auth login), or give token= or HF_TOKEN, of an account that has access ({hub_endpoint()}/"
        f"datasets/{name})"
    )
    return HubAccessError(f"the hub refuses access to {name}{f' ({detail})' if detail else ''}: {remedy}")


# -- asking -----------------------------------------------------------------------------------


def _ask(url: str, name: str, revision: str | None, headers: Mapping[str, str], timeout: float) -> bytes:
    retries, brief = Retries(attempts=ATTEMPTS, base_s=0.1), Retries(attempts=BRIEF_ATTEMPTS, base_s=0.1)
    began, attempt = time.monotonic(), 0
    while True:
        attempt += 1
        left = began + timeout - time.monotonic()
        try:
            status, answered, body = _get(url, headers, max(0.001, min(left, PATIENCE_S)), began + timeout)
        except OSError as error:
            cause: Exception = error
            nobody = not isinstance(error, (TimeoutError, ConnectionError)) or isinstance(error, ConnectionRefusedError)
            wait = (brief if nobody else retries).delay(attempt, error, left)
        else:
            if status == 200:
                return body
            cause = _refusal(status, answered, name, revision, "Authorization" in headers)
            if not (status in (408, 429) or status >= 500):
                raise cause
            wait = retries.delay(attempt, TimeoutError(), left)
            asked = answered.get("retry-after", "")
            if wait is not None and asked.isascii() and asked.isdigit():
                wait = float(asked) if float(asked) < left else None
        if wait is None:
            elapsed = time.monotonic() - began
            late = elapsed + PATIENCE_S >= timeout and isinstance(cause, TimeoutError)
            raise (FetchTimeoutError if late else FetchError)(
                f"cannot ask the hub about {name}: {cause} ({attempt} attempt{'s' if attempt > 1 else ''}, "
                f"{elapsed:.1f} s); check the network and HF_ENDPOINT ({hub_endpoint()})",
                url=url, attempts=attempt, elapsed=elapsed,
            ) from cause  # fmt: skip
        time.sleep(wait)


def _refusal(status: int, headers: Mapping[str, str], name: str, revision: str | None, token: bool) -> LazyStoreError:
    """What an answer without the description means."""
    code = headers.get("x-error-code", "")
    detail = headers.get("x-error-message", "") or f"HTTP {status}"
    if code == "RevisionNotFound":
        return DatasetNotFoundError(f"{name} has no revision {revision!r}: give a branch, tag or commit it has")
    if code in ("GatedRepo", "DisabledRepo") or (status in (401, 403) and (token or code != "RepoNotFound")):
        return access_error(name, token=token, detail=detail)
    if status in (401, 404):
        return DatasetNotFoundError(
            f"there is no dataset {name!r} on {hub_endpoint()}, or it is private: check its name"
            + ("" if token else ", or give a token= that may see it")
        )
    return FetchError(f"the hub answers {detail}" if detail.startswith("HTTP") else f"HTTP {status}: {detail}")


def _get(
    url: str, headers: Mapping[str, str], timeout: float, until: float = math.inf
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers with lower-case names, and body; redirects followed, the token shown to their origin only.

    Parameters:
        timeout: seconds without a byte; until: when all of it must be there (monotonic).

    Raises:
        OSError: no answer.
        FetchError: it leads to something that is no address of the web.
    """
    from http.client import HTTPException
    from urllib.error import URLError
    from urllib.request import HTTPErrorProcessor, Request, build_opener

    class Stay(HTTPErrorProcessor):
        """Redirects are followed below: urllib would show the token to anybody."""

        def http_response(self, request: Request, response: HTTPResponse) -> HTTPResponse:
            return response

        https_response = http_response

    opener = build_opener(Stay)
    shown = dict(headers)
    for _ in range(MAX_REDIRECTS):
        if urlsplit(url).scheme not in ("http", "https"):  # urllib would open local files, too
            raise FetchError(f"{url} is no address of the web; check HF_ENDPOINT ({hub_endpoint()})")
        try:
            answer: HTTPResponse = opener.open(Request(url, headers=shown), timeout=timeout)
        except URLError as error:
            raise error.reason if isinstance(error.reason, OSError) else ConnectionError(str(error.reason)) from error
        except HTTPException as error:
            raise ConnectionError(f"the hub's answer is cut: {error!r}") from error
        with answer:
            told = {name.lower(): value for name, value in answer.headers.items()}
            status = int(answer.status or 0)
            if status in (301, 302, 303, 307, 308) and told.get("location"):
                try:
                    further = urljoin(url, told["location"])
                except ValueError as error:
                    raise FetchError(f"{url} redirects to {told['location']!r}: {error}; check HF_ENDPOINT") from error
                if urlsplit(further)[:2] != urlsplit(url)[:2]:
                    shown.pop("Authorization", None)
                url = further
                continue
            try:
                body = _body(answer, told.get("content-length"), until)
            except (HTTPException, ValueError) as error:
                raise ConnectionError(f"the hub's answer is cut: {error!r}") from error
            return status, told, body
    raise ConnectionError(f"more than {MAX_REDIRECTS} redirects, the last one to {urlsplit(url).netloc}")


def _body(answer: Any, declared: str | None, until: float) -> bytes:
    """All of an answer, piece by piece: no more than is bearable, and no later.

    Raises:
        OSError: it is too long, too late, or cut.
    """
    length = None if declared is None else int(declared)
    pieces: list[bytes] = []
    got = 0
    while piece := answer.read1(PIECE):
        pieces.append(piece)
        got += len(piece)
        if got > MAX_ANSWER:
            raise ConnectionError(f"the hub answers with more than {MAX_ANSWER} bytes")
        if time.monotonic() > until:
            raise TimeoutError(f"the hub's answer has come to {got} bytes in all the time there was")
    if length is not None and got < length:
        raise ConnectionError(f"the hub's answer is cut: {got} of {length} bytes")
    return b"".join(pieces)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in TRUE
