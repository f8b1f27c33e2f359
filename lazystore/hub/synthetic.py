"""`SyntheticFeed`: made-up rows in the columns of a dataset, for when the real ones cannot be had.

Each row is a formula of the seed, the dataset's name and the row's number. Rows pass through the same processing as
real ones, which marks them; whether they are wanted at all is decided in ``multimodal``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Self

from lazystore.config import whole
from lazystore.errors import ClosedError, ConfigError, ItemIndexError, MissingExtraError
from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.samples import PROCESSORS, SYNTHETIC, check_spec, column_of
from lazystore.hub.tokenizing import option

if TYPE_CHECKING:
    from lazystore.hub.registry import DatasetSpec

__all__ = ["SyntheticFeed"]

#: What images and recordings are like where the config does not say.
IMAGE_SIZE, SAMPLING_RATE = 64, 16_000
#: The longest and shortest recording, in fractions of a second.
SHORTEST, LONGEST = 0.1, 0.5
#: A synthetic dataset's classes, where the spec names none.
CLASSES = 2
#: Options of a question.
OPTIONS = 4
_NAMES = """
    alder amber anchor apple basin birch bridge candle canyon cedar cloud copper coral cotton delta ember falcon fern
    field flint garden glacier granite harbor hazel island ivory jasper juniper kettle lantern laurel ledger linen
    maple marble meadow mirror mortar needle north oak olive orchard otter paper pebble pepper pine planet quarry
    quartz raven reed river saddle silver spruce stone summer thistle timber tulip umber valley velvet walnut willow
"""
_WORDS = _NAMES.split()


class SyntheticFeed(Feed):
    """A numbered sequence of made-up rows of one dataset.

    Parameters:
        spec: the dataset whose columns the rows have.
        size: rows of a pass.
        seed: rows of equal seeds are equal, on every machine and in every process.
        config: the user's: ``image_size`` (pixels, or height and width; else 64) and ``sampling_rate`` (Hz; else
            16000) are those of the rows. Images are PIL images.

    Texts are 4 to 16 words, labels one of the spec's classes (else 0 or 1), recordings 0.1 to 0.5 s of noise.
    Cost: about 20 us a row, plus 1 ns a byte of its image or recording. Holds nothing.
    Threads, fork and pickling: a value; every row is made when it is asked for.

    Raises:
        ConfigError: the processor is a function and the spec names no columns, so that nobody knows what it reads; a
            size that cannot be.
    """

    random = True
    keeps = True  # making a row is cheaper than keeping it

    def __init__(self, spec: DatasetSpec, size: int, seed: int = 42, config: Any = None) -> None:
        self.spec, self.seed = spec, whole("seed", seed, least=0)
        self.name = f"synthetic {spec.name}"
        self.length: int = whole("synthetic_size", size)
        self._columns = _columns(spec)
        self._image_size = _image_size(option(config, "image_size"))
        rate = option(config, "sampling_rate")
        self._rate = SAMPLING_RATE if rate is None else whole("config.sampling_rate", rate)
        self._first, self._step = 0, 1
        self._closed = False

    @property
    def identity(self) -> str:
        parts = (self.spec.name, self._columns, self.spec.labels, self.seed, self.length, self._image_size, self._rate)
        return hashlib.sha256(repr((*parts, self._first, self._step)).encode()).hexdigest()[:16]

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        self._check()
        return _SyntheticReading(self, position)

    def get(self, index: int) -> dict[str, Any]:
        """One row, with the key :data:`~lazystore.hub.samples.SYNTHETIC`.

        Raises:
            ItemIndexError: beyond the end, or below zero.
        """
        self._check()
        if not 0 <= index < self.length:
            raise ItemIndexError(f"{self.name}: sample {index} of {self.length}")
        rng = Random(f"{self.seed}/{self.spec.name}/{self._first + index * self._step}")
        row = {column: self._value(role, rng) for role, column in self._columns.items()}
        return row | {SYNTHETIC: True}

    def share(self, index: int, count: int) -> Self:
        part = type(self).__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._first, part._step = self._first + index * self._step, self._step * count
        part.length = len(range(index, self.length, count))
        return part

    def close(self) -> None:
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.name} is closed")

    def _value(self, role: str, rng: Random) -> Any:
        if role == "image":
            return _image(rng, *self._image_size)
        if role == "audio":
            return _recording(rng, self._rate)
        if role == "sampling_rate":
            return self._rate
        if role == "label":
            return rng.randrange(len(self.spec.labels) or CLASSES)
        if role == "options":
            return [_words(rng, 2, 5) for _ in range(OPTIONS)]
        if role == "answer" and "options" in self._columns:
            return rng.randrange(OPTIONS)
        return _words(rng, 4, 16).capitalize() + "."


class _SyntheticReading(Reading):
    def __init__(self, feed: SyntheticFeed, position: int) -> None:
        self._feed, self.position = feed, position
        self._closed = False

    def __next__(self) -> dict[str, Any]:
        if self._closed or self.position >= self._feed.length:
            raise StopIteration
        row = self._feed.get(self.position)
        self.position += 1
        return row

    def mark(self) -> Mark:
        return Mark(self.position)

    def close(self) -> None:
        self._closed = True


def _columns(spec: DatasetSpec) -> Mapping[str, str]:
    """The column of each role."""
    if spec.columns:
        return {role: column_of(spec, role)[0] for role in spec.columns}
    if callable(spec.processor):
        raise ConfigError(
            f"dataset {spec.name!r}: its processor is a function and it names no columns, so that no synthetic samples"
            ' can be made; name them with columns=, or choose fallback="raise"'
        )
    check_spec(spec)
    known = PROCESSORS[spec.processor]
    unlike = {"text", "image", "audio"} - set(spec.modalities) - set(known.needs)  # what its samples do not have
    if known.generates:
        unlike.add("label")
    return {role: role for role in (*known.needs, *known.takes) if role not in unlike}


def _image_size(size: Any) -> tuple[int, int]:
    if size is None:
        return IMAGE_SIZE, IMAGE_SIZE
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return whole("config.image_size", size[0]), whole("config.image_size", size[1])
    side = whole("config.image_size", size)
    return side, side


def _words(rng: Random, least: int, most: int) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(least, most)))


def _image(rng: Random, height: int, width: int) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError('images need the pillow package: pip install "lazystore[images]"') from error
    return Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))


def _recording(rng: Random, rate: int) -> dict[str, Any]:
    import numpy as np

    count = max(1, int(rate * rng.uniform(SHORTEST, LONGEST)))
    noise = np.frombuffer(rng.randbytes(2 * count), dtype="<i2").astype(np.float32)
    return {"array": noise / np.float32(1 << 15), "sampling_rate": rate}
