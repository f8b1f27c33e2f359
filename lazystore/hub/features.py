"""Features of a hub dataset: what the card or a Parquet schema says its columns are, and how their cells become values.

Cells of the plain types come out of the Parquet reader as they are to be; here is what is left to do about images,
audio and a few others, and whether anything is. What is not known here is :class:`NotDirect`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from lazystore.errors import FormatError, MissingExtraError, SampleError, UnsupportedError
from lazystore.hub.data_files import NotDirect
from lazystore.hub.media import decode_audio, decode_image

__all__ = ["Decoding", "Feature", "card_features", "decoding_of", "fits", "schema_features", "stored_as"]

#: A feature as ``datasets`` writes it into a Parquet schema: a mapping with a ``_type``, one of names (a struct), or
#: a list of one (a list).
Feature: TypeAlias = "Mapping[str, Any] | Sequence[Any]"
Decode: TypeAlias = Callable[[Any], Any]

#: Names of Value's types that pyarrow calls otherwise.
_ALIASES = {"float16": "halffloat", "float32": "float", "float64": "double"}
_DECIMAL = re.compile(r"decimal(128|256)\((\d+), ?(-?\d+)\)")
_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns), ?tz=(.+)\]")
_LISTS = ("large_list", "list", "sequence")


# -- from the card ----------------------------------------------------------------------------


def card_features(info: Mapping[str, Any]) -> dict[str, Feature] | None:
    """Features out of an entry of the card's ``dataset_info``; None: it does not say.

    Raises:
        NotDirect: it says something that is not understood.
    """
    given = info.get("features")
    if not given:
        return None
    if isinstance(given, Mapping):  # as older versions wrote it beside the card
        return dict(given)
    try:
        return _named(given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotDirect(f"the features of its card are not understood: {error!r}") from error


def _named(given: Sequence[Mapping[str, Any]]) -> dict[str, Feature]:
    return {str(one["name"]): _from_yaml({key: value for key, value in one.items() if key != "name"}) for one in given}


def _from_yaml(given: Any) -> Feature:
    """A feature as the card writes it: ``dtype``, ``struct``, or one of the lists first, further settings behind."""
    if isinstance(given, str):
        given = {"dtype": given}
    if isinstance(given, list):
        return _named(given)
    if not given:
        return {}
    kind = next(iter(given))
    more = {key: value for key, value in given.items() if key != kind}
    if kind in _LISTS:
        inner = _from_yaml(given[kind])
        if kind == "sequence" and isinstance(given[kind], list):  # a list of structs is stored as a struct of lists
            assert isinstance(inner, Mapping)
            return {name: {**more, "feature": one, "_type": "List"} for name, one in inner.items()}
        return {**more, "feature": inner, "_type": "LargeList" if kind == "large_list" else "List"}
    if kind == "struct":
        return _named(given["struct"])
    if kind != "dtype":
        return {**(given[kind] or {}), "_type": _camel(kind)}
    if not isinstance(given["dtype"], str):
        return _from_yaml(given["dtype"])
    name = given["dtype"]
    if _value_type(name) is not None:
        return {"dtype": name, "_type": "Value"}
    return {"_type": _camel(name)}


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


# -- from a schema ----------------------------------------------------------------------------


def schema_features(schema: Any, columns: Sequence[str] | None = None) -> dict[str, Feature | None]:
    """Features that a ``pyarrow.Schema`` says its columns have; None: what their types say.

    As ``datasets`` does, what it says counts only for columns that have the very type the feature is stored as.

    Parameters:
        columns: those that are wanted; None: all.

    Raises:
        NotDirect: it says something that is not understood.
    """
    found: Mapping[str, Any] = {}
    written = (schema.metadata or {}).get(b"huggingface")
    if written is not None:
        try:
            found = json.loads(written).get("info", {}).get("features") or {}
        except (ValueError, AttributeError) as error:
            raise NotDirect(f"the features of its schema are not understood: {error!r}") from error
    features: dict[str, Feature | None] = {}
    for field in schema:
        feature = found.get(field.name) if columns is None or field.name in columns else None
        said = feature is not None and field.nullable and field.type.equals(stored_as(feature))
        features[field.name] = feature if said else None
    return features


def stored_as(feature: Feature) -> Any:
    """The Arrow type that a feature is stored as.

    Raises:
        NotDirect: not one that is read here.
    """
    import pyarrow as pa

    if isinstance(feature, Sequence):
        return pa.list_(stored_as(feature[0]))
    kind = feature.get("_type")
    if kind is None or isinstance(kind, Mapping):
        return pa.struct([(name, stored_as(one)) for name, one in feature.items()])
    if kind == "Value":
        type_ = _value_type(feature.get("dtype", ""))
        if type_ is not None:
            return type_
    elif kind == "ClassLabel":
        return pa.int64()
    elif kind in ("Image", "Audio"):
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    elif kind == "Translation":
        return pa.struct([(language, pa.string()) for language in sorted(feature["languages"])])
    elif kind in ("List", "Sequence", "LargeList"):
        return _list_type(kind, feature)
    raise NotDirect(f"it has a feature {kind or feature!r}, which is not read here")


def _list_type(kind: str, feature: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    inner, length = feature["feature"], feature.get("length", -1)
    if kind == "Sequence" and isinstance(inner, Mapping) and "_type" not in inner:
        return pa.struct([(name, _list_type("List", {**feature, "feature": one})) for name, one in inner.items()])
    if kind == "LargeList":
        return pa.large_list(stored_as(inner))
    return pa.list_(stored_as(inner), -1 if length is None else length)


def _value_type(name: str) -> Any:
    """The Arrow type of a Value; None: there is none of this name."""
    import pyarrow as pa

    if found := _DECIMAL.fullmatch(name):
        make = pa.decimal128 if found[1] == "128" else pa.decimal256
        return make(int(found[2]), int(found[3]))
    if found := _TIMESTAMP.fullmatch(name):
        return pa.timestamp(found[1], tz=found[2])
    try:
        return pa.type_for_alias(_ALIASES.get(name, name))
    except ValueError:
        return None


def fits(have: Any, want: Any) -> bool:
    """Whether cells of one Arrow type are the same Python objects after they were cast to another."""
    import pyarrow as pa

    types = pa.types
    if have.equals(want) or types.is_null(have):
        return True
    for kin in (
        (types.is_string, types.is_large_string),
        (types.is_binary, types.is_large_binary),
        (types.is_integer,),
    ):
        if any(one(have) for one in kin) and any(one(want) for one in kin):
            return True
    if types.is_floating(have) and types.is_floating(want):
        return bool(have.bit_width <= want.bit_width)
    if types.is_dictionary(have):
        return fits(have.value_type, want)
    if _is_list(have) and _is_list(want):
        sizes = [type_.list_size if types.is_fixed_size_list(type_) else None for type_ in (have, want)]
        return (sizes[1] is None or sizes[0] == sizes[1]) and fits(have.value_type, want.value_type)
    if types.is_struct(have) and types.is_struct(want):
        mine = {have.field(k).name: have.field(k).type for k in range(have.num_fields)}
        theirs = {want.field(k).name: want.field(k).type for k in range(want.num_fields)}
        return mine.keys() == theirs.keys() and all(fits(mine[name], theirs[name]) for name in mine)
    return False


def _is_list(type_: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_))


# -- decoders ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decoding:
    """What is done to every sample behind the Parquet reader. Threads: immutable. Pickling: by what it does.

    Attributes:
        dataset: in messages.
        columns: what turns the cells of a column into values.
    """

    dataset: str
    columns: tuple[tuple[str, Decode], ...]

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample itself, its cells replaced.

        Raises:
            SampleError: a cell is no image, no recording, or only the path of one.
        """
        for name, decode in self.columns:
            value = sample.get(name)
            if value is not None:
                try:
                    sample[name] = decode(value)
                except FormatError as error:
                    raise SampleError(f"{self.dataset}: column {name!r}: {error}", self.dataset) from error
        return sample


