from __future__ import annotations

import os
import pickle
import threading
import time
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazystore.errors import ConfigError, FormatError
from lazystore.hub.tokenizing import encoder, max_length_of, pad_token_id

TEXT = "the cat sat"
IDS = [len(word) for word in TEXT.split()]


def ids_of(text: str) -> list[int]:
    return [len(word) for word in text.split()]


class WithEncode:
    """As tiktoken and sentencepiece have it."""

    def encode(self, text: str) -> list[int]:
        return ids_of(text)


class WithEncoding:
    """As ``tokenizers`` gives."""

    def encode(self, text: str) -> Any:
        return SimpleNamespace(ids=ids_of(text), attention_mask=[1, 0, 1])


class Callable_:
    """As Hugging Face's, by shape; calling is preferred to ``encode``."""

    pad_token_id = 9

    def __call__(self, text: str) -> Any:
        return UserDict(input_ids=ids_of(text), attention_mask=[1, 0, 1], token_type_ids=[0, 0, 0])

    def encode(self, text: str) -> list[int]:
        raise AssertionError("calling comes first")


@pytest.mark.parametrize(
    ("tokenizer", "mask"),
    [
        (ids_of, [1, 1, 1]),
        (lambda text: tuple(ids_of(text)), [1, 1, 1]),
        (lambda text: np.array(ids_of(text), np.int32), [1, 1, 1]),
        (lambda text: [ids_of(text)], [1, 1, 1]),
        (lambda text: {"input_ids": ids_of(text)}, [1, 1, 1]),
        (lambda text: {"input_ids": [ids_of(text)], "attention_mask": [[1, 0, 1]]}, [1, 0, 1]),
        (lambda text: {"input_ids": ids_of(text), "attention_mask": [True, False, True]}, [1, 0, 1]),
        (lambda text: {"input_ids": ids_of(text), "attention_mask": None}, [1, 1, 1]),
        (WithEncode(), [1, 1, 1]),
        (WithEncoding(), [1, 0, 1]),
        (Callable_(), [1, 0, 1]),
    ],
)
def test_every_kind_of_tokenizer_gives_numbers_and_a_mask(tokenizer: Any, mask: list[int]) -> None:
    encode = encoder(tokenizer)
    assert encode is not None
    ids, ones = encode(TEXT)
    assert ids.dtype == ones.dtype == np.int64
    assert ids.tolist() == IDS and ones.tolist() == mask
    short = encoder(tokenizer, 2)
    assert short is not None
    ids, ones = short(TEXT)
    assert ids.tolist() == IDS[:2] and ones.tolist() == mask[:2]


def test_a_batch_of_tensors_of_one_text_is_taken() -> None:
    class Tensor:
        """As torch's, to numpy."""

        def __init__(self, values: Any) -> None:
            self._values = values

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.array(self._values, dtype)

    encode = encoder(lambda text: {"input_ids": Tensor([ids_of(text)])})
    assert encode is not None and encode(TEXT)[0].tolist() == IDS


def test_what_an_array_refuses_to_be_is_named() -> None:
    class OnTheGpu:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    encode = encoder(lambda text: OnTheGpu())
    assert encode is not None
    with pytest.raises(FormatError, match="cuda"):
        encode(TEXT)


def test_without_a_tokenizer_there_are_no_tokens() -> None:
    assert encoder(None) is None and encoder(None, 5) is None


