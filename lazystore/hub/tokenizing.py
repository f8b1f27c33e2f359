"""`Encoder`: text to token numbers, with any tokenizer.

How a tokenizer wants to be asked is decided once, when the encoder is made, by rules that are written down at
:func:`encoder`. What text is encoded, and padding, are not here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lazystore.cache.locks import forkable_lock
from lazystore.config import whole
from lazystore.errors import ConfigError, FormatError

if TYPE_CHECKING:
    import numpy as np

    Tokens = tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]

__all__ = ["Encoder", "encoder", "max_length_of", "option", "pad_token_id"]

#: Where a model's config may say how many tokens it takes, in this order.
LENGTH_NAMES = ("max_length", "max_seq_length", "max_position_embeddings")
#: Tokenizers of transformers change themselves while they encode: two threads at once fail ("Already borrowed").
_TURN = forkable_lock()


def option(config: Any, name: str) -> Any:
    """What a config, which may be any object or mapping, says of ``name``; None where it says nothing."""
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def max_length_of(config: Any) -> int | None:
    """The most tokens a model takes, as its config has it: the first of :data:`LENGTH_NAMES` that is not None.

    Raises:
        ConfigError: that one is not a whole number above zero.
    """
    for name in LENGTH_NAMES:
        value = option(config, name)
        if value is not None:
            return whole(f"config.{name}", value)
    return None


def pad_token_id(tokenizer: Any, config: Any = None) -> int:
    """The number of the padding token: the tokenizer's ``pad_token_id``, else the config's, else 0.

    Raises:
        ConfigError: it is not a whole number, zero or more.
    """
    for source in (tokenizer, config):
        value = option(source, "pad_token_id")
        if value is not None:
            return whole("pad_token_id", value, least=0)
    return 0


def encoder(tokenizer: Any, max_length: int | None = None) -> Encoder | None:
    """How to encode text with this tokenizer. None for ``tokenizer=None``: samples then have no tokens.

    Parameters:
        tokenizer: the first of these that fits:

            1. a tokenizer of ``transformers``, fast or slow: called; it truncates, special tokens stay;
            2. a ``tokenizers.Tokenizer``: a copy of it truncates, special tokens stay;
            3. anything callable: ``tokenizer(text)`` gives token numbers, or a mapping with ``input_ids`` and
               perhaps ``attention_mask``;
            4. an object with ``encode``: ``tokenizer.encode(text)`` gives the same, or an object with ``ids``.

            Of 3 and 4: where the function names a parameter ``max_length`` (and ``truncation``), it is passed.
        max_length: the most tokens; None: nothing is cut off. Whatever the tokenizer made of it, what is longer is
            cut at the end.

    Raises:
        ConfigError: it is none of these, or ``max_length`` is not a whole number above zero.
    """
    if tokenizer is None:
        return None
    return Encoder(tokenizer, None if max_length is None else whole("max_length", max_length))


class Encoder:
    """``encode(text)``: token numbers and attention mask, as two int64 arrays of one length; see :func:`encoder`.

    Threads: tokenizers of transformers are asked by one thread at a time; others by as many as ask. Fork: as the
    tokenizer. Pickling: as the tokenizer.
    """

    def __init__(self, tokenizer: Any, max_length: int | None) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._turns = False
        self._options: dict[str, Any] = {}
        self._function = self._choose()

    def __call__(self, text: str) -> Tokens:
        """
        Raises:
            FormatError: what the tokenizer gave are no token numbers. What it raises comes as it is.
        """
        if self._turns:
            with _TURN:
                found = self._function(text, **self._options)
        else:
            found = self._function(text, **self._options)
        return _tokens(found, self.max_length)

    def __reduce__(self) -> tuple[type, tuple[Any, int | None]]:
        return type(self), (self.tokenizer, self.max_length)

    def __repr__(self) -> str:
        return f"Encoder({type(self.tokenizer).__name__}, max_length={self.max_length})"

    def _choose(self) -> Callable[..., Any]:
        """The function to ask; what to tell it besides the text goes to ``_options``."""
        tokenizer = self.tokenizer
        kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(tokenizer).__mro__}
        if ("transformers", "PreTrainedTokenizerBase") in kinds:
            self._turns = True
            self._options = {"return_attention_mask": True}
            if self.max_length is not None:
                self._options.update(truncation=True, max_length=self.max_length)
        elif ("tokenizers", "Tokenizer") in kinds:
            tokenizer = self._truncating()
        asks = callable(tokenizer) or callable(getattr(tokenizer, "encode", None))
        if not asks or isinstance(tokenizer, (str, type)):  # strings have an encode() of their own
            raise ConfigError(
                f"tokenizer={tokenizer!r} is no tokenizer: give a function of text, an object with encode(text),"
                " a Hugging Face tokenizer, or None"
            )
        function: Callable[..., Any] = tokenizer if callable(tokenizer) else tokenizer.encode
        if not self._turns and self.max_length is not None:
            named = _parameters(function)
            if "max_length" in named:
                self._options["max_length"] = self.max_length
                if "truncation" in named:
                    self._options["truncation"] = True
        return function

    def _truncating(self) -> Any:
        """A copy of a ``tokenizers.Tokenizer`` that truncates: the user's own is not changed."""
        if self.max_length is None:
            return self.tokenizer
        try:
            own = copy.deepcopy(self.tokenizer)
        except Exception as error:  # whatever parts written in Python raise
            raise ConfigError(
                f"this tokenizer cannot be copied, so that it would truncate: {error}; call enable_truncation() on it"
                " and give max_length=None, or give a function"
            ) from error
        own.enable_truncation(self.max_length)
        return own


def _parameters(function: Callable[..., Any]) -> set[str]:
    """Names of the parameters that can be given by name; none of functions that do not tell."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return set()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in signature.parameters.items() if parameter.kind in kinds}


def _tokens(found: Any, max_length: int | None) -> Tokens:
    """Numbers and mask from whatever a tokenizer gives."""
    import numpy as np

    mask = None
    if isinstance(found, Mapping):
        if "input_ids" not in found:
            raise FormatError(f"the tokenizer gave no 'input_ids', but {', '.join(map(str, found)) or 'nothing'}")
        found, mask = found["input_ids"], found.get("attention_mask")
    elif hasattr(found, "ids"):
        found, mask = found.ids, getattr(found, "attention_mask", None)
    ids = _numbers(found, "input_ids")[:max_length]
    if mask is None:
        return ids, np.ones(len(ids), np.int64)
    ones = _numbers(mask, "attention_mask")[:max_length]
    if len(ones) != len(ids):
        raise FormatError(f"the tokenizer gave {len(ids)} tokens with an attention mask of {len(ones)}")
    return ids, ones


def _numbers(value: Any, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"the tokenizer gave {name} that are no numbers: {error}") from error
    if array.ndim == 2 and len(array) == 1:  # a batch of one
        array = array[0]
    if array.ndim != 1 or (array.dtype.kind not in "iub" and array.size):
        raise FormatError(
            f"the tokenizer gave {name} of shape {array.shape} and type {array.dtype}; a list of numbers is needed"
        )
    return array.astype(np.int64)