def decoding_of(dataset: str, features: Mapping[str, Feature | None], schema: Any, columns: Any) -> Decoding | None:
    """What is to be done to the samples of a dataset; None: nothing.

    Parameters:
        features: of its columns; None: what the column's type says.
        schema: its ``pyarrow.Schema``.
        columns: those that are wanted; None: all.

    Raises:
        NotDirect: a feature that is not read here.
        MissingExtraError: images or audio, without the package that decodes them.
    """
    found = []
    for name, feature in features.items():
        if columns is None or name in columns:
            if feature is None:
                _check_type(schema.field(name).type)
            elif (decode := _decoder(feature)) is not None:
                found.append((name, decode))
    return Decoding(dataset, tuple(found)) if found else None


def _decoder(feature: Feature) -> Decode | None:
    """What turns a feature's cells into values; None: nothing is to be done."""
    if isinstance(feature, Sequence):
        return _each(_decoder(feature[0]))
    kind = feature.get("_type")
    if kind is None or isinstance(kind, Mapping):
        return _members({name: _decoder(one) for name, one in feature.items()})
    if kind in ("List", "Sequence", "LargeList"):
        inner = feature["feature"]
        if kind == "Sequence" and isinstance(inner, Mapping) and "_type" not in inner:
            return _members({name: _each(_decoder(one)) for name, one in inner.items()})
        return _each(_decoder(inner))
    if kind == "Image" and feature.get("decode", True):
        return _image_decoder(feature.get("mode"))
    if kind == "Audio" and feature.get("decode", True):
        return _audio_decoder(feature.get("sampling_rate"))
    _check_type(stored_as(feature))
    return None


