from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lazystore.errors import ConfigError, MissingExtraError, SampleError
from lazystore.hub.collating import IGNORED, MultimodalCollator
from lazystore.hub.registry import ROWS
from lazystore.hub.samples import process
from lazystore.hub.synthetic import SyntheticFeed
from lazystore.hub.tokenizing import encoder

HEAD = {"task": "t", "dataset": "d"}


def sample(**parts: Any) -> dict[str, Any]:
    modalities = tuple(name for name in ("text", "image", "audio") if name in parts)
    return {**HEAD, "modalities": modalities, **parts}


def tokens(*numbers: int, labels: bool = False) -> dict[str, Any]:
    ids = np.array(numbers, np.int64)
    found = sample(text="x", input_ids=ids, attention_mask=np.ones(len(ids), np.int64))
    return found | ({"labels": ids.copy()} if labels else {})


def wave(count: int, rate: int = 8000, channels: int = 0) -> dict[str, Any]:
    array = np.arange(count, dtype=np.float32) + 1
    return {"array": np.tile(array, (channels, 1)) if channels else array, "sampling_rate": rate}


def collate(samples: list[Any], **options: Any) -> dict[str, Any]:
    return MultimodalCollator(tensors="numpy", **options)(samples)


def test_tokens_are_padded_to_the_longest() -> None:
    batch = collate([tokens(1, 2, 3), tokens(4)], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]] and batch["input_ids"].dtype == np.int64
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["text"] == ["x", "x"] and batch["task"] == ["t", "t"] and batch["modalities"] == [("text",)] * 2


