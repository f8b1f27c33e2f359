"""The documents an object store answers with: S3's XML for listings and errors, HTML for folders.

Pages are cut here (prefix, delimiter, continuation); which keys there are is the buckets' business.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import html
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from lazystore.testing.buckets import Buckets, Entry, StoreError

__all__ = ["Page", "error_xml", "folder_html", "list_buckets_xml", "list_objects_xml", "list_page"]

MAX_KEYS = 1000

_HEADER = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


@dataclass(slots=True)
class Page:
    """One page of a listing: keys, common prefixes, and where the next page starts ("" for the last)."""

    contents: list[Entry] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    next_after: str = ""

    def __len__(self) -> int:
        return len(self.contents) + len(self.prefixes)


def list_page(buckets: Buckets, bucket: str, query: Mapping[str, str]) -> Page:
    """The page of ListObjectsV2 that ``query`` asks for.

    Raises:
        StoreError: no such bucket, or a parameter that S3 would refuse.
    """
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    limit = _max_keys(query.get("max-keys", str(MAX_KEYS)))
    token = query.get("continuation-token", "")
    after = _untoken(token) if token else query.get("start-after", "")
    page = Page()
    last = ""
    for entry in buckets.keys(bucket, prefix=prefix, after=after, shallow=delimiter == "/"):
        name = entry.key
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        if cut >= 0:
            name = name[: cut + len(delimiter)]
            if name == last or after.startswith(name):
                continue  # this common prefix is on this page already, or was on an earlier one
        if len(page) >= limit:
            page.next_after = last
            break
        if cut >= 0:
            page.prefixes.append(name)
        else:
            page.contents.append(entry)
        last = name
    return page


def _max_keys(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise StoreError(400, "InvalidArgument", "max-keys is not a number")
    return min(int(text), MAX_KEYS)


def _token(after: str) -> str:
    return base64.urlsafe_b64encode(after.encode()).decode()


def _untoken(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise StoreError(400, "InvalidArgument", "The continuation token provided is incorrect") from None


def list_objects_xml(bucket: str, query: Mapping[str, str], page: Page) -> bytes:
    """ListObjectsV2's answer."""
    encoded = query.get("encoding-type") == "url"

    def text(value: str) -> str:
        return urllib.parse.quote(value, safe="/~-._") if encoded else escape(value)

    parts = [_HEADER, f"<ListBucketResult {_NAMESPACE}><Name>{escape(bucket)}</Name>"]
    parts.append(f"<Prefix>{text(query.get('prefix', ''))}</Prefix>")
    for name, tag in (("delimiter", "Delimiter"), ("start-after", "StartAfter")):
        if query.get(name):
            parts.append(f"<{tag}>{text(query[name])}</{tag}>")
    if query.get("continuation-token"):
        parts.append(f"<ContinuationToken>{escape(query['continuation-token'])}</ContinuationToken>")
    if encoded:
        parts.append("<EncodingType>url</EncodingType>")
    parts.append(f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{query.get('max-keys', MAX_KEYS)}</MaxKeys>")
    parts.append(f"<IsTruncated>{'true' if page.next_after else 'false'}</IsTruncated>")
    if page.next_after:
        parts.append(f"<NextContinuationToken>{_token(page.next_after)}</NextContinuationToken>")
    for entry in page.contents:
        parts.append(
            f"<Contents><Key>{text(entry.key)}</Key><LastModified>{_timestamp(entry.mtime_ns)}</LastModified>"
            f"<ETag>{escape(entry.etag)}</ETag><Size>{entry.size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    for prefix in page.prefixes:
        parts.append(f"<CommonPrefixes><Prefix>{text(prefix)}</Prefix></CommonPrefixes>")
    parts.append("</ListBucketResult>")
    return "".join(parts).encode()


def _timestamp(mtime_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(mtime_ns // 10**9, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{mtime_ns // 10**6 % 1000:03d}Z"


def list_buckets_xml(names: Iterable[str]) -> bytes:
    """ListBuckets' answer."""
    buckets = "".join(
        f"<Bucket><Name>{escape(name)}</Name><CreationDate>1970-01-01T00:00:00.000Z</CreationDate></Bucket>"
        for name in names
    )
    owner = "<Owner><ID>lazystore</ID><DisplayName>lazystore</DisplayName></Owner>"
    return (
        f"{_HEADER}<ListAllMyBucketsResult {_NAMESPACE}>{owner}<Buckets>{buckets}</Buckets></ListAllMyBucketsResult>"
    ).encode()


def error_xml(error: StoreError, resource: str) -> bytes:
    """S3's answer to what went wrong."""
    return (
        f"{_HEADER}<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
        f"<Resource>{escape(resource)}</Resource><RequestId>0</RequestId></Error>"
    ).encode()


def folder_html(bucket: str, folder: str, entries: Iterable[Entry]) -> bytes:
    """Links to what lies in a folder, for HTTP clients that list by links (fsspec's for one)."""
    links = [
        f'<li><a href="/{html.escape(urllib.parse.quote(f"{bucket}/{entry.key}"))}">'
        f"{html.escape(entry.key[len(folder) :])}</a></li>\n"
        for entry in entries
    ]
    title = html.escape(f"{bucket}/{folder}")
    return f"<!doctype html><title>{title}</title><ul>\n{''.join(links)}</ul>\n".encode()
