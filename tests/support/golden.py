"""Golden datasets and their `expected.jsonl`: the comparator, strict about types.

``difference(value, expected)`` is "" when they are the same thing, else where and how they differ. The
encoding of expected values is explained in ``tests/golden/README.md``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
#: Every dataset, by the path of its folder below the golden one.
READABLE = sorted(path.parent.relative_to(GOLDEN).as_posix() for path in GOLDEN.glob("**/data"))
LITDATA = [name for name in READABLE if name.startswith("litdata-")]
ENCRYPTED = [name for name in READABLE if (GOLDEN / name / "key").exists()]
#: Chunks as LitData has always written them, not encrypted.
CLASSIC = [name for name in LITDATA if "-classic-" in name or name == "litdata-le-tensor" if name not in ENCRYPTED]
#: Written sample by sample as Arrow rows, whatever the index says of leaves.
ROWS = [name for name in LITDATA if name.endswith(("rows", "rows-zstd"))]


def place(name: str) -> Path:
    """What to open: the folder, or the text file in it."""
    data = GOLDEN / name / "data"
    return next(data.iterdir()) if name.startswith("plain-text/") else data


def options(name: str) -> dict[str, Any]:
    """What a reader of this dataset has to say."""
    found: dict[str, Any] = {"allow_pickle": True}
    if name in ENCRYPTED:
        from lazystore import FernetEncryption

        key = GOLDEN / name / "key"
        found["encryption"] = FernetEncryption.load(key / "key.json", (key / "password.txt").read_text())
    return found


def config(name: str) -> dict[str, Any]:
    return dict(json.loads((GOLDEN / name / "data" / "index.json").read_text())["config"])


def require(name: str) -> None:
    """Skip the test where the packages this dataset needs are not installed."""
    for package in sorted(_packages(name)):
        pytest.importorskip(package)


def _packages(name: str) -> set[str]:
    if name.startswith("plain-text/"):
        return set()
    if name not in LITDATA:
        shards = json.loads((GOLDEN / name / "data" / "index.json").read_text())["shards"]
        return {
            package
            for shard in shards
            for kind in (*shard.get("column_encodings", ()), shard["compression"] or "", *shard["hashes"])
            for part, package in _MOSAIC_PACKAGES.items()
            if part in kind
        }
    found = config(name)
    packages = {package for part, package in _PACKAGES.items() if any(part in tag for tag in found["data_format"])}
    packages |= {"zstandard"} if found["compression"] else set()
    packages |= {"cryptography"} if name in ENCRYPTED else set()
    return packages | ({"pyarrow"} if name in ROWS or "fernet-chunk" in name else set())


_PACKAGES = {"tensor": "torch", "pil": "PIL", "jpeg": "PIL"}
_MOSAIC_PACKAGES = {"pil": "PIL", "jpeg": "PIL", "png": "PIL", "zstd": "zstandard", "br": "brotli", "snappy": "cramjam"}


def expected(name: str, file: str = "expected.jsonl") -> list[dict[str, Any]]:
    with (GOLDEN / name / file).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def assert_same(values: Iterable[Any], wanted: Iterable[dict[str, Any]]) -> None:
    """All values, in order, nothing missing and nothing more."""
    found = list(values)
    wanted = list(wanted)
    assert len(found) == len(wanted)
    for i, (value, want) in enumerate(zip(found, wanted, strict=True)):
        wrong = difference(value, want)
        assert not wrong, f"sample {i}{wrong}"


def difference(value: Any, want: dict[str, Any]) -> str:
    """Empty, or a path and what is wrong there."""
    kind = next(iter(want))
    inner = want[kind]
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](value, inner)
    return "" if _LEAVES[kind](value, inner, want) else f": {value!r} is not {want}"


# -- leaves ---------------------------------------------------------------------------------


def _sha(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _float(value: Any, inner: str, _: Any) -> bool:
    return type(value) is float and (str(value) if inner in ("nan", "inf", "-inf") else value.hex()) == inner


def _ndarray(value: Any, inner: dict[str, Any], _: Any) -> bool:
    return (
        type(value) is np.ndarray
        and value.flags.writeable
        and value.dtype.str == inner["dtype"]
        and list(value.shape) == inner["shape"]
        and _sha(np.ascontiguousarray(value).tobytes()) == inner["sha256"]
    )


def _tensor(value: Any, inner: dict[str, Any], _: Any) -> bool:
    import torch

    return (
        type(value) is torch.Tensor
        and str(value.dtype) == f"torch.{inner['dtype']}"
        and list(value.shape) == inner["shape"]
        and _sha(value.contiguous().numpy().tobytes()) == inner["sha256"]
    )


def _image(value: Any, inner: dict[str, Any], _: Any) -> bool:
    """The decoded image; of a JPEG file only mode and size are recorded here (its pixels: see the golden tests)."""
    from PIL import Image

    same = isinstance(value, Image.Image) and value.mode == inner["mode"] and list(value.size) == inner["size"]
    return same and ("len" in inner or _sha(value.tobytes()) == inner["sha256"])


def _npscalar(value: Any, inner: dict[str, Any], _: Any) -> bool:
    if not isinstance(value, np.generic) or value.dtype.str != np.dtype(inner["dtype"]).str:
        return False
    if value.dtype.kind == "f":
        return _float(float(value), inner["value"], None)
    return int(value) == inner["value"]


def _png(value: Any, inner: dict[str, Any], _: Any) -> bool:
    return _image(value, {key: inner[key] for key in ("mode", "size", "len")}, _) and (
        _sha(value.tobytes()) == inner["pixels_sha256"]
    )


_LEAVES = {
    "npscalar": _npscalar,
    "decimal": lambda value, inner, want: type(value) is Decimal and str(value) == inner,
    "png_file": _png,
    "none": lambda value, inner, want: value is None,
    "bool": lambda value, inner, want: type(value) is bool and value == inner,
    "int": lambda value, inner, want: type(value) is int and value == inner,
    "str": lambda value, inner, want: type(value) is str and value == inner,
    "float": _float,
    "bytes": lambda value, inner, want: type(value) is bytes and value == base64.b64decode(inner),
    "bytes_sha256": lambda value, inner, want: (
        type(value) is bytes and len(value) == want["len"] and _sha(value) == inner
    ),
    "ndarray": _ndarray,
    "tensor": _tensor,
    "pil": _image,
    "jpeg_file": _image,
    "pickle": lambda value, inner, want: repr(value) == inner,
}


# -- containers -----------------------------------------------------------------------------


def _sequence(kind: type) -> Any:
    def compare(value: Any, inner: list[Any]) -> str:
        if type(value) is not kind or len(value) != len(inner):
            return f": {value!r} is not a {kind.__name__} of {len(inner)}"
        for i, (child, want) in enumerate(zip(value, inner, strict=True)):
            if wrong := difference(child, want):
                return f"[{i}]{wrong}"
        return ""

    return compare


def _mapping(value: Any, kind: type, pairs: list[Any]) -> str:
    """Keys in order, of the very type; then the values."""
    if type(value) is not kind or len(value) != len(pairs):
        return f": {value!r} is not a {kind.__name__} of {len(pairs)}"
    for (key, child), (want_key, want) in zip(value.items(), pairs, strict=True):
        if difference(key, want_key):
            return f": key {key!r} is not {want_key}"
        if wrong := difference(child, want):
            return f"[{key!r}]{wrong}"
    return ""


def _dict(value: Any, inner: dict[str, Any]) -> str:
    return _mapping(value, dict, [[{"str": key}, child] for key, child in inner.items()])


def _defaultdict(value: Any, inner: dict[str, Any]) -> str:
    wrong = _mapping(value, defaultdict, inner["items"])
    return wrong or ("" if value.default_factory.__name__ == inner["factory"] else f": factory of {value!r}")


def _deque(value: Any, inner: dict[str, Any]) -> str:
    wrong = _sequence(deque)(value, inner["items"])
    return wrong or ("" if value.maxlen == inner["maxlen"] else f": maxlen of {value!r} is not {inner['maxlen']}")


_CONTAINERS = {
    "list": _sequence(list),
    "tuple": _sequence(tuple),
    "dict": _dict,
    "dict_items": lambda value, inner: _mapping(value, dict, inner),
    "odict": lambda value, inner: _mapping(value, OrderedDict, inner),
    "defaultdict": _defaultdict,
    "deque": _deque,
}