def test_padding_may_be_on_the_left_and_to_a_multiple() -> None:
    batch = collate([tokens(1, 2, 3, labels=True), tokens(4, labels=True)], padding_side="left", multiple_of=4)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 4]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 1, 2, 3], [IGNORED, IGNORED, IGNORED, 4]]


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=9), min_size=1, max_size=6), st.integers(1, 5))
@settings(deadline=None)
def test_padding_keeps_every_token_in_its_place(rows: list[list[int]], multiple: int) -> None:
    for side in ("right", "left"):
        batch = collate(
            [tokens(*row, labels=True) for row in rows], pad_token_id=7, padding_side=side, multiple_of=multiple
        )
        width = batch["input_ids"].shape[1]
        longest = max(map(len, rows))
        assert longest <= width < longest + multiple and width % multiple == 0
        assert batch["labels"].shape == batch["input_ids"].shape
        for row, ids, mask, labels in zip(
            rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            real = mask.astype(bool)
            assert ids[real].tolist() == labels[real].tolist() == row
            assert (ids[~real] == 7).all() and (labels[~real] == IGNORED).all()


def test_the_padding_token_is_the_tokenizers_or_the_configs_or_the_given_one() -> None:
    tokenizer, config = SimpleNamespace(pad_token_id=5), {"pad_token_id": 6}
    assert MultimodalCollator(tokenizer, config).pad_token_id == 5
    assert MultimodalCollator(None, config).pad_token_id == 6
    assert MultimodalCollator(tokenizer, config, pad_token_id=7).pad_token_id == 7
    assert MultimodalCollator().pad_token_id == 0


def test_each_key_tells_which_samples_have_it() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    batch = collate([tokens(1), sample(image=image, labels=3), tokens(1, 2) | {"image": image}])
    assert {key: value.tolist() for key, value in batch["index"].items()} == {
        "text": [0, 2], "input_ids": [0, 2], "attention_mask": [0, 2], "image": [1, 2], "labels": [1]
    }  # fmt: skip
    assert (
        batch["input_ids"].shape == (2, 2) and batch["image"].shape == (2, 2, 2, 3) and batch["labels"].tolist() == [3]
    )
    assert "audio" not in batch and "audio" not in batch["index"]
    assert len(batch["task"]) == 3


def test_images_of_one_shape_are_stacked_and_others_stay_a_list() -> None:
    one, other = np.zeros((2, 3, 3), np.uint8), np.ones((3, 2, 3), np.uint8)
    assert collate([sample(image=one), sample(image=one)])["image"].shape == (2, 2, 3, 3)
    listed = collate([sample(image=one), sample(image=other)])["image"]
    assert isinstance(listed, list) and [image.shape for image in listed] == [(2, 3, 3), (3, 2, 3)]
    mixed = collate([sample(image=one), sample(image=one.astype(np.float32))])["image"]
    assert isinstance(mixed, list)


def test_pil_images_become_pixels() -> None:
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    for mode, shape, value in (("RGB", (2, 3, 3), [255, 0, 0]), ("P", (2, 3, 3), [255, 0, 0]), ("L", (2, 3), 76)):
        pixels = collate([sample(image=red.convert(mode))])["image"]
        assert pixels.shape == (1, *shape) and pixels.dtype == np.uint8 and pixels[0, 0, 0].tolist() == value
    assert collate([sample(image=red.convert("RGBA"))])["image"].shape == (1, 2, 3, 4)
    assert collate([sample(image=red.convert("CMYK"))])["image"][0, 0, 0].tolist() == [255, 0, 0]
    assert collate([sample(image=Image.new("1", (3, 2), 1))])["image"].max() == 255
    clear = Image.new("P", (3, 2))
    clear.info["transparency"] = 0
    assert collate([sample(image=clear)])["image"].shape == (1, 2, 3, 4)


def test_a_stacked_image_is_not_the_samples_own() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    collate([sample(image=pixels)])["image"][:] = 9
    listed = collate([sample(image=pixels), sample(image=np.zeros((1, 1, 3), np.uint8))])["image"]
    listed[0][:] = 9
    assert not pixels.any()


def test_recordings_are_padded_with_silence_and_keep_their_lengths_and_rates() -> None:
    audio = collate([sample(audio=wave(3)), sample(audio=wave(1, 16000))])["audio"]
    assert audio["array"].tolist() == [[1, 2, 3], [1, 0, 0]] and audio["array"].dtype == np.float32
    assert audio["lengths"].tolist() == [3, 1] and audio["sampling_rate"].tolist() == [8000, 16000]


def test_recordings_with_channels_are_padded_in_time() -> None:
    audio = collate([sample(audio=wave(3, channels=2)), sample(audio=wave(1, channels=2))])["audio"]
    assert audio["array"].shape == (2, 2, 3) and audio["array"][1].tolist() == [[1, 0, 0], [1, 0, 0]]
    mixed = collate([sample(audio=wave(3, channels=2)), sample(audio=wave(1))])["audio"]
    assert [array.shape for array in mixed["array"]] == [(2, 3), (1,)] and mixed["lengths"].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("labels", "found", "dtype"),
    [
        ([1, 2], [1, 2], np.int64),
        ([True, False], [1, 0], np.int64),
        ([np.int32(1), 2], [1, 2], np.int64),
        ([1, 0.5], [1, 0.5], np.float32),
        ([[1, 2], [3]], [[1, 2], [3]], None),
        ([[1, 0, 1], [0, 1, 1]], [[1, 0, 1], [0, 1, 1]], np.int64),
        ([[0.5, 1.0], [1.0, 0.0]], [[0.5, 1.0], [1.0, 0.0]], np.float64),
        (["cat", "dog"], ["cat", "dog"], None),
        ([1, "dog"], [1, "dog"], None),
        ([1, [1, 2]], [1, [1, 2]], None),
        ([[0.5], [0.5, 1.0]], [[0.5], [0.5, 1.0]], None),
    ],
)
def test_labels_become_an_array_where_they_are_of_one_kind(labels: list[Any], found: list[Any], dtype: Any) -> None:
    batch = collate([sample(labels=label) for label in labels])["labels"]
    if dtype is None:
        assert batch == found
    else:
        assert batch.dtype == dtype and batch.tolist() == found


def test_a_batch_of_token_labels_and_classes_is_a_list() -> None:
    batch = collate([tokens(1, 2, labels=True), sample(labels=3)])["labels"]
    assert isinstance(batch, list) and batch[0].tolist() == [1, 2] and batch[1] == 3


def test_labels_that_are_not_of_tokens_are_not_padded_as_tokens_are() -> None:
    batch = collate([tokens(1, 2) | {"labels": [1, 0, 1]}, tokens(1) | {"labels": [0, 1, 1]}], multiple_of=8)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 1, 1]] and batch["input_ids"].shape == (2, 8)


def test_a_spectrogram_in_the_place_of_a_recording_is_stacked() -> None:
    bare = {"array": np.zeros(3)}
    assert collate([sample(audio=bare)])["audio"] == [bare]
    assert collate([sample(audio=np.zeros((4, 5))), sample(audio=np.zeros((4, 5)))])["audio"].shape == (2, 4, 5)


@pytest.mark.parametrize(
    "parts",
    [
        {"input_ids": ["a", "b"]},
        {"input_ids": 5},
        {"attention_mask": None},
        {"input_ids": [[1, 2]]},
        {"audio": {"array": 5.0, "sampling_rate": 8}},
        {"audio": {"array": ["a"], "sampling_rate": 8}},
    ],
)
def test_parts_that_are_not_what_they_should_be_are_named(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(parts))):
        collate([sample(**parts)])


