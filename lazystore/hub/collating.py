"""`MultimodalCollator`: a list of samples to one batch, each modality padded or stacked on its own.

For ``DataLoader(..., collate_fn=)`` or by hand. Nothing is resized, resampled or cut here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lazystore.config import whole
from lazystore.errors import ConfigError, MissingExtraError
from lazystore.hub.tokenizing import pad_token_id

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Convert = Callable[[Array], Any]

__all__ = ["IGNORED", "MultimodalCollator"]

#: The label of padding: what ``torch.nn.CrossEntropyLoss`` leaves out by default (its ``ignore_index``).
IGNORED = -100
#: Keys that every sample has, and that stay lists.
_HEAD = ("task", "dataset", "modalities")
_SIDES = ("right", "left")


class MultimodalCollator:
    """Called with samples as :class:`MultimodalDataset` yields them, it gives a batch: one dict of

    - ``task``, ``dataset``, ``modalities``: lists, one entry a sample;
    - ``text``: a list of strings;
    - ``input_ids``, ``attention_mask``: int64, (samples, tokens of the longest), padded with the pad token and 0;
    - ``image``: (samples, height, width[, channels]) where all have one shape and type, else a list of arrays.
      PIL images: palettes become RGB or RGBA, bitmaps grey values, CMYK and other print modes RGB;
    - ``audio``: ``{"array": float32 (samples, [channels,] longest), padded with 0, "lengths", "sampling_rate"}``, the
      latter two int64, one number a sample; the array is a list where some have channels and others not;
    - ``labels``: numbers as one array (int64, or float32 where one of them is no whole number); labels of tokens, as
      many as the sample has tokens, padded with -100 as ``input_ids`` are; lists of one length stacked; anything
      else, and several kinds in one batch, as a list;
    - ``synthetic``: bool, one a sample, where any was made up;
    - whatever else samples have: numbers and arrays of one shape stacked, other values as a list.
    - ``index``: for each of these keys the numbers of the samples that have it, as int64: a key holds only those.
      Where all samples have it, these are 0, 1, 2, ...; where none has, the key is in neither.

    Parameters:
        tokenizer: its ``pad_token_id`` is used, else that of ``config``, else 0.
        config: the user's.
        pad_token_id: instead of both.
        padding_side: ``"right"`` or ``"left"``, of tokens and their labels.
        multiple_of: token counts are padded up to a multiple of this.
        tensors: ``"torch"`` or ``"numpy"``. ``"auto"``: torch if this process has imported it by then, as every
            ``DataLoader`` does.

    Raises:
        ConfigError: an argument that cannot be. When called: no samples, or something that is no sample.
        MissingExtraError: ``tensors="torch"`` without torch.

    Cost: one copy of what is padded or stacked. Threads, fork and pickling: a value.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        config: Any = None,
        *,
        pad_token_id: int | None = None,
        padding_side: str = "right",
        multiple_of: int = 1,
        tensors: str = "auto",
    ) -> None:
        if padding_side not in _SIDES:
            raise ConfigError(f"padding_side={padding_side!r} must be one of {', '.join(_SIDES)}")
        if tensors not in ("auto", "numpy", "torch"):
            raise ConfigError(f"tensors={tensors!r} must be one of auto, numpy, torch")
        self.pad_token_id = _pad_id(tokenizer, config, pad_token_id)
        self.padding_side, self.tensors = padding_side, tensors
        self.multiple_of = whole("multiple_of", multiple_of)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch."""
        import numpy as np

        samples = list(samples)
        _check(samples)
        convert = _converter(self.tensors)
        batch: dict[str, Any] = {}
        index: dict[str, Any] = {}
        for key in dict.fromkeys(key for sample in samples for key in sample):
            if key in _HEAD:
                batch[key] = [sample.get(key) for sample in samples]
                continue
            having = [number for number, sample in enumerate(samples) if key in sample or key == "synthetic"]
            index[key] = convert(np.array(having, np.int64))
            try:
                batch[key] = self._collated(key, [samples[number] for number in having], convert)
            except (ValueError, TypeError, IndexError) as error:
                raise ConfigError(f"samples with this {key!r} cannot be collated: {error}") from error
        return batch | {"index": index}

    def _collated(self, key: str, samples: list[Mapping[str, Any]], convert: Convert) -> Any:
        import numpy as np

        values = [sample.get(key) for sample in samples]
        if key == "synthetic":
            return convert(np.array([value is True for value in values]))
        if key in ("input_ids", "attention_mask"):
            return convert(self._padded(values, self.pad_token_id if key == "input_ids" else 0))
        if key == "image":
            return _stacked([_pixels(value) for value in values], convert)
        recordings = [
            value for value in values if isinstance(value, Mapping) and {"array", "sampling_rate"} <= set(value)
        ]
        if key == "audio" and len(recordings) == len(values):
            return _recordings(recordings, convert)
        if key == "labels":
            return self._labels(values, samples, convert)
        return _others(values, convert)

    def _padded(self, values: Sequence[Any], fill: int) -> Array:
        import numpy as np

        rows = [np.asarray(value, np.int64) for value in values]
        longest = max(map(len, rows))
        padded = np.full((len(rows), -(-longest // self.multiple_of) * self.multiple_of), fill, np.int64)
        for row, tokens in zip(padded, rows, strict=True):
            if self.padding_side == "right":
                row[: len(tokens)] = tokens
            else:
                row[len(row) - len(tokens) :] = tokens
        return padded

    def _labels(self, values: list[Any], samples: list[Mapping[str, Any]], convert: Convert) -> Any:
        import numpy as np

        arrays = [_array(value) for value in values]
        if all(array is not None and array.ndim == 0 for array in arrays):
            numbers = np.array(arrays)
            return convert(numbers.astype(np.float32 if numbers.dtype.kind == "f" else np.int64))
        if all(
            array is not None and array.ndim == 1 and array.dtype.kind in "iu" and len(array) == _tokens(sample)
            for array, sample in zip(arrays, samples, strict=True)
        ):
            return convert(self._padded(values, IGNORED))
        return _others(values, convert)


def _tokens(sample: Mapping[str, Any]) -> int:
    """How many tokens it has; -1 without any."""
    return len(sample["input_ids"]) if "input_ids" in sample else -1


def _pad_id(tokenizer: Any, config: Any, given: int | None) -> int:
    return pad_token_id(tokenizer, config) if given is None else whole("pad_token_id", given, least=0)


def _check(samples: list[Any]) -> None:
    if not samples:
        raise ConfigError("a batch of no samples cannot be collated")
    for number, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            if isinstance(sample, Exception):  # of on_bad_sample="yield"
                raise sample
            raise ConfigError(f"sample {number} of the batch is a {type(sample).__name__}, not a sample's dict")


def _converter(tensors: str) -> Convert:
    """From array to what the batch is to hold."""
    if tensors == "numpy" or (tensors == "auto" and "torch" not in sys.modules):
        return lambda array: array
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError('tensors="torch" needs torch: pip install "lazystore[torch]"') from error
    return torch.from_numpy  # type: ignore[no-any-return]


def _array(value: Any) -> Array | None:
    """A number, or an array or list of numbers, as an array; None for anything else."""
    import numpy as np

    if not isinstance(value, (bool, int, float, list, tuple)) and not hasattr(value, "__array__"):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # lists of unequal lengths, tensors that are elsewhere
        return None
    return array if array.dtype.kind in "biuf" else None


def _others(values: list[Any], convert: Convert) -> Any:
    arrays = [_array(value) for value in values]
    found = [array for array in arrays if array is not None]
    if len(found) < len(values) or len({(array.shape, array.dtype.kind) for array in found}) > 1:
        return [
            value if array is None or not array.ndim or isinstance(value, (list, tuple)) else convert(_own(array))
            for value, array in zip(values, arrays, strict=True)
        ]
    return _stacked(found, convert)


def _stacked(arrays: list[Array], convert: Convert) -> Any:
    import numpy as np

    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        return [convert(_own(array)) for array in arrays]
    return convert(np.stack(arrays))


def _own(array: Array) -> Array:
    """A copy in order, which may be written to."""
    import numpy as np

    return np.array(array)


def _pixels(image: Any) -> Array:
    import numpy as np

    mode = getattr(image, "mode", None)
    if isinstance(mode, str):  # a PIL image
        if mode in ("P", "PA"):
            image = image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
        elif mode == "1":
            image = image.convert("L")
        elif mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
            image = image.convert("RGB")
    return np.asarray(image)


def _recordings(values: list[Any], convert: Convert) -> dict[str, Any]:
    import numpy as np

    waves = [np.asarray(value["array"], np.float32) for value in values]
    lengths = [wave.shape[-1] for wave in waves]
    rates = np.array([value["sampling_rate"] for value in values], np.int64)
    if len({wave.shape[:-1] for wave in waves}) > 1:
        array: Any = [convert(_own(wave)) for wave in waves]
    else:
        padded = np.zeros((len(waves), *waves[0].shape[:-1], max(lengths)), np.float32)
        for row, wave in zip(padded, waves, strict=True):
            row[..., : wave.shape[-1]] = wave
        array = convert(padded)
    return {"array": array, "lengths": convert(np.array(lengths, np.int64)), "sampling_rate": convert(rates)}