@pytest.mark.parametrize("tokenizer", [5, "bert", [1], object(), SimpleNamespace(encode="no function"), WithEncode])
def test_what_is_no_tokenizer_is_refused_at_once(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        encoder(tokenizer)


@pytest.mark.parametrize("length", [0, -1, 1.5, "long", True])
def test_a_length_that_cannot_be_is_refused(length: Any) -> None:
    with pytest.raises(ConfigError, match="max_length"):
        encoder(ids_of, length)


def test_a_length_is_passed_to_functions_that_name_it_and_only_to_those() -> None:
    asked: list[dict[str, Any]] = []

    def both(text: str, truncation: bool = False, max_length: int = 0) -> list[int]:
        asked.append({"truncation": truncation, "max_length": max_length})
        return [7] * 10

    class Tokenizer:
        def encode(self, text: str, *, max_length: int = 0) -> list[int]:
            asked.append({"max_length": max_length})
            return [7] * 10

    def anything(text: str, **options: Any) -> list[int]:
        asked.append(options)
        return [7] * 10

    for tokenizer in (both, Tokenizer(), anything):
        encode = encoder(tokenizer, 4)
        assert encode is not None and encode(TEXT)[0].tolist() == [7] * 4
    assert asked == [{"truncation": True, "max_length": 4}, {"max_length": 4}, {}]
    asked.clear()
    encode = encoder(both)
    assert encode is not None and len(encode(TEXT)[0]) == 10
    assert asked == [{"truncation": False, "max_length": 0}]


@pytest.mark.parametrize(
    "found",
    [
        ["a", "b"],
        "text",
        [1.5, 2.0],
        [[1, 2], [3, 4]],
        [[1, 2], [3]],
        None,
        5,
        {},
        {"ids": [1]},
        {"input_ids": [1, 2], "attention_mask": [1]},
        {"input_ids": [1, 2], "attention_mask": ["a", "b"]},
        [2**70],
    ],
)
def test_what_are_no_token_numbers_is_refused(found: Any) -> None:
    encode = encoder(lambda text: found)
    assert encode is not None
    with pytest.raises(FormatError, match="tokenizer gave"):
        encode(TEXT)


def test_no_tokens_are_numbers_too() -> None:
    encode = encoder(lambda text: [], 3)
    assert encode is not None
    ids, mask = encode("")
    assert ids.shape == mask.shape == (0,) and ids.dtype == np.int64


def test_what_the_tokenizer_raises_comes_as_it_is() -> None:
    def bad(text: str) -> list[int]:
        raise LookupError("no such word")

    encode = encoder(bad)
    assert encode is not None
    with pytest.raises(LookupError, match="no such word"):
        encode(TEXT)


def test_an_encoder_travels_with_its_tokenizer() -> None:
    encode = pickle.loads(pickle.dumps(encoder(WithEncode(), 2)))
    assert encode(TEXT)[0].tolist() == IDS[:2]


@given(st.lists(st.integers(0, 2**40), max_size=20), st.integers(1, 12))
def test_whatever_comes_is_cut_at_the_end(found: list[int], length: int) -> None:
    encode = encoder(lambda text: {"input_ids": found, "attention_mask": [0] * len(found)}, length)
    assert encode is not None
    ids, mask = encode("")
    assert ids.tolist() == found[:length] and mask.tolist() == [0] * len(ids)


# -- Hugging Face's, by class ---------------------------------------------------------------


def hugging_face(seen: list[dict[str, Any]], busy: list[int]) -> Any:
    """A tokenizer of transformers in what decides: its base class, and that two threads at once fail."""

    class PreTrainedTokenizerBase:
        __module__ = "transformers.tokenization_utils_base"

        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(options)
            busy.append(1)
            time.sleep(0.0005)
            alone = len(busy) == 1
            busy.pop()
            if not alone:
                raise RuntimeError("Already borrowed")
            ids = (
                [101, *ids_of(text)][: options["max_length"] - 1] if options.get("truncation") else [101, *ids_of(text)]
            )
            return {"input_ids": [*ids, 102], "attention_mask": [1] * (len(ids) + 1)}

    class BertTokenizerFast(PreTrainedTokenizerBase):
        __module__ = "transformers.models.bert"

    return BertTokenizerFast()


def test_a_tokenizer_of_transformers_truncates_by_itself_so_that_special_tokens_stay() -> None:
    seen: list[dict[str, Any]] = []
    tokenizer = hugging_face(seen, [])
    whole_, short = encoder(tokenizer), encoder(tokenizer, 3)
    assert whole_ is not None and short is not None
    assert whole_(TEXT)[0].tolist() == [101, *IDS, 102]
    assert short(TEXT)[0].tolist() == [101, IDS[0], 102]
    assert seen == [
        {"return_attention_mask": True},
        {"return_attention_mask": True, "truncation": True, "max_length": 3},
    ]


def test_a_tokenizer_of_transformers_is_asked_by_one_thread_at_a_time_whatever_encoder_asks() -> None:
    tokenizer = hugging_face([], [])
    encoders = [encoder(tokenizer, length) for length in (3, 4)] * 2
    errors: list[BaseException] = []

    def work(encode: Any) -> None:
        try:
            for _ in range(30):
                encode(TEXT)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(encode,)) for encode in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_tokenizer_was_busy_encodes() -> None:
    encode = encoder(hugging_face([], []))
    assert encode is not None
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            encode(TEXT)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                try:
                    fresh = encoder(hugging_face([], []))
                    os._exit(0 if fresh is not None and len(fresh(TEXT)[0]) == 5 else 1)
                except BaseException:  # noqa: BLE001 - a child must not return into the suite
                    os._exit(2)
            assert _status(child) == 0
    finally:
        stop.set()
        thread.join(60)


