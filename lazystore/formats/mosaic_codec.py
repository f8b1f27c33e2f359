"""Codecs of MosaicML's shards that are more than one stream of one kind.

Their objects are put together by a :class:`~lazystore.fetch.segments.SegmentedSource`: a few bytes that say what
follows, then what is stored. Here they become chunks in the classic layout.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from lazystore.errors import FormatError
from lazystore.fetch.segments import Segment, Span
from lazystore.formats.codecs import Inflater
from lazystore.formats.compression import ByteStream
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT
from lazystore.formats.mosaic_index import StoredFile
from lazystore.formats.stream_codecs import codec_for

__all__ = ["MixedCodec", "TextCodec"]

#: Bytes read ahead of a decoder that wants to look at a head.
PEEK_BYTES = 64
#: Offsets put right at a time.
STEP_BYTES = 16 * 1024
MAX_OFFSET = (1 << 32) - 1


class _Section:
    """The next ``nbytes`` of a stream as a stream of their own, whose head can be looked at wherever it lies."""

    def __init__(self, stream: ByteStream, nbytes: int) -> None:
        self._stream = stream
        self._left = nbytes
        self._ahead = b""

    def peek(self, n: int) -> bytes:
        while len(self._ahead) < n and (piece := self._take(max(PEEK_BYTES, n))):
            self._ahead += piece
        return self._ahead[:n]

    def read(self, n: int = -1, /) -> bytes:
        if self._ahead:
            data = self._ahead if n < 0 else self._ahead[:n]
            self._ahead = self._ahead[len(data) :]
            return data
        return self._take(self._left if n < 0 else n)

    def _take(self, n: int) -> bytes:
        data = self._stream.read(min(n, self._left)) if self._left and n else b""
        self._left -= len(data)
        return data


def _exactly(stream: ByteStream, nbytes: int) -> bytes:
    section = _Section(stream, nbytes)
    data = section.peek(nbytes)
    if len(data) < nbytes:
        raise FormatError(f"its first {nbytes} bytes are not there; the file is truncated")
    return data


class _Plain:
    """A stream that is stored as it is."""

    memory = PEEK_BYTES

    def __init__(self, stream: ByteStream, size: int) -> None:
        self._stream = stream
        self.content_size = size

    def readinto(self, view: memoryview) -> int:
        done = 0
        while done < len(view):
            piece = self._stream.read(len(view) - done)
            if not piece:
                break
            view[done : done + len(piece)] = piece
            done += len(piece)
        return done


class _Forms:
    """The compressions that occur in a dataset, numbered; "" is none.

    Raises:
        MissingExtraError, UnsupportedError: as :func:`~lazystore.formats.stream_codecs.codec_for`.
    """

    def __init__(self, forms: Sequence[str], largest: int) -> None:
        self.numbers = {form: i for i, form in enumerate(dict.fromkeys(forms))}
        self._codecs = [codec_for(form, largest=largest) if form else None for form in self.numbers]
        self.memory = max(codec.memory for codec in self._codecs if codec is not None)

    def open(self, form: int, section: _Section, *, limit: int, stored: int, size: int) -> Inflater:
        codec = self._codecs[form]
        if codec is None:
            return _Plain(section, size)
        return codec.open(section, limit=limit, stored=stored, size=size)


class MixedCodec:
    """Shards some of which are compressed, and perhaps differently: each object begins with a byte that says how.

    Parameters:
        forms: compressions that occur, "" for none.
        largest: bytes of the largest shard.
    """

    _HEAD = struct.Struct("<BQ")

    def __init__(self, forms: Sequence[str], largest: int) -> None:
        self._forms = _Forms(forms, largest)
        self.memory = self._forms.memory
        self.name = "+".join(form or "plain" for form in self._forms.numbers)

    def segments(self, form: str, data: StoredFile) -> list[Segment]:
        """What the object of a shard is put together from."""
        return [self._HEAD.pack(self._forms.numbers[form], data.nbytes), Span(data.name, 0, data.nbytes)]

    def open(self, stream: Any, *, limit: int, stored: int, size: int) -> Inflater:
        form, nbytes = self._HEAD.unpack(_exactly(stream, self._HEAD.size))
        return self._forms.open(form, _Section(stream, nbytes), limit=limit, stored=nbytes, size=size)


class TextCodec:
    """Text shards that are compressed: offset table and data are streams of their own, one after the other.

    Parameters:
        forms: compressions that occur, "" for none.
        largest: bytes of the largest shard.

    Memory: what the larger of both streams takes, and 16 KiB.
    """

    _HEAD = struct.Struct("<BIQQQQ")

    def __init__(self, forms: Sequence[str], largest: int) -> None:
        self._forms = _Forms(forms, largest)
        self.memory = self._forms.memory + STEP_BYTES
        self.name = "+".join(form or "plain" for form in self._forms.numbers)

    def segments(
        self, form: str, samples: int, meta: StoredFile, raw_meta: StoredFile, data: StoredFile, raw: StoredFile
    ) -> list[Segment]:
        """What the object of a shard is put together from: the stored files, and the lengths of their contents."""
        lengths = (meta.nbytes, raw_meta.nbytes, data.nbytes, raw.nbytes)
        return [
            self._HEAD.pack(self._forms.numbers[form], samples, *lengths),
            Span(meta.name, 0, meta.nbytes),
            Span(data.name, 0, data.nbytes),
        ]

    def open(self, stream: Any, *, limit: int, stored: int, size: int) -> Inflater:
        form, samples, *lengths = self._HEAD.unpack(_exactly(stream, self._HEAD.size))
        return _TextInflater(stream, self._forms, form, samples, lengths, limit)


class _TextInflater:
    """A text shard as a chunk: ``u32 n | u32 offset[n+1]``, the offsets moved past the table, and the data."""

    def __init__(
        self, stream: ByteStream, forms: _Forms, form: int, samples: int, lengths: Sequence[int], limit: int
    ) -> None:
        meta, raw_meta, self._data, self._raw_data = lengths
        self._stream = stream
        self._forms = forms
        self._form = form
        self._limit = limit - STEP_BYTES
        self._table_end = OFFSETS_AT + OFFSET_WIDTH * (samples + 1)
        self._after_table = raw_meta - self._table_end
        self._inflater = forms.open(form, _Section(stream, meta), limit=self._limit, stored=meta, size=raw_meta)
        self._ready = memoryview(b"")
        self._position = 0
        self.content_size = self._table_end + self._raw_data
        self.memory = self._inflater.memory + STEP_BYTES

    def readinto(self, view: memoryview) -> int:
        done = 0
        while done < len(view):
            if self._position < self._table_end:
                got = self._entries(view[done:])
            else:
                got = self._inflater.readinto(view[done:])
            if not got:
                break
            done += got
            self._position += got
            if self._position == self._table_end:
                self._go_on()
        return done

    def _entries(self, view: memoryview) -> int:
        """Of the count and the offsets as many bytes as are ready."""
        if not self._ready:
            first = not self._position
            step = memoryview(bytearray(min(STEP_BYTES, self._table_end - self._position)))
            _fill(self._inflater, step)
            self._shift(step[OFFSETS_AT:] if first else step)
            self._ready = step
        taken = self._ready[: len(view)]
        view[: len(taken)] = taken
        self._ready = self._ready[len(taken) :]
        return len(taken)

    def _shift(self, entries: memoryview) -> None:
        import numpy as np

        offsets = np.frombuffer(entries, "<u4")
        if len(offsets) and int(offsets.max()) > MAX_OFFSET - self._table_end:
            raise FormatError(f"its offset table goes to byte {int(offsets.max())}, beyond what 32 bits reach")
        offsets += np.uint32(self._table_end)

    def _go_on(self) -> None:
        """From the end of the table, with what the shard says about itself after it, to the data."""
        rest = memoryview(bytearray(min(STEP_BYTES, self._after_table)))
        while self._after_table:
            _fill(self._inflater, rest[: self._after_table])
            self._after_table -= min(len(rest), self._after_table)
        section = _Section(self._stream, self._data)
        self._inflater = self._forms.open(
            self._form, section, limit=self._limit, stored=self._data, size=self._raw_data
        )
        self.memory = max(self.memory, self._inflater.memory + STEP_BYTES)


def _fill(inflater: Inflater, view: memoryview) -> None:
    if inflater.readinto(view) < len(view):
        raise FormatError("its offset table is truncated")