def _check_type(type_: Any) -> None:
    """The Python objects of an Arrow type are samples' values as pyarrow makes them.

    Raises:
        NotDirect: ``datasets`` does not have the type.
    """
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(type_) or _is_list(type_):
        _check_type(type_.value_type)
    elif types.is_struct(type_):
        for number in range(type_.num_fields):
            _check_type(type_.field(number).type)
    elif types.is_nested(type_) or isinstance(type_, pa.BaseExtensionType) or types.is_interval(type_):
        raise NotDirect(f"it has a column of type {type_}")


def _each(decode: Decode | None) -> Decode | None:
    return None if decode is None else partial(_decode_each, decode)


def _decode_each(decode: Decode, values: list[Any]) -> list[Any]:
    return [None if value is None else decode(value) for value in values]


def _members(decoders: Mapping[str, Decode | None]) -> Decode | None:
    some = {name: decode for name, decode in decoders.items() if decode is not None}
    return partial(_decode_members, some) if some else None


def _decode_members(decoders: Mapping[str, Decode], value: dict[str, Any]) -> dict[str, Any]:
    for name, decode in decoders.items():
        if value.get(name) is not None:
            value[name] = decode(value[name])
    return value


# -- images and audio -------------------------------------------------------------------------


def _image_decoder(mode: str | None) -> Decode:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtraError('images need pillow: pip install "lazystore[images]"') from None
    return partial(_image, mode)


def _image(mode: str | None, value: Any) -> Any:
    image = decode_image(value)
    return image.convert(mode) if mode and mode != image.mode else image


def _audio_decoder(rate: int | None) -> Decode:
    try:
        import soundfile  # noqa: F401
    except (ImportError, OSError):  # OSError: the package without the library
        raise MissingExtraError('audio needs soundfile: pip install "lazystore[audio]"') from None
    return partial(_audio, rate)


def _audio(rate: int | None, value: Any) -> dict[str, Any]:
    """``array`` (float32, one channel), ``sampling_rate`` in Hz, ``path``."""
    sound = decode_audio(value)
    if rate is not None and rate != sound["sampling_rate"]:
        raise UnsupportedError(
            f"a recording of {sound['sampling_rate']} Hz is to be resampled to {rate} Hz, which lazystore does not do: "
            "read the dataset with via='datasets'"
        )
    return {"path": value.get("path"), **sound}