def _status(child: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def rust_tokenizer() -> type:
    class Tokenizer:
        """As ``tokenizers.Tokenizer``: it truncates as it was told, and can be copied."""

        __module__ = "tokenizers"

        def __init__(self) -> None:
            self.truncation: int | None = None

        def enable_truncation(self, max_length: int) -> None:
            self.truncation = max_length

        def encode(self, text: str) -> Any:
            ids = ids_of(text)
            if self.truncation is not None:
                ids = ids[: self.truncation - 1]
            return SimpleNamespace(ids=[*ids, 102], attention_mask=[1] * (len(ids) + 1))

    return Tokenizer


def test_a_copy_of_a_rust_tokenizer_truncates_and_the_users_own_stays_as_it_was() -> None:
    tokenizer = rust_tokenizer()()
    encode = encoder(tokenizer, 2)
    assert encode is not None and encode(TEXT)[0].tolist() == [IDS[0], 102]
    assert tokenizer.truncation is None
    encode = encoder(tokenizer)
    assert encode is not None and encode(TEXT)[0].tolist() == [*IDS, 102]


def test_a_rust_tokenizer_that_cannot_be_copied_is_refused_with_what_to_do() -> None:
    class Stuck(rust_tokenizer()):  # type: ignore[misc]
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("Custom PreTokenizer cannot be serialized")

    with pytest.raises(ConfigError, match="enable_truncation"):
        encoder(Stuck(), 5)
    assert encoder(Stuck()) is not None


# -- the config -----------------------------------------------------------------------------


def test_the_length_is_the_first_that_the_config_names() -> None:
    assert max_length_of(SimpleNamespace(max_position_embeddings=7, max_seq_length=6, max_length=5)) == 5
    assert max_length_of(SimpleNamespace(max_position_embeddings=7, max_seq_length=6, max_length=None)) == 6
    assert max_length_of({"max_position_embeddings": np.int64(7)}) == 7
    assert max_length_of(SimpleNamespace()) is None and max_length_of({}) is None and max_length_of(None) is None
    with pytest.raises(ConfigError, match="max_seq_length"):
        max_length_of({"max_seq_length": "long"})


def test_the_padding_token_is_the_tokenizers_then_the_configs_then_zero() -> None:
    assert pad_token_id(Callable_(), {"pad_token_id": 4}) == 9
    assert pad_token_id(ids_of, {"pad_token_id": 4}) == 4
    assert pad_token_id(SimpleNamespace(pad_token_id=None), SimpleNamespace(pad_token_id=4)) == 4
    assert pad_token_id(ids_of, SimpleNamespace()) == pad_token_id(None) == 0
    with pytest.raises(ConfigError, match="pad_token_id"):
        pad_token_id(SimpleNamespace(pad_token_id=-1))