def test_values_that_are_no_arrays_stay_what_they_are() -> None:
    class Elsewhere:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise TypeError("it is on a GPU")

    value = Elsewhere()
    words = np.array(["a", "b"])
    assert collate([sample(v=value, w=words)])["v"] == [value]
    made = MultimodalCollator(tensors="numpy")([sample(w=words), sample(w=words[:1])])["w"]
    assert made[0] is words


def test_what_else_samples_have_is_stacked_where_it_can_be() -> None:
    batch = collate(
        [sample(n=1, v=np.zeros(3), s="a", o={"x": 1}, r=[1]), sample(n=2, v=np.ones(3), s="b", o=2, r=[1, 2])]
    )
    assert batch["n"].tolist() == [1, 2] and batch["v"].shape == (2, 3)
    assert batch["s"] == ["a", "b"] and batch["o"] == [{"x": 1}, 2] and batch["r"] == [[1], [1, 2]]


def test_made_up_samples_are_marked_one_by_one() -> None:
    assert "synthetic" not in collate([sample(n=1)])
    batch = collate([sample(n=1), sample(n=2, synthetic=True)])
    assert batch["synthetic"].tolist() == [False, True] and batch["synthetic"].dtype == bool
    assert batch["index"]["synthetic"].tolist() == [0, 1]


def test_samples_of_every_dataset_go_into_one_batch() -> None:
    encode = encoder(lambda text: [len(word) for word in text.split()], 8)
    samples = [process(spec, SyntheticFeed(spec, 1).get(0), 0, encode) for spec in ROWS]
    batch = collate(samples)
    assert batch["dataset"] == [spec.name for spec in ROWS]
    assert batch["input_ids"].shape[0] == len(batch["index"]["input_ids"]) == len(batch["text"])
    assert batch["synthetic"].all()


@pytest.mark.parametrize("bad", [[], [5], [None], [sample(n=1), "text"]])
def test_what_is_no_list_of_samples_is_refused(bad: list[Any]) -> None:
    with pytest.raises(ConfigError):
        collate(bad)


def test_an_error_in_place_of_a_sample_is_raised() -> None:
    error = SampleError("dataset 'd', sample 3: no image", "d", 3)
    with pytest.raises(SampleError, match="sample 3") as caught:
        collate([sample(n=1), error])
    assert caught.value is error


@pytest.mark.parametrize(
    "options",
    [{"padding_side": "both"}, {"tensors": "jax"}, {"multiple_of": 0}, {"pad_token_id": -1}, {"pad_token_id": "x"}],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        MultimodalCollator(**options)


def test_it_travels_to_workers() -> None:
    collator = pickle.loads(pickle.dumps(MultimodalCollator(pad_token_id=4, tensors="numpy")))
    assert collator([tokens(1), tokens(1, 2)])["input_ids"].tolist() == [[1, 4], [1, 2]]


def test_tensors_are_arrays_until_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert isinstance(MultimodalCollator()([tokens(1)])["input_ids"], np.ndarray)
    made = SimpleNamespace(from_numpy=lambda array: ("tensor", array.tolist()))
    monkeypatch.setitem(sys.modules, "torch", made)
    assert MultimodalCollator()([tokens(1)])["input_ids"] == ("tensor", [[1]])
    assert isinstance(collate([tokens(1)])["input_ids"], np.ndarray)


def test_torch_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"lazystore\[torch\]"):
        MultimodalCollator(tensors="torch")([tokens(1)])


def test_every_array_of_a_batch_becomes_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    one = tokens(1, 2, labels=True) | {"image": np.zeros((2, 2, 3), np.uint8), "audio": wave(3), "n": 1}
    other = tokens(1) | {"image": np.zeros((1, 2, 3), np.uint8), "audio": wave(1), "n": 2, "labels": 1}
    batch = MultimodalCollator()([one, other])
    arrays = [batch["input_ids"], batch["attention_mask"], *batch["image"], batch["labels"][0], batch["n"]]
    arrays += [*batch["audio"].values(), *batch["index"].values()]
    assert all(isinstance(array, torch.Tensor) for array in arrays)
    assert batch["input_ids"].dtype == torch.int64 and batch["audio"]["array"].dtype == torch.float32
    loader = torch.utils.data.DataLoader([one, one, one], batch_size=2, collate_fn=MultimodalCollator(pad_token_id=3))
    assert [tuple(batch["input_ids"].shape) for batch in loader] == [(2, 2), (1, 2)]
