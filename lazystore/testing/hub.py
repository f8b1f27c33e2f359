"""A local hub of dataset repositories in a process of its own: the handle, and the program that is the server.

    with LocalHub(latency_ms=20) as hub:
        hub.add("org/name", {"README.md": b"...", "data/train-0000.parquet": Path("train.parquet")})
        subprocess.run([...], env=os.environ | hub.environment("/tmp/hf-home"))

Speaks what `datasets` and `huggingface_hub` ask of the Hugging Face Hub to read datasets, on 127.0.0.1
only. What it answers is in ``hub_api.py``, how the process is run in ``server_process.py``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lazystore.config import parse_bytes
from lazystore.errors import ConfigError, LazyStoreError, MissingExtraError
from lazystore.testing.faults import Faults
from lazystore.testing.hub_repos import MAIN, commit_of, store_file
from lazystore.testing.server_process import UNSET, ServerProcess, Unset

__all__ = ["LocalHub", "main"]

DEFAULT_LOG = 4096
CARD = "README.md"
REPO_NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")

#: Names of files that the Hub keeps beside git unless told otherwise (its default .gitattributes).
LFS_ENDINGS = (
    ".arrow", ".bin", ".bz2", ".flac", ".gz", ".jpeg", ".jpg", ".mp3", ".npy", ".npz", ".ogg", ".parquet",
    ".png", ".tar", ".wav", ".webp", ".zip", ".zst",
)  # fmt: skip


class LocalHub(ServerProcess):
    """A local hub; a context manager.

    Args:
        latency_ms: milliseconds from the arrival of a request to the first byte of its answer, for each
            request on its own, those at the CDN too.
        bandwidth: bytes per second over all connections together, as an int or "200MB"; None: unlimited.
        port: TCP port of :attr:`endpoint`; 0 takes a free one.
        log: how many of the latest requests :meth:`traffic` returns.
        start_timeout: seconds to wait for the process to answer.

    Raises (from :meth:`start`, which ``with`` calls):
        ConfigError: an argument that cannot work.
        LazyStoreError: the process did not come up.

    The server ends with :meth:`close`, and by itself when this process goes away. Its copies of the
    files lie in a temporary folder that it removes when it ends. Methods may be called from any thread
    once started. A forked child may use it, and its ``close()`` leaves the server alone. Not to be
    pickled: hand :attr:`endpoint` to other processes. Starting costs about 0.2 s.
    """

    def __init__(
        self,
        *,
        latency_ms: float = 0.0,
        bandwidth: int | str | None = None,
        port: int = 0,
        log: int = DEFAULT_LOG,
        start_timeout: float = 20.0,
    ) -> None:
        arguments = ["--latency-ms", repr(float(latency_ms)), "--port", str(port), "--log", str(log)]
        if bandwidth is not None:
            arguments += ["--bandwidth", str(parse_bytes(bandwidth, name="bandwidth"))]
        super().__init__("lazystore.testing.hub", arguments, noun="local hub", start_timeout=start_timeout)

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``: what ``HF_ENDPOINT`` is to be."""
        return str(self._places["endpoint"])

    @property
    def cdn(self) -> str:
        """``http://127.0.0.1:PORT`` of the server that large files are redirected to."""
        return str(self._places["cdn"])

    @property
    def control(self) -> str:
        """``http://127.0.0.1:PORT``: where ``/-/stats`` and ``/-/reset`` count what all clients ask for."""
        return str(self._places["control"])

    @property
    def _places(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._announced())
        return found

    def _ask(self, method: str, verb: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._control(self.control, method, verb, values)

    def environment(self, home: str | os.PathLike[str]) -> dict[str, str]:
        """Variables under which `datasets` and `huggingface_hub` read from here and nowhere else.

        They must be set before either is imported. A token in the surroundings (``HF_TOKEN``) is not
        taken away: this hub refuses tokens it does not know, as the real one does.

        Args:
            home: their folder for caches and tokens (``HF_HOME``).
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": os.fspath(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    # -- repositories

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes | str | os.PathLike[str]],
        *,
        revision: str = MAIN,
        gated: bool | str = False,
        private: bool = False,
        disabled: bool = False,
        token: str | Sequence[str] | None = None,
        redirect: bool | Sequence[str] = True,
    ) -> str:
        """Commit these files, and no others, to a branch of a repository; both are made where absent.

        Args:
            repo: "org/name".
            files: content by path: bytes, or the file to copy it from. The metadata at the head of
                ``README.md`` becomes the repository's card.
            revision: the branch, or another ref such as "refs/convert/parquet".
            gated: listed to all, but read with ``token`` only (True is "auto").
            private: not there for anybody without ``token``.
            disabled: refused to everybody.
            token: the token, or tokens, that may read; tokens named nowhere are refused as invalid.
            redirect: which files are redirected to the CDN: those that the Hub's default .gitattributes
                names, none, or those with these endings.

        Returns:
            The commit's id: the same for the same files in every run.

        Raises:
            ConfigError: a name that no repository could have, or a path that none could hold.
            MissingExtraError: the card has metadata and PyYAML is missing.
            OSError: a file cannot be read.
        """
        if not REPO_NAME.fullmatch(repo):
            raise ConfigError(f"{repo!r} cannot be a repository's name; take one such as 'org/name'")
        endings = (LFS_ENDINGS if redirect else ()) if isinstance(redirect, bool) else tuple(redirect)
        folder = Path(self._places["folder"])
        stored = [store_file(path, files[path], folder, lfs=path.lower().endswith(endings)) for path in sorted(files)]
        commit = commit_of(repo, stored)
        card = (
            (folder / next(file.sha256 for file in stored if file.path == CARD)).read_text("utf-8")
            if CARD in files
            else ""
        )
        tokens = [token] if isinstance(token, str) else list(token or ())
        manifest = {
            "repo": repo,
            "revision": revision,
            "commit": commit,
            "card": card_data(card),
            "gated": gated,
            "private": private,
            "disabled": disabled,
            "tokens": tokens,
            "files": [asdict(file) for file in stored],
        }
        # By a file: the names of ten thousand files are more than a request may hold.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as listed:
            json.dump(manifest, listed)
        self._ask("POST", "add", {"manifest": os.path.basename(listed.name)})
        return commit

    def remove(self, repo: str) -> None:
        """Forget a repository.

        Raises:
            ConfigError: there is none of that name.
        """
        self._ask("POST", "remove", {"repo": repo})

    def expire_links(self) -> None:
        """Links to the CDN that were given out so far are refused (403) from now on."""
        self._ask("POST", "expire")

    # -- what goes wrong, and what went over the wire

    def set(
        self,
        *,
        latency_ms: float | Unset = UNSET,
        bandwidth: int | str | Unset | None = UNSET,
        faults: Faults | Unset | None = UNSET,
        down: bool = False,
        fail_after_requests: int | None = None,
        fail_after_bytes: int | None = None,
        busy: int = 0,
        retry_after: int = 0,
        page_size: int = 1000,
    ) -> None:
        """Change latency, bandwidth and faults where given; the rest is set anew by every call.

        Args:
            faults: patterns in ``only`` see paths such as "api/datasets/org/name/tree/main",
                "datasets/org/name/resolve/main/README.md" and, at the CDN, "repos/org/name/COMMIT/data.parquet".
            down: connections are dropped, and new ones refused until a call without it.
            fail_after_requests: so many more requests are answered, then the hub is down.
            fail_after_bytes: so many more bytes of bodies leave, then the hub is down.
            busy: the next so many requests are answered 429.
            retry_after: seconds in the Retry-After header of those.
            page_size: entries on a page of a listing, at most 1000.

        Raises:
            ConfigError: a value that cannot work.
        """
        for name, value in (("fail_after_requests", fail_after_requests), ("fail_after_bytes", fail_after_bytes)):
            if value is not None and value < 0:
                raise ConfigError(f"{name}={value} must not be negative")
        changes: dict[str, Any] = {}
        if not isinstance(latency_ms, Unset):
            changes["latency_ms"] = latency_ms
        if not isinstance(bandwidth, Unset):
            changes["bandwidth"] = None if bandwidth is None else parse_bytes(bandwidth, name="bandwidth")
        if not isinstance(faults, Unset):
            changes["faults"] = None if faults is None else faults.to_dict()
        if changes:
            self._ask("POST", "configure", changes)
        weather = {"down": down, "requests": fail_after_requests, "bytes": fail_after_bytes}
        self._ask("POST", "weather", weather | {"busy": busy, "retry_after": retry_after, "page": page_size})

    def calm(self) -> None:
        """Everything as it was at the start, counters at zero; repositories stay."""
        self._ask("POST", "calm")

    def traffic(self) -> dict[str, Any]:
        """Counters since the start or the last :meth:`reset`.

        Keys: ``requests`` and ``bytes`` (of bodies), ``kinds`` (requests by what they are about: info, tree,
        paths, resolve, cdn, other), ``statuses``, ``faults``, ``connections``, ``log`` (the latest
        requests, as :meth:`ObjectStore.stats <lazystore.testing.ObjectStore.stats>` has them).
        ``lazystore.testing.dependent_waves(log)`` counts round trips.
        """
        found = self._ask("GET", "stats")
        kept = ("kinds", "statuses", "faults", "connections", "log")
        counts = {"requests": sum(found["requests"].values()), "bytes": found["bytes_sent"]}
        return counts | {name: found[name] for name in kept}

    def reset(self) -> None:
        """Set all counters to zero, forget the log and start the fault plan from its beginning."""
        self._ask("POST", "reset")

    def __repr__(self) -> str:
        return f"<LocalHub {self.endpoint if self._line else 'not running'}>"


def card_data(text: str) -> dict[str, Any] | None:
    """The metadata between the "---" lines at the head of a card; None where there is none.

    Raises:
        MissingExtraError: there is, and PyYAML is missing.
    """
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in (line.rstrip() for line in lines[1:]):
        return None
    stop = next(i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---")
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise MissingExtraError('reading a dataset card needs PyYAML: pip install "lazystore[hf]"') from None
    found: dict[str, Any] | None = json.loads(json.dumps(yaml.safe_load("\n".join(lines[1:stop])), default=str))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lazystore.testing.hub", description="A local hub, for tests.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (0: any free one)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="milliseconds before each answer")
    parser.add_argument("--bandwidth", default=None, help="bytes per second in all, e.g. 200MB")
    parser.add_argument("--log", type=int, default=DEFAULT_LOG, help="requests kept for the counters")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server in this process until it is interrupted or its parent goes away."""
    from lazystore.testing.hub_api import HubService
    from lazystore.testing.service import Settings, serve

    options = _parser().parse_args(argv)
    try:
        settings = Settings.from_dict({"latency_ms": options.latency_ms, "bandwidth": options.bandwidth})
        with tempfile.TemporaryDirectory(prefix="lazystore-hub-") as folder:
            serve(HubService(folder, settings, log=options.log), options.port)
    except (LazyStoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
