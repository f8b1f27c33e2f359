"""Leaves of other packages: tensors and images as LitData stores them, and what only pickle could hold."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import classic

from lazystore import StreamingDataset
from lazystore.errors import FormatError
from lazystore.formats.leaf_encodings import TORCH_DTYPES, MisfitError, leaf_bytes, leaf_tag
from lazystore.formats.leaves import TORCH_DTYPES as READ_DTYPES
from lazystore.formats.leaves import leaf_operation
from lazystore.formats.writer import DatasetWriter


def write(folder: Path, samples: Any, **options: Any) -> dict[str, Any]:
    with DatasetWriter(folder, **options) as writer:
        for sample in samples:
            writer.write(sample)
    return classic.read_index(folder)


def read(folder: Path, **options: Any) -> list[Any]:
    with StreamingDataset(folder, memory="4MB", **options) as dataset:
        return list(dataset)


# --- tensors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", ["litdata-classic-leaves", "litdata-classic-single-leaf-tensor"])
def test_tensors_have_the_bytes_and_tags_litdata_gives_them(golden: str) -> None:
    torch = pytest.importorskip("torch")
    data = classic.GOLDEN / golden / "data"
    tags = classic.read_index(data)["config"]["data_format"]
    seen = set()
    for item in classic.items(data):
        for tag, stored in zip(tags, item, strict=True):
            if "tensor" not in tag:
                continue
            value = leaf_operation(tag, allow_pickle=False)[1](stored)
            assert isinstance(value, torch.Tensor)
            assert leaf_tag(value) == tag
            assert leaf_bytes(tag, value) == stored
            seen.add(tag)
    assert seen


@pytest.mark.parametrize("name", sorted(TORCH_DTYPES))
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0, 3)])
def test_tensors_come_back_in_every_dtype_and_shape(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert READ_DTYPES[TORCH_DTYPES[name]] == name
    value = torch.arange(int(np.prod(shape)) or 0, dtype=torch.float32).reshape(shape).to(getattr(torch, name))
    write(tmp_path, [{"v": value}] * 2)
    for sample in read(tmp_path):
        assert sample["v"].dtype == value.dtype
        assert sample["v"].shape == value.shape
        assert torch.equal(
            sample["v"].view(torch.uint8) if shape else sample["v"], value.view(torch.uint8) if shape else value
        )


def test_tensors_are_stored_as_they_look_whatever_their_memory() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    for value in (
        base.T,
        base[:, 1],
        base[::2],
        base.clone().requires_grad_(),
        torch.conj(base * 1j),
        (base * 1j).imag,
    ):
        tag = leaf_tag(value)
        data = leaf_bytes(tag, value)
        body = data if tag != "tensor" else data[8 + 4 * value.ndim :]
        assert body == value.detach().resolve_conj().resolve_neg().contiguous().numpy().tobytes()
        if tag == "tensor":
            assert struct.unpack_from(f">2I{value.ndim}I", data)[1:] == (value.ndim, *value.shape)


def test_tensors_that_are_no_plain_numbers_are_refused() -> None:
    torch = pytest.importorskip("torch")
    for value, message in (
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.ones(2).to(torch.float8_e5m2), "float8"),
    ):
        with pytest.raises(MisfitError, match=message):
            leaf_tag(value)


def test_tensor_of_another_dtype_is_refused_by_number(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with DatasetWriter(tmp_path) as writer:
        writer.write({"v": torch.zeros(2)})
        with pytest.raises(FormatError, match=r"sample 1, at \['v'\].*no_header_tensor:18.*no_header_tensor:1'"):
            writer.write({"v": torch.zeros(2, dtype=torch.int64)})
        with pytest.raises(FormatError, match=r"'tensor'"):
            writer.write({"v": torch.zeros(2, 2)})


def test_token_tensors_are_bare(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    index = write(tmp_path, [torch.arange(n) for n in (3, 0, 4)], tokens=True)
    assert index["config"]["data_format"] == ["no_header_tensor:18"]
    assert index["chunks"][0]["dim"] == 7
    data = (tmp_path / "chunk-0-0.bin").read_bytes()
    assert struct.unpack_from("<5I", data) == (3, 20, 44, 44, 76)


# --- images -----------------------------------------------------------------------------------------


def picture(mode: str) -> Any:
    image = pytest.importorskip("PIL.Image")
    return image.fromarray(np.arange(7 * 5 * 3, dtype="u1").reshape(7, 5, 3)).convert(mode)


def jpeg_file(quality: int = 90) -> bytes:
    out = io.BytesIO()
    picture("RGB").save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_images_have_the_bytes_litdata_gives_them(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    data = classic.GOLDEN / "litdata-classic-images" / "data"
    tags = classic.read_index(data)["config"]["data_format"]
    seen = set()
    for number, item in enumerate(classic.items(data)):
        for tag, stored in zip(tags, item, strict=True):
            if tag == "pil":
                value = leaf_operation(tag, allow_pickle=False)[1](stored)
            elif tag == "jpeg":
                path = tmp_path / f"{number}.jpg"
                path.write_bytes(stored)
                with image.open(path) as value:
                    assert (leaf_tag(value), leaf_bytes(tag, value)) == (tag, stored)
                seen.add(tag)
                continue
            else:
                continue
            assert leaf_tag(value) == tag
            assert leaf_bytes(tag, value) == stored
            seen.add(tag)
    assert {"pil", "jpeg"} <= seen


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_images_come_back_pixel_for_pixel(mode: str, tmp_path: Path) -> None:
    value = picture(mode)
    write(tmp_path, [{"image": value, "n": 1}])
    (sample,) = read(tmp_path)
    assert (sample["image"].mode, sample["image"].size) == (value.mode, value.size)
    assert sample["image"].tobytes() == value.tobytes()


def test_palettes_are_refused_because_the_format_would_lose_them() -> None:
    with pytest.raises(MisfitError, match=r"mode P.*convert"):
        leaf_tag(picture("P"))


def test_jpegs_in_memory_keep_their_tables(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    stored = jpeg_file(quality=40)
    write(tmp_path, [{"image": image.open(io.BytesIO(stored))}])
    ((data,),) = classic.items(tmp_path)
    assert image.open(io.BytesIO(data)).quantization == image.open(io.BytesIO(stored)).quantization
    assert len(data) < 2 * len(stored)


def test_lists_of_jpegs_are_one_leaf_of_any_length(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "one.jpg"
    path.write_bytes(jpeg_file())
    with image.open(path) as opened:
        index = write(tmp_path / "d", [{"all": [opened] * n} for n in (2, 1, 3)])
    assert index["config"]["data_format"] == ["jpeg_array"]
    for n, (data,) in zip((2, 1, 3), classic.items(tmp_path / "d"), strict=True):
        size = len(jpeg_file())
        assert data == struct.pack(f"<{n + 1}I", n, *[size] * n) + jpeg_file() * n


def test_an_image_that_cannot_be_read_is_refused_by_number(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    torn = tmp_path / "torn.png"
    image.effect_noise((99, 99), 50).save(torn)
    torn.write_bytes(torn.read_bytes()[:2000])
    with image.open(torn) as opened, DatasetWriter(tmp_path / "d") as writer:
        writer.write({"image": picture("L")})
        with pytest.raises(FormatError, match=r"sample 1, at \['image'\]: an image that cannot be read"):
            writer.write({"image": opened})


# --- pickle -----------------------------------------------------------------------------------------

ODD: list[Any] = [{1, 2}, 3 + 4j, np.int64(7), np.array(["x"]), np.array(5), bytearray(b"b"), None, [1], range(3)]


def test_only_permission_makes_pickles(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "no") as writer:
        for value in ODD[:6]:
            with pytest.raises(FormatError):
                writer.write({"v": value})
        writer.write({"v": None})
    index = write(tmp_path / "yes", [{"v": value, "n": 1} for value in ODD], allow_pickle=True)
    assert index["config"]["data_format"] == ["pickle", "int"]
    stored = [pickle.loads(leaves[0]) for leaves in classic.items(tmp_path / "yes")]
    assert list(map(repr, stored)) == list(map(repr, ODD))
    assert repr([s["v"] for s in read(tmp_path / "yes", allow_pickle=True)]) == repr(ODD)


def test_typed_leaves_stay_typed_when_pickling_is_allowed(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, allow_pickle=True) as writer:
        writer.write({"v": 1})
        with pytest.raises(FormatError, match="sample 1"):
            writer.write({"v": {1}})


def test_what_pickle_cannot_hold_is_refused_by_number(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, allow_pickle=True) as writer:
        with pytest.raises(FormatError, match=r"sample 0, at \['v'\].*cannot be pickled"):
            writer.write({"v": lambda: 1})
        writer.write({"v": {1}})


def test_deep_samples_are_refused_and_not_a_crash(tmp_path: Path) -> None:
    sample: list[Any] = []
    sample.append(sample)
    with DatasetWriter(tmp_path) as writer:
        with pytest.raises(FormatError, match="deeper than"):
            writer.write(sample)
        writer.write([1])
