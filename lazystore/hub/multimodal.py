"""`MultimodalDataset`: samples of one shape out of the datasets of a task, streamed and interleaved.

Here: the datasets as one, their position, and what happens to samples that fail. Which datasets there are, their
order, what a sample looks like, and reading are in ``registry``, ``interleave``, ``samples`` and ``wrapper``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import operator
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from lazystore.cache.locks import forkable_lock
from lazystore.config import default_memory, parse_bytes, whole
from lazystore.errors import ConfigError, MissingExtraError, SyntheticDataWarning
from lazystore.hub.bad_samples import POLICIES, partial_sample, sample_error
from lazystore.hub.deprecated import DeprecatedLoading
from lazystore.hub.interleave import STOPS
from lazystore.hub.member import Standin, open_members
from lazystore.hub.mix import Drawn, Mix, MixedPass
from lazystore.hub.registry import DatasetSpec, choose
from lazystore.hub.samples import SYNTHETIC, process
from lazystore.hub.selecting import sources_of, weights_of
from lazystore.hub.tokenizing import encoder, max_length_of
from lazystore.streaming.torch_kind import TorchKind

__all__ = ["MultimodalDataset"]

_log = logging.getLogger(__name__)

FALLBACKS = ("synthetic", "local", "raise")


class MultimodalDataset(DeprecatedLoading, TorchKind):
    """Samples of one or several datasets as one stream of dicts, all of the same shape.

    Parameters:
        config: what the model wants: any object or mapping; of its attributes ``max_length`` (``max_seq_length``,
            ``max_position_embeddings``), ``image_size`` and ``sampling_rate`` (both of synthetic samples) and
            ``pad_token_id`` are used where they are there. May be None.
        tokenizer: see :func:`lazystore.hub.tokenizing.encoder`; None: samples have no tokens.
        split: of each dataset; their specs say what they call it.
        dataset_name: ``"auto"``: the first dataset of the task; ``"all"``: all of the task, of every task without one;
            a name; or several. :func:`registered_datasets` has the names, :func:`register_dataset` adds to them.
        task_type: ``"code"``, ``"vision"``, ``"audio"``, ``"text"`` or ``"financial"``, or a registered dataset's own;
            None: ``"text"`` for ``"auto"``.
        use_streaming: False: ``datasets`` downloads hub datasets first, to its own cache on disk.
        cache_size: samples that are kept, all datasets together.
        memory: bytes that are kept and read ahead, all datasets together; default: 256 MiB, a quarter of the memory
            limit if that is less.
        prefetch: ``"auto"``, samples of each dataset to read ahead, or 0: see :class:`StreamingDatasetWrapper`.
        weights: how often each dataset comes, relative to the others: in the order of the datasets, or by name.
            Default: in proportion to their lengths where all are known, else equally often.
        seed: of the interleaving and of synthetic samples.
        stop: ``"all"``: a dataset that ends drops out, and the pass ends with the last one; ``"first"``: it ends when
            a dataset that has ended is due.
        fallback: when a dataset cannot be read (any more), after all retries. ``"synthetic"``: made-up samples of its
            shape go on: each has ``"synthetic": True``, the first brings a :class:`SyntheticDataWarning`, and
            ``is_synthetic`` and ``stats()`` tell. ``"local"``: ``datasets`` goes on, by downloading if need be.
            ``"raise"``: the error. Holds until :meth:`set_epoch` or :meth:`load_state_dict`.
        synthetic_size: samples to make up for a dataset whose length is not known.
        on_bad_sample: when a sample cannot be processed: ``"raise"``: SampleError, the next sample follows;
            ``"skip"``: it is left out; ``"yield"``: what could be had of it comes, with ``"error"``. All are counted.
        max_length: tokens of a sample; default: the config's.
        columns: the only ones to read: names, or names by dataset.
        token: for the hub.
        timeout: seconds for one read, all its tries included; retries: of a read.
        transform: applied to each sample last.

    A sample has ``task``, ``dataset`` and ``modalities``, and of ``text``, ``input_ids``, ``attention_mask``,
    ``image``, ``audio`` and ``labels`` what it has; see :func:`lazystore.hub.samples.process`.

    ``ds[i]`` is sample ``i`` of a pass (of a shuffled ``StreamingDataset``: in stored order). What its dataset can do
    at random costs a read, the rest is streamed up to there or re-read (see the wrapper). ``len`` counts samples of the
    sources, also those that will be skipped.

    Threads: any number, of one pass (each sample goes to one of them) or of several. Fork and spawn: a copy begins
    where this one was told to; DataLoader workers and ranks share the samples of each dataset. Pickling: by
    arguments and position; the copy opens its datasets anew. Making one asks the hub what its datasets consist of, all
    at once; samples are read when they are asked for. :meth:`close` ends what reads.

    Raises:
        ConfigError: arguments that cannot work, a split or columns that are not there. MissingExtraError. With
            ``fallback="raise"``: DatasetNotFoundError, HubAccessError, FetchError, now or while reading.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        split: str = "train",
        dataset_name: str | Sequence[str] = "auto",
        task_type: str | None = None,
        use_streaming: bool = True,
        cache_size: int = 1000,
        *,
        memory: int | str | None = None,
        prefetch: str | int | None = "auto",
        weights: Sequence[float] | Mapping[str, float] | None = None,
        seed: int = 42,
        stop: str = "all",
        fallback: str = "synthetic",
        synthetic_size: int = 1000,
        on_bad_sample: str = "raise",
        max_length: int | None = None,
        columns: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        token: str | bool | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        _check(stop, fallback, on_bad_sample, transform)
        self.config, self.tokenizer, self.split = config, tokenizer, split
        self._specs = specs = choose(dataset_name, task_type)
        self._encode = encoder(tokenizer, max_length_of(config) if max_length is None else max_length)
        self._on_bad_sample, self._transform = on_bad_sample, transform
        seed, size = whole("seed", seed, least=0), whole("synthetic_size", synthetic_size)
        if seed >= 1 << 64:
            raise ConfigError(f"seed={seed} is not below 2**64")
        cache_size = whole("cache_size", cache_size, hint="samples")
        budget = default_memory() if memory is None else parse_bytes(memory)
        sizes = {"cache_size": max(1, cache_size // len(specs)), "memory": max(1, budget // len(specs))}
        shared = {**sizes, "prefetch": prefetch, "timeout": timeout, "retries": retries}
        sources = sources_of(specs, split, columns, {"token": token, "streaming": bool(use_streaming)})
        weighed = weights_of(weights, specs)
        identity = json.dumps([[spec.name for spec in specs], split, seed, stop, weighed])
        standins = [Standin(spec, size, seed, config) if fallback == "synthetic" else None for spec in specs]
        members = open_members(
            [
                (spec, source, {**shared, **own}, fallback, standin)
                for spec, (source, own), standin in zip(specs, sources, standins, strict=True)
            ]
        )
        self._mix = Mix(members, weighed, seed, stop, hashlib.sha256(identity.encode()).hexdigest()[:16])
        self._counted: Counter[str] = Counter()
        self._lock = forkable_lock()
        self._warned = False

    # -- samples ------------------------------------------------------------------------

    def __iter__(self) -> MixedPass:
        """A pass: the samples of this reader, from where the epoch begins or a loaded state stopped."""
        return self._mix.begin(self._finish)

    @property
    def total(self) -> int | None:
        """Samples of a pass, on all ranks: ``ds[0] .. ds[total - 1]``; None where that is not known."""
        return self._mix.order().length

    def __len__(self) -> int:
        """Samples of a pass on this rank, those that will be skipped included.

        Raises:
            TypeError: a dataset's length is not known before it has been read.
        """
        length = self._mix.rank_length
        if length is None:
            raise TypeError("the length of this MultimodalDataset is not known: it streams a dataset of unknown length")
        return length

    def __getitem__(self, index: Any) -> Any:
        """Sample ``index`` of a pass; from the end if negative; a list of samples for a slice.

        Raises:
            ItemIndexError: beyond the end. SampleError: it cannot be processed, ``on_bad_sample="skip"`` included.
        """
        if isinstance(index, slice):
            total = self.total
            return self.get_many(range(*index.indices(len(self) if total is None else total)))
        return self.get_many([operator.index(index)])[0]

    def get_many(self, indices: Iterable[int]) -> list[Any]:
        """Samples by number, in the order asked; those of one dataset are asked of it together."""
        found = []
        for drawn in self._mix.get_many(map(operator.index, indices)):
            samples = self._finish(drawn, skip=False)
            found.append(samples[0])
        return found

    def __getitems__(self, indices: Iterable[int]) -> list[Any]:
        """:meth:`get_many`, as torch's loaders ask for it."""
        return self.get_many(indices)

    def _process_sample(self, sample: Mapping[str, Any], spec: DatasetSpec, index: int) -> dict[str, Any]:
        """What is made of a raw sample; to be overridden. Called in the thread that takes the sample, outside locks.

        Parameters:
            sample: columns and values, as the dataset has them.
            spec: the dataset.
            index: the sample's number in it.
        """
        return process(spec, sample, index, self._encode, self.config)

    def _finish(self, drawn: Drawn, *, skip: bool = True) -> tuple[Any, ...]:
        """The sample to hand out, as a tuple; an empty one for a bad sample that is to be skipped."""
        spec = self._specs[drawn.part]
        made_up = isinstance(drawn.row, Mapping) and drawn.row.get(SYNTHETIC) is True
        if made_up:
            self._warn(drawn.part)
        try:
            sample: Any = self._process_sample(drawn.row, spec, drawn.number)
            if self._transform is not None:
                sample = self._transform(sample)
        except (ConfigError, MissingExtraError, MemoryError):
            raise  # nothing is wrong with the sample
        except Exception as error:  # noqa: BLE001 - whatever processing raises is the sample's; what becomes of it is chosen
            with self._lock:
                self._counted["bad_samples"] += 1
            bad = sample_error(error, spec, drawn.number)
            if self._on_bad_sample == "raise" or (self._on_bad_sample == "skip" and not skip):
                raise bad from bad.__cause__
            _log.debug("%s: %s", self._on_bad_sample, bad)
            if self._on_bad_sample == "skip":
                return ()
            sample = partial_sample(spec, drawn.row, drawn.number, bad, self.config)
        with self._lock:
            self._counted["samples"] += 1
            self._counted["synthetic_samples"] += made_up
        return (sample,)

    def _warn(self, part: int) -> None:
        """Say once that samples are made up."""
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            spec, standin = self._specs[part], self._mix.members[part].standin
            cause = standin.cause if standin is not None else None
            warnings.warn(
                f"samples of {spec.name!r} are made up from here on, marked by 'synthetic': its data could not be read"
                f" ({cause}); fallback='raise' makes this an error",
                SyntheticDataWarning,
                stacklevel=_above_us(),
            )

    # -- position -----------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The one that was set; sources that shuffle anew for each pass go on by themselves."""
        return self._mix.epoch

    def set_epoch(self, epoch: int) -> None:
        """Passes from now on are of this epoch, from its beginning; datasets that could not be read are tried again.

        The epoch it is in already keeps its position.
        """
        self._mix.set_epoch(whole("epoch", epoch, least=0))

    def state_dict(self) -> dict[str, Any]:
        """Where the latest pass stands, as plain JSON: after the samples that were handed out, skipped or refused."""
        return self._mix.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Begin the next passes where ``state`` stopped; datasets that could not be read then are tried again.

        Parameters:
            force: accept another split, seed, ``stop`` or ``weights``, and datasets that have changed.

        Raises:
            FormatError: not a state of a MultimodalDataset. ConfigError: of another one.
        """
        self._mix.load_state_dict(state, force)

    # -- what it is ---------------------------------------------------------------------

    @property
    def datasets(self) -> tuple[DatasetSpec, ...]:
        """The datasets, in their order."""
        return self._specs

    @property
    def is_synthetic(self) -> bool:
        """Whether samples of a dataset are made up by now, because it could not be read in this process."""
        return any(member.failed for member in self._mix.members)

    def stats(self) -> dict[str, Any]:
        """Counters, of all passes of this process.

        ``samples`` (handed out), ``bad_samples``, ``synthetic_samples``; ``synthetic``: by dataset, from which sample
        on it is made up and why; ``datasets``: by dataset, its wrapper's counters.
        """
        with self._lock:
            counted = {name: self._counted[name] for name in ("samples", "bad_samples", "synthetic_samples")}
        synthetic = {}
        for member in self._mix.members:
            if member.standin is not None and member.standin.cause is not None:
                synthetic[member.name] = {"from": member.standin.began, "cause": member.standin.cause}
        read = {member.name: member.wrapper.stats() for member in self._mix.members}
        return {**counted, "synthetic": synthetic, "datasets": read}

    def __repr__(self) -> str:
        names = ", ".join(spec.name for spec in self._specs)
        return f"MultimodalDataset({names}; split={self.split!r}{', synthetic' if self.is_synthetic else ''})"

    def close(self) -> None:
        """Stop reading and let go of what is kept; again is nothing."""
        self._mix.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=forkable_lock(), _counted=Counter(), _warned=False)


def _check(stop: Any, fallback: Any, on_bad_sample: Any, transform: Any) -> None:
    for name, value, known in (
        ("stop", stop, STOPS),
        ("fallback", fallback, FALLBACKS),
        ("on_bad_sample", on_bad_sample, POLICIES),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}")
    if transform is not None and not callable(transform):
        raise ConfigError(f"transform={transform!r} is no function of a sample")


def _above_us() -> int:
    """For ``warnings.warn``: the first caller outside this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("lazystore.hub"):
        frame, level = frame.f_back, level + 1
    return level
