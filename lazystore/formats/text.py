"""Text as datasets: JSON lines, delimited records (RFC 4180), plain lines; compressed or not, one file or many.

A text is read from its beginning at once. To find item i it takes an index of where items begin, which one pass
makes and a sidecar keeps (``text_index.py``). This module decides what the options mean, and puts the parts together.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lazystore._core.decode import DecodePlan
from lazystore._core.fields import RecordReader, has_long_number, line_bytes, line_text, record_bytes
from lazystore.errors import ConfigError, FormatError, UnsupportedError
from lazystore.fetch.segments import SegmentedSource
from lazystore.formats.format import BlockNames, Files, Format, Opened, Options, Place, Unindexed
from lazystore.formats.text_chunks import TextChunks
from lazystore.formats.text_images import TextImages
from lazystore.formats.text_index import TextIndex, index_path, load_index
from lazystore.formats.text_inflate import CODECS
from lazystore.formats.text_pass import Text, TextPass
from lazystore.formats.text_scan import TextRules, header_names

__all__ = ["CsvFormat", "JsonlFormat", "LinesFormat", "TextFormat", "TsvFormat", "json_reader"]

Reader = Callable[[bytes], Any]


class TextFormat(Format):
    """What text formats have in common.

    ``format_options``:
        index: where the index is kept: "beside" (in the file's own folder, local files only), or a path; without it
            in the user's cache folder.
    """

    #: Options besides ``index``.
    known: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def rules(self, extra: Mapping[str, Any]) -> TextRules:
        """What an item is, as far as the options say."""

    @abstractmethod
    def reader(self, names: tuple[str, ...], rules: TextRules) -> Reader:
        """How an item's bytes become an object."""

    def raw(self) -> Reader:
        """How an item's bytes become the bytes without a terminator."""
        return line_bytes

    def open(self, place: Place, options: Options) -> Opened | Unindexed:
        """Open text files as one dataset, in the order in which the place names them.

        Returns:
            Unindexed, where one of the files has no index.

        Raises:
            ConfigError: an option that text does not have; compressed and plain files side by side.
        """
        extra = options.extra
        self._check(options)
        rules = self.rules(extra)
        codecs = {name: next((CODECS[end] for end in CODECS if name.lower().endswith(end)), "") for name in place.names}
        if "" in codecs.values() and any(codecs.values()):
            raise UnsupportedError("compressed and plain files side by side: name those of one kind with a pattern")
        source, choice = place.source, extra.get("index", "")
        source.run([], stat=list(codecs), timeout=place.timeout)  # all identities at once
        texts = []
        for name, codec in codecs.items():
            of_file = replace(rules, codec=codec)
            path = index_path(
                source.url, name, of_file.signature, choice=choice, local=source.local, alone=len(codecs) == 1
            )
            texts.append(Text(name, of_file, source.identity(name, timeout=place.timeout), path))
        names = tuple(extra["header"]) if "header" in extra and extra["header"] is not True else None
        text_pass = TextPass(place, texts, lambda head: self._plan(head, names, rules, options), self._opened)
        found = [load_index(text.path, text.identity, text.rules.signature) for text in texts]
        indexes = [index for index in found if index is not None]
        return text_pass.open(indexes) if len(indexes) == len(texts) else text_pass

    def _check(self, options: Options) -> None:
        unknown = set(options.extra) - {"index", *self.known}
        if unknown:
            raise ConfigError(
                f"format_options={sorted(unknown)} are none of {self.name!r}'s ({', '.join(('index', *self.known))})"
            )
        choice = options.extra.get("index", "")
        if not isinstance(choice, str) or (not choice and "index" in options.extra):
            raise ConfigError(f"format_options index={choice!r} is neither 'beside' nor a path")
        options.refuse_all_but("raw", format=self.name)

    def _plan(
        self, head: bytes, names: tuple[str, ...] | None, rules: TextRules, options: Options
    ) -> tuple[DecodePlan, tuple[str, ...]]:
        """How items become objects, and the fields' names, when the header is known."""
        if names is None:
            names = header_names(head, rules) if rules.header else ()
        read = self.raw() if options.raw else self.reader(names, rules)
        return DecodePlan([("call", read)], [("leaf",)], names=[self.name], headless=True), names

    def _opened(
        self, place: Place, texts: list[Text], indexes: list[TextIndex], plan: DecodePlan, names: tuple[str, ...]
    ) -> Opened:
        counts = array("Q", (n for index in indexes for n in index.counts))
        about: dict[str, Any] = {
            "files": len(texts),
            "stored_bytes": sum(index.stored for index in indexes),
            "text_bytes": sum(sum(index.sizes) for index in indexes),
            "compression": texts[0].rules.codec or None,
            "index": [str(index.path) for index in indexes],
        }
        if names:
            about["columns"] = list(names)
        version = "-".join(dict.fromkeys(index.digest for index in indexes)) if len(indexes) < 4 else _fold(indexes)
        if texts[0].rules.codec:
            images = TextImages(
                [(text.name, index, text.rules) for text, index in zip(texts, indexes, strict=True)],
                local=place.source.local,
            )
            files = Files(
                names=[text.name for text in texts],
                counts=array("Q", (sum(index.counts) for index in indexes)),
                hints=array("Q", (index.stored for index in indexes)),
                blocks=images.runs,
            )
            return Opened(
                self.name, place.source, BlockNames(files), counts, images.hints(), plan,
                images=images, files=files, version=version, about=about,
            )  # fmt: skip
        chunks = TextChunks([(text.name, index) for text, index in zip(texts, indexes, strict=True)])
        hints = array("Q", (s + 4 * (n + 2) for i in indexes for s, n in zip(i.sizes, i.counts, strict=True)))
        source = SegmentedSource(place.source, chunks, chunks.sidecars)
        return Opened(
            self.name, source, chunks.names, counts, hints, plan,
            exact=True, tables_near=True, version=version, about=about,
        )  # fmt: skip


def _fold(indexes: list[TextIndex]) -> str:
    """One digest of many."""
    import hashlib

    return hashlib.sha256("".join(index.digest for index in indexes).encode()).hexdigest()[:16]


class JsonlFormat(TextFormat):
    """One JSON value a line; empty lines, and those of spaces and tabs, are none. ``raw=True``: the line's bytes.

    Parsed by orjson where it is installed, and by ``json`` what orjson refuses or would round: ``NaN``, lone
    surrogates, integers beyond 64 bits. So values do not depend on what is installed.
    """

    name = "jsonl"
    suffixes = tuple(end + codec for end in (".jsonl", ".ndjson", ".jsonlines") for codec in ("", *CODECS))

    def rules(self, extra: Mapping[str, Any]) -> TextRules:
        return TextRules("jsonl")

    def reader(self, names: tuple[str, ...], rules: TextRules) -> Reader:
        return json_reader()


class LinesFormat(TextFormat):
    """Every line is a str, without its LF or CR LF; empty ones as well. ``raw=True``: as bytes."""

    name = "lines"
    suffixes = tuple(end + codec for end in (".txt", ".lines") for codec in ("", *CODECS))

    def rules(self, extra: Mapping[str, Any]) -> TextRules:
        return TextRules("lines")

    def reader(self, names: tuple[str, ...], rules: TextRules) -> Reader:
        return line_text


class CsvFormat(TextFormat):
    """Records as dicts of str, by the names in the header; quotes may enclose delimiters, line ends and doubled quotes.

    ``format_options``, besides ``index``:
        header: True, the first record names the fields; or a list of names, and the first record is data.
        delimiter: one character, "," by default (a tab for "tsv").
        quotechar: one character; "" where quotes mean nothing.

    A record with more or fewer fields than names is a FormatError. ``raw=True``: the record's bytes.
    """

    name = "csv"
    suffixes = tuple(".csv" + codec for codec in ("", *CODECS))
    known = ("header", "delimiter", "quotechar")
    delimiter: ClassVar[str] = ","

    def rules(self, extra: Mapping[str, Any]) -> TextRules:
        header = extra.get("header", True)
        if header is not True:
            if isinstance(header, str) or not all(isinstance(name, str) for name in header or [None]):
                raise ConfigError(f"format_options header={header!r} is neither True nor a list of names")
            if len(set(header)) != len(header):
                raise ConfigError(f"format_options header={header!r} has a name twice")
        delimiter = _byte(extra, "delimiter", self.delimiter)
        quote = _byte(extra, "quotechar", '"') if extra.get("quotechar", '"') != "" else b""
        if delimiter == quote:
            raise ConfigError(f"format_options delimiter and quotechar are both {delimiter!r}")
        return TextRules("fields", delimiter, quote, header is True)

    def reader(self, names: tuple[str, ...], rules: TextRules) -> Reader:
        return RecordReader(names, delimiter=rules.delimiter, quote=rules.quote)

    def raw(self) -> Reader:
        return record_bytes


class TsvFormat(CsvFormat):
    """The same with tabs."""

    name = "tsv"
    suffixes = tuple(".tsv" + codec for codec in ("", *CODECS))
    delimiter = "\t"


def _byte(extra: Mapping[str, Any], name: str, default: str) -> bytes:
    value = extra.get(name, default)
    if not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in "\r\n":
        raise ConfigError(f"format_options {name}={value!r} is not one ASCII character other than a line's end")
    return value.encode()


def json_reader() -> Reader:
    """A function of a JSON text's bytes; FormatError for what is none.

    Cost: orjson's own and 0.1 us, where it is installed.
    """
    try:
        from orjson import JSONDecodeError, loads
    except ImportError:
        return _read_json

    def read(data: bytes) -> Any:
        if has_long_number(data):
            return _read_json(data)
        try:
            return loads(data)
        except JSONDecodeError:
            return _read_json(data)

    return read


def _read_json(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise FormatError(f"the line is not UTF-8 ({error})") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the line is not JSON ({error})") from None
