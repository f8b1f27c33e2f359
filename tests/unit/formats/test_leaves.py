"""Leaf tags: every one LitData writes means what it should, and damaged leaves are our errors."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import pickle
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lazystore._core.decode import DecodePlan
from lazystore.errors import FormatError, LazyStoreError, MissingExtraError, UnsafeDataError, UnsupportedError
from lazystore.formats.leaves import leaf_operation

NUMPY = ["i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "?"]
TORCH = [
    "float32", "float32", "float64", "float64", "complex64", "complex64", "complex128", "complex128",
    "float16", "float16", "bfloat16", "uint8", "int8", "int16", "int16", "int32", "int32", "int64",
    "int64", "bool", "uint16",
]  # fmt: skip


def decode(tag: str, data: bytes, **options: Any) -> Any:
    """One leaf of a tag, as the bare leaf of an item."""
    options.setdefault("allow_pickle", False)
    return DecodePlan([leaf_operation(tag, **options)], [("leaf",)], names=[tag], headless=True)(data)


def words(*values: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}{len(values)}I", *values)


# -- plain ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag, data, value",
    [
        ("str", "ünï\0code 😀".encode(), "ünï\0code 😀"),
        ("str", b"", ""),
        ("text", b"abc", "abc"),
        ("bytes", b"\0\xff", b"\0\xff"),
        ("bytes", b"", b""),
        ("int", struct.pack("<q", -(2**63)), -(2**63)),
        ("int", struct.pack("<q", 2**63 - 1), 2**63 - 1),
        ("float", struct.pack("<d", -0.0), -0.0),
        ("float", struct.pack("<d", float("inf")), float("inf")),
        ("bool", b"\0", False),
        ("bool", b"\1", True),
        ("bool", b"\xff", True),
        ("pickle", b"\x80\x04N.", None),
        ("graph:pickle", b"\x80\x04N.", None),
        ("file", b"content", b"content"),
        ("file:txt", b"content", b"content"),
        ("file:pdf", b"content", b"content"),
        ("pdf", b"content", b"content"),
        ("video:mp4", b"content", b"content"),
        ("audio:wav", b"content", b"content"),
        ("nifti:nii.gz", b"content", b"content"),
        ("mesh:stl", b"content", b"content"),
        ("tiff", b"content", b"content"),
        ("tif", b"content", b"content"),
        ("tifffile", b"content", b"content"),
    ],
)
def test_plain_leaves(tag: str, data: bytes, value: Any) -> None:
    found = decode(tag, data)
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)  # the sign of zero


@pytest.mark.parametrize("tag, sizes", [("int", (0, 4, 7, 9, 16)), ("float", (0, 4, 7, 9)), ("bool", (0, 2, 8))])
def test_leaves_of_a_fixed_size_have_that_size(tag: str, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        with pytest.raises(FormatError, match=f"{tag} leaf has {size} bytes"):
            decode(tag, bytes(size))


@pytest.mark.parametrize("tag", ["mystery", "", ":", "int:8", "no_header_numpy", "no_header_tensor:21", "STR", "jso"])
def test_unknown_tags_are_refused_by_name(tag: str) -> None:
    with pytest.raises(FormatError) as raised:
        leaf_operation(tag, allow_pickle=True)
    assert repr(tag) in str(raised.value)


@pytest.mark.parametrize(
    "tag, data, value",
    [
        ("file:json", b"[1]", [1]),
        ("file:str", b"a", "a"),
        ("file:bytes", b"a", b"a"),
        ("file:text", b"a", "a"),
        ("audio:tifffile", b"a", b"a"),
    ],
)
def test_the_second_part_of_a_tag_decodes_when_it_names_a_serializer(tag: str, data: bytes, value: Any) -> None:
    assert decode(tag, data) == value


@pytest.mark.parametrize("tag", ["graph", "file:graph"])
def test_graphs_need_leave(tag: str) -> None:
    with pytest.raises(UnsafeDataError, match="allow_pickle=True"):
        decode(tag, b"LDGR\x03\0\0")


# -- numpy dtypes of two numberings ---------------------------------------------------------


@pytest.mark.parametrize("index", range(18))
def test_old_arrays_without_a_header_are_read_where_their_dtype_is_sure(index: int) -> None:
    if index <= 10:
        found = decode(f"no_header_numpy:{index}", bytes(16), old=True)
        assert found.dtype.str.lstrip("|") == np.dtype(NUMPY[index]).str.lstrip("|")
    else:
        with pytest.raises(UnsupportedError, match="serializers="):
            leaf_operation(f"no_header_numpy:{index}", allow_pickle=True, old=True)


@pytest.mark.parametrize(
    "index, dtype",
    [(0, "i1"), (9, "<f4"), (10, "<f8"), (11, "longdouble"), (11, "c8"), (12, "c8"), (12, "c16"), (13, "c16"),
     (13, "?"), (15, "?")],
)  # fmt: skip
def test_old_arrays_with_a_header_tell_their_dtype_by_the_size_of_an_element(index: int, dtype: str) -> None:
    wanted = np.arange(6).reshape(2, 3).astype(dtype)
    found = decode("numpy", words(index, 2, 2, 3) + wanted.tobytes(), old=True)
    assert found.dtype == wanted.dtype and np.array_equal(found, wanted) and found.flags.writeable


@pytest.mark.parametrize("index", [14, 15, 16, 17, 99])
def test_old_arrays_of_objects_are_refused(index: int) -> None:
    for data in (words(index, 1, 2) + bytes(16), words(index, 0), b"", words(index, 0xFFFFFFFF)):
        with pytest.raises(FormatError):
            decode("numpy", data, old=True)


# -- graphs ---------------------------------------------------------------------------------


def packed_graph(fields: list[tuple[str, int, bytes]], version: int = 3) -> bytes:
    width = 2 if version == 3 else 1
    parts = [b"LDGR", bytes([version]), len(fields).to_bytes(width, "big")]
    for name, kind, payload in fields:
        parts += [len(name).to_bytes(width, "big"), name.encode()]
        parts += [bytes([kind])] if version > 1 else []
        parts += [len(payload).to_bytes(4, "big"), payload]
    return b"".join(parts)


def graph_of(version: int) -> bytes:
    meta = {
        "_cls": "hetero",
        "_tree": {"user": {"x": "__ldgr_t__", "n": 3}},
        "_paths": [("user", "x")],
        "_fields": ["u"],
    }
    tensor = words(1, 2, 1, 2, order=">") + struct.pack("<2f", 1.5, -2)
    return packed_graph([("u", 0, tensor), ("_meta", 1, pickle.dumps(meta))], version)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_graphs_of_every_version(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "torch_geometric", None)  # not there
    found = decode("graph", graph_of(version), allow_pickle=True)
    assert found["user"]["x"].tolist() == [[1.5, -2.0]] and found["user"]["n"] == 3


def test_a_graph_without_a_magic_is_a_pickle() -> None:
    assert decode("graph", pickle.dumps({"a": 1}), allow_pickle=True) == {"a": 1}


@given(st.integers(0, 300), st.sampled_from([b"", b"\xff", b"\0\0\0\0"]))
def test_damaged_graphs_are_refused(cut: int, tail: bytes) -> None:
    pytest.importorskip("torch")
    whole = graph_of(3)
    data = whole[:cut] + tail
    if data != whole and data.startswith(b"LDGR"):
        with pytest.raises(FormatError):
            decode("graph", data, allow_pickle=True)


# -- pickles --------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["pickle", "graph:pickle"])
def test_pickles_need_leave(tag: str) -> None:
    data = pickle.dumps({1, 2})
    assert decode(tag, data, allow_pickle=True) == {1, 2}
    with pytest.raises(UnsafeDataError, match="allow_pickle=True"):
        decode(tag, data)


@pytest.mark.parametrize("none", [pickle.dumps(None, protocol) for protocol in range(6)])
def test_none_of_any_protocol_with_leave(none: bytes) -> None:
    assert decode("pickle", none, allow_pickle=True) is None


@given(st.binary(max_size=30))
@example(b"")
@example(b"\x80\x04")
@example(b"\x80\x05K\x01")
def test_damaged_pickles_are_format_errors(data: bytes) -> None:
    # Only opcodes that cannot name code: this is about damage, not about hostility.
    if any(opcode in data for opcode in b"ciRobprPQ\x81\x82\x83\x84\x92\x93"):
        return
    try:
        decode("pickle", data, allow_pickle=True)
    except FormatError as error:
        assert "pickle" in str(error)


# -- arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(14))
def test_flat_arrays_of_every_dtype(index: int) -> None:
    array = np.arange(5).astype(NUMPY[index])
    found = decode(f"no_header_numpy:{index}", array.tobytes())
    assert (type(found), found.dtype.str, found.shape) == (np.ndarray, array.dtype.str, (5,))
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable and found.flags.owndata
    assert decode(f"no_header_numpy:{index}", b"").shape == (0,)


@pytest.mark.parametrize("index", range(14))
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0, 3), (2, 0, 4), (1,) * 32])
def test_shaped_arrays_of_every_dtype(index: int, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, NUMPY[index])
    found = decode("numpy", words(index, len(shape), *shape) + array.tobytes())
    assert (type(found), found.dtype.str, found.shape) == (np.ndarray, array.dtype.str, shape)
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("index", [1, 3, 12])
def test_flat_arrays_of_half_an_element_are_refused(index: int) -> None:
    with pytest.raises(FormatError, match="whole number"):
        decode(f"no_header_numpy:{index}", b"abc")


@pytest.mark.parametrize("index", [14, 15, 16, 17])
def test_arrays_of_objects_and_strings_are_never_built(index: int) -> None:
    with pytest.raises(UnsafeDataError):
        leaf_operation(f"no_header_numpy:{index}", allow_pickle=True)
    with pytest.raises(FormatError, match="unpickling"):
        decode("numpy", words(index, 1, 1) + bytes(8))


@pytest.mark.parametrize(
    "data",
    [
        b"", words(9), words(9, 2, 1), words(9, 2, 2, 2) + bytes(15), words(9, 2, 2, 2) + bytes(17),
        words(99, 1, 1) + bytes(4), words(9, 33, *[1] * 33) + bytes(4), words(9, 2**32 - 1),
        words(9, 2, 2**32 - 1, 2**32 - 1), words(9, 4, *[2**16] * 4), words(9, 3, 0, 1, 1) + b"abcd",
        words(9, 5, 0, *[2**32 - 1] * 4), words(12, 2, 2**31, 2**31),
    ],
)  # fmt: skip
def test_arrays_whose_header_does_not_fit_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"array"):
        decode("numpy", data)


# -- tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(TORCH)))
def test_flat_tensors_of_every_dtype(index: int) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3, dtype=getattr(torch, TORCH[index]))
    data = bytes(tensor.untyped_storage())
    found = decode(f"no_header_tensor:{index}", data)
    assert (found.dtype, tuple(found.shape)) == (tensor.dtype, (3,))
    assert torch.equal(found, tensor)
    assert decode(f"no_header_tensor:{index}", b"").shape == (0,)


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("index", range(len(TORCH)))
@pytest.mark.parametrize("shape", [(), (1, 1), (3, 2), (0, 3), (2, 0, 4), (256, 1), (1,) * 20])
def test_shaped_tensors_of_both_byte_orders(index: int, shape: tuple[int, ...], order: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.full(shape, 1, dtype=getattr(torch, TORCH[index]))
    data = words(index, len(shape), *shape, order=order) + bytes(tensor.untyped_storage())
    found = decode("tensor", data)
    assert (found.dtype, tuple(found.shape)) == (tensor.dtype, shape)
    assert torch.equal(found, tensor)


def test_a_dataset_of_one_byte_order_after_the_other_is_read() -> None:
    torch = pytest.importorskip("torch")
    operation = leaf_operation("tensor", allow_pickle=False)
    plan = DecodePlan([operation], [("leaf",)], names=["t"], headless=True)
    for order in "<><<>>":
        assert torch.equal(plan(words(1, 1, 2, order=order) + struct.pack("<2f", 1, 2)), torch.tensor([1.0, 2.0]))


def test_tensors_belong_to_the_caller() -> None:
    pytest.importorskip("torch")
    data = words(1, 1, 2, order=">") + bytes(8)
    found = decode("tensor", data)
    found += 1
    assert decode("tensor", data).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "data",
    [
        b"", words(1), words(1, 1, order=">"), words(1, 1, 2, order=">") + bytes(7), words(99, 1, 1) + bytes(4),
        words(1, 65, *[1] * 65, order=">") + bytes(4), words(1, 2**32 - 1), words(1, 2, 2**32 - 1, 2**32 - 1),
        words(1, 5, 0, *[2**32 - 1] * 4, order=">"), words(1, 4, *[2**16] * 4, order=">"),
    ],
)  # fmt: skip
def test_tensors_whose_header_does_not_fit_are_refused(data: bytes) -> None:
    pytest.importorskip("torch")
    with pytest.raises(FormatError, match="tensor"):
        decode("tensor", data)


@pytest.mark.parametrize("tag", ["tensor", "no_header_tensor:1"])
def test_tensors_without_torch_name_the_extra(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install lazystore\[torch\]"):
        decode(tag, words(1, 1, 1, order=">") + bytes(4))


# -- images ---------------------------------------------------------------------------------


def image_file(mode: str, form: str, size: tuple[int, int] = (5, 3)) -> bytes:
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    picture = image.new(mode, size)
    picture.putpixel((1, 1), 255 if mode in ("L", "1") else (1, 2, 3))
    picture.save(buffer, form)
    return buffer.getvalue()


def raw_image(mode: str, width: int, height: int, pixels: bytes) -> bytes:
    return words(width, height, len(mode)) + mode.encode() + pixels


@pytest.mark.parametrize("tag", ["jpeg", "image:jpg", "image:jpeg", "file:jpeg", "image:png", "image:webp", "image"])
def test_encoded_images_are_decoded(tag: str) -> None:
    image = pytest.importorskip("PIL.Image")
    data = image_file("RGB", "PNG" if "png" in tag else "JPEG")
    found = decode(tag, data)
    assert isinstance(found, image.Image)
    assert (found.mode, found.size) == ("RGB", (5, 3))
    assert found.tobytes() == image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize(
    "mode, each", [("RGB", 3), ("L", 1), ("RGBA", 4), ("CMYK", 4), ("I", 4), ("F", 4), ("I;16", 2), ("P", 1), ("LA", 2)]
)
@pytest.mark.parametrize("size", [(5, 3), (1, 1), (0, 3)])
def test_raw_images_of_every_mode(mode: str, each: int, size: tuple[int, int]) -> None:
    pytest.importorskip("PIL")
    pixels = bytes(i % 256 for i in range(size[0] * size[1] * each))
    found = decode("pil", raw_image(mode, *size, pixels))
    assert (found.mode, found.size) == (mode, size)
    assert found.tobytes() == pixels


def test_bilevel_raw_images_pack_their_rows() -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.new("1", (11, 3), 1)
    found = decode("pil", raw_image("1", 11, 3, picture.tobytes()))
    assert (found.mode, found.tobytes()) == ("1", picture.tobytes())


def test_lists_of_jpegs() -> None:
    pytest.importorskip("PIL")
    files = [image_file("RGB", "JPEG", (4, 4)), image_file("L", "JPEG", (2, 9))]
    found = decode("jpeg_array", words(2, *map(len, files)) + b"".join(files))
    assert [(one.mode, one.size) for one in found] == [("RGB", (4, 4)), ("L", (2, 9))]
    assert decode("jpeg_array", words(0)) == []


@pytest.mark.parametrize(
    "tag, data",
    [
        ("jpeg", b""), ("jpeg", b"no image"), ("jpeg", b"\xff\xd8\xff"),
        ("image:png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
        ("pil", b""), ("pil", words(1, 1, 3)), ("pil", raw_image("RGB", 2, 2, bytes(11))),
        ("pil", raw_image("RGB", 2, 2, bytes(13))), ("pil", raw_image("NO!", 2, 2, bytes(12))),
        ("pil", raw_image("RGB", 2**32 - 1, 1, b"")), ("pil", raw_image("L", 2**31, 2**31, b"x")),
        ("pil", raw_image("RGB", 40_000, 30_000, b"x")), ("pil", raw_image("L", 2**32 - 1, 0, b"")),
        ("pil", words(1, 1, 2**32 - 1) + b"L\0"), ("pil", words(1, 1, 1) + b"\xff\0"),
        ("jpeg_array", b""), ("jpeg_array", words(1)), ("jpeg_array", words(2**32 - 1) + bytes(40)),
        ("jpeg_array", words(1, 5) + b"abcd"), ("jpeg_array", words(1, 4) + b"abcd"),
        ("jpeg_array", words(2, 2**32 - 1, 6) + b"abcde"),
    ],
)  # fmt: skip
def test_damaged_images_are_format_errors(tag: str, data: bytes) -> None:
    pytest.importorskip("PIL")
    with pytest.raises(FormatError, match="image"):
        decode(tag, data)


@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]))
def test_image_files_with_a_changed_byte_are_images_or_format_errors(where: int, value: int, form: str) -> None:
    image = pytest.importorskip("PIL.Image")
    data = bytearray(sample_file(form))
    data[where % len(data)] = value
    with contextlib.suppress(FormatError):
        assert isinstance(decode("image", bytes(data)), image.Image)


@functools.cache
def sample_file(form: str) -> bytes:
    return image_file("RGB", form)


def test_images_without_pillow_are_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert decode("jpeg", b"file") == b"file"
    assert decode("image:png", b"file") == b"file"
    assert decode("pil", raw_image("L", 1, 1, b"x")) == raw_image("L", 1, 1, b"x")
    assert decode("jpeg_array", words(2, 1, 2) + b"abb") == [b"a", b"bb"]


# -- the user's own -------------------------------------------------------------------------


class Shout:
    def deserialize(self, data: bytes) -> str:
        return data.decode().upper()


@pytest.mark.parametrize(
    "tag, key", [("mine", "mine"), ("mine:v2", "mine:v2"), ("mine:v2", "mine"), ("image:mine", "mine"), ("str", "str")]
)
def test_serializers_are_found_by_tag_detail_or_name(tag: str, key: str) -> None:
    assert decode(tag, b"abc", serializers={key: Shout()}) == "ABC"
    assert decode(tag, b"abc", serializers={key: len}) == 3
    assert decode("str", b"abc", serializers={"other": len}) == "abc"


def test_the_whole_tag_comes_before_its_parts() -> None:
    both = {"a:b": lambda data: "whole", "b": lambda data: "detail", "a": lambda data: "name"}
    assert decode("a:b", b"", serializers=both) == "whole"
    del both["a:b"]
    assert decode("a:b", b"", serializers=both) == "detail"


def test_an_error_of_a_serializer_comes_through_as_it_is() -> None:
    def refuse(data: bytes) -> None:
        raise LookupError(data)

    with pytest.raises(LookupError):
        decode("mine", b"abc", serializers={"mine": refuse})


# -- anything -------------------------------------------------------------------------------

FUZZED = [
    "int", "float", "bool", "str", "bytes", "numpy", "no_header_numpy:3", "tensor", "no_header_tensor:18", "pil",
    "jpeg_array", "jpeg",
]  # fmt: skip
headers = st.lists(st.sampled_from([0, 1, 2, 3, 8, 9, 20, 2**16, 2**31, 2**32 - 1]), max_size=6)


@pytest.mark.parametrize("tag", FUZZED)
@given(headers, st.binary(max_size=40), st.sampled_from("<>"))
def test_nothing_but_our_errors_comes_out_of_junk(tag: str, header: list[int], rest: bytes, order: str) -> None:
    if "tensor" in tag:
        pytest.importorskip("torch")
    with contextlib.suppress(LazyStoreError, UnicodeDecodeError):  # the reader adds the place to the latter
        decode(tag, words(*header, order=order) + rest)


def test_every_combination_of_small_headers_is_an_array_or_an_error() -> None:
    for index, rank, size in itertools.product(range(15), range(3), range(0, 40, 4)):
        data = words(index, rank, *[1] * rank) + bytes(size)
        try:
            found = decode("numpy", data)
        except FormatError:
            continue
        assert found.nbytes == size
        assert found.shape == (1,) * rank
