"""Features as cards and schemas say them: the types that `datasets` makes of them, and values as it gives them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import hub_samples

from lazystore.errors import SampleError, UnsupportedError
from lazystore.hub.data_files import NotDirect
from lazystore.hub.features import Decoding, card_features, decoding_of, fits, schema_features, stored_as

VALUES = st.sampled_from(
    ["string", "large_string", "binary", "bool", "int8", "uint16", "int64", "float16", "float32", "float64", "null",
     "date32", "timestamp[us]", "timestamp[s, tz=UTC]", "time64[us]", "duration[ms]", "decimal128(10, 2)"]
)  # fmt: skip
KEYS = st.sampled_from(["a", "b", "long name", "ключ"])


def leaves() -> st.SearchStrategy[Any]:
    return st.one_of(
        VALUES.map(lambda name: {"dtype": name, "_type": "Value"}),
        st.just({"names": ["no", "yes"], "_type": "ClassLabel"}),
        st.just({"_type": "Image"}),
        st.just({"mode": "RGB", "decode": False, "_type": "Image"}),
        st.just({"sampling_rate": 16_000, "_type": "Audio"}),
        st.just({"languages": ["en", "de"], "_type": "Translation"}),
    )


FEATURES = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        inner.map(lambda one: {"feature": one, "_type": "List"}),
        inner.map(lambda one: {"feature": one, "length": 3, "_type": "List"}),
        inner.map(lambda one: {"feature": one, "_type": "LargeList"}),
        st.dictionaries(KEYS, inner, min_size=1, max_size=3),
    ),
    max_leaves=4,
)


@given(FEATURES)
@settings(max_examples=100, deadline=None)
def test_features_are_stored_as_datasets_stores_them(feature: Any) -> None:
    import datasets

    theirs = datasets.Features.from_dict({"column": feature})
    assert stored_as(feature) == theirs.arrow_schema.field("column").type
    from_card = card_features({"features": theirs._to_yaml_list()})
    assert from_card is not None
    assert stored_as(from_card["column"]) == theirs.arrow_schema.field("column").type
    assert _kinds(from_card["column"]) == _kinds(theirs.to_dict()["column"])


def _kinds(feature: Any) -> list[str]:
    """The names of all types in a feature."""
    if isinstance(feature, dict):
        own = [feature["_type"]] if isinstance(feature.get("_type"), str) else []
        return own + [kind for value in feature.values() for kind in _kinds(value)]
    return [kind for one in feature for kind in _kinds(one)] if isinstance(feature, list) else []


@pytest.mark.parametrize(
    "written",
    [
        [{"name": "x", "sequence": "string"}],
        [{"name": "x", "sequence": {"class_label": {"names": {"0": "a", "1": "b"}}}}],
        [{"name": "x", "sequence": [{"name": "a", "dtype": "string"}, {"name": "b", "sequence": "int32"}]}],
        [{"name": "x", "list": [{"name": "a", "dtype": "string"}, {"name": "b", "dtype": "image"}]}],
        [{"name": "x", "sequence": "float32", "length": 4}],
        [{"name": "x", "struct": [{"name": "a", "dtype": {"audio": {"sampling_rate": 8000}}}]}],
        [{"name": "x", "dtype": "audio"}, {"name": "y", "large_list": "string"}],
    ],
)
def test_older_ways_to_write_cards(written: list[Any]) -> None:
    import datasets

    found = card_features({"features": written})
    theirs = datasets.Features._from_yaml_list(written).arrow_schema
    assert found is not None
    assert {name: stored_as(one) for name, one in found.items()} == {one.name: one.type for one in theirs}


def test_older_sequences_of_structs_in_schemas() -> None:
    import datasets

    feature = {"feature": {"a": hub_samples.value("string"), "b": {"_type": "Image"}}, "_type": "Sequence"}
    expected = datasets.Features.from_dict({"x": feature}).arrow_schema.field("x").type
    assert stored_as(feature) == expected
    schema = _schema({"x": feature}, [("x", expected)])
    assert schema_features(schema) == {"x": feature}
    assert decoding_of("n", schema_features(schema), schema, None) is not None


def test_a_card_without_features() -> None:
    assert card_features({}) is None
    assert card_features({"features": []}) is None


@pytest.mark.parametrize(
    "written", [[{"dtype": "string"}], "text", [{"name": "x", "dtype": 5}], [{"name": "x", "list": 7}]]
)
def test_cards_that_are_not_understood(written: Any) -> None:
    with pytest.raises(NotDirect, match=r"not understood|not read here"):
        found = card_features({"features": written})
        assert found is not None
        stored_as(found["x"])


@pytest.mark.parametrize("kind", ["Array2D", "Video", "Pdf", "Unheard", "Json"])
def test_features_that_are_not_read_here(kind: str) -> None:
    with pytest.raises(NotDirect, match=kind):
        stored_as({"_type": kind, "shape": [2, 2], "dtype": "int8"})


# -- schemas -----------------------------------------------------------------------------------


def _schema(features: dict[str, Any], fields: Any) -> pa.Schema:
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def test_what_a_schema_says_counts_for_columns_of_that_very_type() -> None:
    import datasets

    image = stored_as({"_type": "Image"})
    features = {name: {"_type": "Image"} for name in ("good", "other", "firm")} | {"gone": {"_type": "Image"}}
    schema = _schema(
        features, [("good", image), ("other", pa.binary()), pa.field("firm", image, nullable=False), ("new", pa.int8())]
    )
    found = schema_features(schema)
    assert found == {"good": {"_type": "Image"}, "other": None, "firm": None, "new": None}
    theirs = datasets.Features.from_arrow_schema(schema)
    assert {name for name, one in theirs.items() if isinstance(one, datasets.Image)} == {"good"}


def test_only_wanted_columns_have_to_be_understood() -> None:
    schema = _schema({"a": {"_type": "Unheard"}, "b": hub_samples.value("int8")}, [("a", pa.int8()), ("b", pa.int8())])
    assert schema_features(schema, ["b"]) == {"a": None, "b": hub_samples.value("int8")}
    with pytest.raises(NotDirect, match="Unheard"):
        schema_features(schema)


def test_a_schema_that_says_nonsense() -> None:
    with pytest.raises(NotDirect, match="not understood"):
        schema_features(pa.schema([("a", pa.int8())], {"huggingface": "{"}))


# -- casts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("have", "want", "same"),
    [
        (pa.int64(), pa.int64(), True),
        (pa.int32(), pa.int64(), True),
        (pa.uint8(), pa.int16(), True),
        (pa.int64(), pa.float64(), False),
        (pa.float32(), pa.float64(), True),
        (pa.float64(), pa.float32(), False),
        (pa.large_string(), pa.string(), True),
        (pa.string(), pa.binary(), False),
        (pa.null(), pa.string(), True),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), True),
        (pa.list_(pa.int8()), pa.large_list(pa.int64()), True),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8()), True),
        (pa.list_(pa.int8()), pa.list_(pa.int8(), 2), False),
        (pa.struct([("a", pa.int8()), ("b", pa.int8())]), pa.struct([("b", pa.int8()), ("a", pa.int8())]), True),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int8()), ("b", pa.int8())]), False),
        (pa.timestamp("us"), pa.timestamp("ms"), False),
        (pa.bool_(), pa.int8(), False),
    ],
    ids=str,
)
def test_casts_that_do_not_show(have: pa.DataType, want: pa.DataType, same: bool) -> None:
    assert fits(have, want) is same


# -- decoding ----------------------------------------------------------------------------------


def decode(feature: Any, value: Any, type_: Any = None) -> Any:
    schema = pa.schema([("x", type_ or stored_as(feature))])
    decoding = decoding_of("org/name", {"x": feature}, schema, None)
    assert decoding is not None
    decoding = pickle.loads(pickle.dumps(decoding))
    assert isinstance(decoding, Decoding)
    return decoding({"x": value, "other": 1})["x"]


def test_plain_columns_need_no_decoding() -> None:
    features = {"a": None, "b": {"names": ["x"], "_type": "ClassLabel"}, "c": {"decode": False, "_type": "Image"}}
    image = stored_as({"_type": "Image"})
    schema = pa.schema([("a", pa.list_(pa.timestamp("us"))), ("b", pa.int64()), ("c", image), ("d", image)])
    assert decoding_of("n", features, schema, None) is None
    assert decoding_of("n", {**features, "d": {"_type": "Image"}}, schema, ["a", "b"]) is None


def test_images_anywhere() -> None:
    cell = {"bytes": hub_samples.image(2), "path": None}
    image = {"_type": "Image"}
    assert decode(image, dict(cell)).size == (10, 6)
    assert decode({**image, "mode": "L"}, dict(cell)).mode == "L"
    assert decode(image, None) is None
    pages = decode({"feature": image, "_type": "List"}, [dict(cell), None])
    assert pages[0].size == (10, 6)
    assert pages[1] is None
    assert decode({"front": image, "n": hub_samples.value("int8")}, {"front": dict(cell), "n": 1})["front"].size == (
        10,
        6,
    )


def test_recordings_that_would_have_to_be_resampled() -> None:
    cell = {"bytes": hub_samples.wav(1), "path": "a.wav"}
    found = decode({"_type": "Audio"}, dict(cell))
    assert (found["path"], found["sampling_rate"], found["array"].shape) == ("a.wav", hub_samples.RATE, (101,))
    with pytest.raises(UnsupportedError, match=r"8000 Hz is to be resampled to 16000 Hz.*via='datasets'"):
        decode({"sampling_rate": 16_000, "_type": "Audio"}, dict(cell))


def test_cells_with_a_path_only_are_not_opened() -> None:
    with pytest.raises(SampleError, match=r"column 'x'.*path"):
        decode({"_type": "Image"}, {"bytes": None, "path": "/etc/passwd"})


@pytest.mark.parametrize("type_", [pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.duration("ns")])
def test_times_in_nanoseconds_are_left_as_they_are(type_: Any) -> None:
    assert decoding_of("n", {"x": None}, pa.schema([("x", type_)]), None) is None


@pytest.mark.parametrize("type_", [pa.map_(pa.string(), pa.int8()), pa.list_(pa.map_(pa.string(), pa.int8())),
                                   pa.month_day_nano_interval()])  # fmt: skip
def test_types_that_datasets_does_not_have(type_: Any) -> None:
    with pytest.raises(NotDirect, match="column of type"):
        decoding_of("n", {"x": None}, pa.schema([("x", type_)]), None)
