"""Which storage a URL means, and what its client is told: pure mappings of names.

``storage_options`` come in two dialects: that of LitData (boto3's, GCS's and Azure's own names) and
that of the fsspec filesystem. Both end up as the latter here. Nothing is dropped in silence: what is
not known passes through to the filesystem, which refuses what it does not take.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from lazystore.errors import ConfigError, MissingExtraError

__all__ = ["check_extra", "fsspec_options", "is_local", "local_path", "protocol_of", "redact"]

#: Protocols by the family whose option names they share.
S3 = frozenset({"s3", "s3a"})
GCS = frozenset({"gs", "gcs"})
AZURE = frozenset({"az", "azure", "abfs", "abfss", "adl"})
HTTP = frozenset({"http", "https"})
_URL = re.compile(r"\bhttps?://[^\s'\"<>]+", re.IGNORECASE)
_QUERY = re.compile(r"\?[\w.~%+-]+=[^\s'\"<>)]*")

_LOCAL = frozenset({"", "file", "local"})

#: The extra of this package that brings the filesystem, and the package behind it.
_EXTRAS = {
    **dict.fromkeys(S3, ("s3", "s3fs")),
    **dict.fromkeys(GCS, ("gcs", "gcsfs")),
    **dict.fromkeys(AZURE, ("azure", "adlfs")),
    **dict.fromkeys(HTTP, ("http", "aiohttp")),
}

#: boto3's client arguments and what s3fs calls them.
_S3_NAMES = {
    "aws_access_key_id": "key",
    "aws_secret_access_key": "secret",
    "aws_session_token": "token",
    "profile_name": "profile",
}
#: boto3's client arguments that s3fs hands on through client_kwargs.
_S3_CLIENT_NAMES = frozenset({"region_name", "verify", "api_version"})


def protocol_of(url: str) -> str:
    """The outermost protocol of a URL in lower case, "" for a plain path.

    ``local:path`` is LitData's way to write a local path; a single letter is a Windows drive.
    """
    head, chained, _ = url.partition("::")
    if chained and "/" not in head:
        return head.lower()
    protocol, separator, _ = url.partition("://")
    if separator and "/" not in protocol and len(protocol) > 1:
        return protocol.lower()
    if url.startswith(("local:", "file:")):
        return url.partition(":")[0]
    return ""


def is_local(url: str | os.PathLike[str]) -> bool:
    """Whether this is a path on this machine."""
    return protocol_of(os.fspath(url)) in _LOCAL


def local_path(url: str | os.PathLike[str]) -> str:
    """The plain path behind a local URL, ``~`` expanded."""
    text = os.fspath(url)
    protocol = protocol_of(text)
    if protocol:
        text = text[len(protocol) + 1 :].removeprefix("//")
        if protocol == "file" and text.startswith("localhost/"):
            text = text.removeprefix("localhost")
    return os.path.expanduser(text)


def redact(url: str) -> str:
    """A URL fit for messages: without its password and its query, where signatures are."""
    if "://" not in url or not (("@" in url) or ("?" in url)):
        return url
    parts = urlsplit(url)
    if parts.scheme.lower() not in HTTP:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def redacted(text: str) -> str:
    """A text of somebody else's with every URL in it fit for messages; signatures are in queries."""
    return _QUERY.sub("", _URL.sub(lambda found: redact(found.group()), text))


def check_extra(protocol: str, error: ImportError) -> MissingExtraError:
    """The error to raise where a filesystem's package could not be imported."""
    extra, package = _EXTRAS.get(protocol, ("", "the package that brings this filesystem"))
    if extra:
        return MissingExtraError(f"{protocol}:// needs {package}: pip install lazystore[{extra}] ({error})")
    return MissingExtraError(f"{protocol}:// needs {package}: {error}")


def fsspec_options(protocol: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """``storage_options`` as the fsspec filesystem of this protocol takes them.

    S3 (boto3 -> s3fs): ``aws_access_key_id``, ``aws_secret_access_key``, ``aws_session_token`` ->
    ``key``, ``secret``, ``token``; ``region_name``, ``verify``, ``api_version`` -> ``client_kwargs``;
    ``profile_name`` -> ``profile``; ``config`` (a botocore Config or a dict) -> ``config_kwargs``,
    with ``signature_version=UNSIGNED`` becoming ``anon=True``. GCS (``token``, ``project``) and Azure
    (``account_name``, ``account_key``) already have the filesystem's names. All others pass unchanged.

    Raises:
        ConfigError: not a mapping, or one setting given twice under two names.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"storage_options={options!r} must be a mapping of names to values")
    if protocol not in S3:
        return dict(options)
    mapped: dict[str, Any] = {}
    client: dict[str, Any] = dict(options.get("client_kwargs") or {})
    config: dict[str, Any] = dict(options.get("config_kwargs") or {})
    for name, value in options.items():
        if name in ("client_kwargs", "config_kwargs"):
            continue
        if name == "config":
            _put_all(config, _config_values(value), "config")
        elif name in _S3_CLIENT_NAMES:
            _put_all(client, {name: value}, name)
        else:
            _put_all(mapped, {_S3_NAMES.get(name, name): value}, name)
    if _is_unsigned(config.get("signature_version")):
        del config["signature_version"]
        _put_all(mapped, {"anon": True}, "config")
    if client:
        mapped["client_kwargs"] = client
    if config:
        mapped["config_kwargs"] = config
    return mapped


def _put_all(target: dict[str, Any], values: Mapping[str, Any], origin: str) -> None:
    for name, value in values.items():
        if name in target and target[name] != value:
            raise ConfigError(
                f"storage_options set {name!r} twice, as {target[name]!r} and, by {origin!r}, as {value!r}: "
                "leave one out"
            )
        target[name] = value


def _config_values(config: Any) -> dict[str, Any]:
    """What a user set in a botocore Config (or wrote as a dict)."""
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return dict(config)
    given = getattr(config, "_user_provided_options", None)
    if not isinstance(given, Mapping):
        raise ConfigError(f"storage_options['config']={config!r} must be a botocore.config.Config or a dict")
    return dict(given)


def _is_unsigned(signature: Any) -> bool:
    # botocore.UNSIGNED is the only instance of a class of this name; so botocore need not be imported.
    return type(signature).__name__ == "UNSIGNED" or signature == "UNSIGNED"
