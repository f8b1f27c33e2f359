"""The registered datasets, from a hub: each row's columns become samples; and a hub that refuses, lacks or fails."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import hub_samples
from support.hub_samples import image, jsonl, parquet, wav

from lazystore.errors import (
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    HubAccessError,
    SampleError,
    SyntheticDataWarning,
)
from lazystore.hub import StreamingDatasetWrapper, registry
from lazystore.hub.multimodal import MultimodalDataset
from lazystore.hub.registry import ROWS, find_dataset, register_dataset
from lazystore.testing import LocalHub

IMAGE, AUDIO = {"_type": "Image"}, {"_type": "Audio"}


def parquet_of(rows: list[dict[str, Any]], **features: Any) -> bytes:
    plain = {name: {"dtype": "string", "_type": "Value"} for name in rows[0]} | features
    return parquet(rows, features=plain) if features else parquet(rows)


def open_platypus() -> bytes:
    return parquet_of(
        [{"instruction": f"do {i}", "input": "", "output": f"done {i}", "data_source": "x"} for i in range(40)]
    )


#: A few rows of each registered dataset, as it is on the hub.
FILES: dict[str, Callable[[], dict[str, bytes]]] = {
    "luma": lambda: {
        "data/train-0.parquet": parquet_of(
            [{"audio": {"bytes": wav(i), "path": f"{i}.wav"}, "text": f"bird {i}", "label": "bird"} for i in range(4)],
            audio=AUDIO,
        )
    },
    "open_platypus": lambda: {"data/train-00000-of-00001.parquet": open_platypus()},
    "humaneval": lambda: {
        "data/train-00000-of-00001.parquet": parquet_of(
            [
                {"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n", "canonical_solution": "    return 1\n"}
                for i in range(6)
            ]
        )
    },
    "clotho_aqa": lambda: {
        "README.md": hub_samples.card(
            "configs:\n- config_name: clotho_aqa\n  data_files:\n"
            "  - split: clotho_aqa_val_filtered\n    path: clotho_aqa/val-*\n"
            "  - split: clotho_aqa_test_filtered\n    path: clotho_aqa/test-*\n"
        ),
        **{
            f"clotho_aqa/{split}-0.parquet": parquet_of(
                [
                    {"audio": {"bytes": wav(i), "path": f"{i}.wav"}, "question": f"what is {i}?", "answer": "yes"}
                    for i in range(3)
                ],
                audio=AUDIO,
            )
            for split in ("val", "test")
        },
    },
    "beans": lambda: {
        "data/train-0.parquet": parquet_of(
            [{"image": {"bytes": image(3 * i), "path": f"{i}.png"}, "labels": i % 3} for i in range(4)],
            image=IMAGE,
            labels={"_type": "ClassLabel", "names": list(find_dataset("beans").labels)},
        )
    },
    "prosocial_dialog": lambda: {
        "train.json": jsonl(
            [
                {"context": f"hello {i}", "response": f"hi {i}", "safety_label": "__casual__", "rots": ["be kind"]}
                for i in range(5)
            ]
        )
    },
    "logicqa": lambda: {
        "default/train/0000.parquet": parquet_of(
            [
                {"context": "All a are b.", "query": "Which?", "options": ["a", "b"], "correct_option": i % 2}
                for i in range(4)
            ]
        )
    },
    "financial_phrasebank": lambda: {
        "sentences_allagree/train/0000.parquet": parquet_of(
            [{"sentence": f"profit {i}", "label": i % 3} for i in range(6)],
            label={"_type": "ClassLabel", "names": list(find_dataset("financial_phrasebank").labels)},
        ),
        "sentences_50agree/train/0000.parquet": parquet_of([{"sentence": "other", "label": 0}]),
    },
    "ds1000": lambda: {"test.jsonl": jsonl([{"prompt": f"task {i}", "reference_code": "x = 1"} for i in range(3)])},
}
TEXTS = {
    "luma": "bird 0",
    "open_platypus": "### Instruction:\ndo 0",
    "humaneval": "def f0():\n    return 1\n",
    "clotho_aqa": "Question: what is 0?",
    "prosocial_dialog": "User: hello 0",
    "logicqa": "Context: All a are b.",
    "financial_phrasebank": "profit 0",
    "ds1000": "task 0",
}


@pytest.fixture(autouse=True)
def datasets() -> Iterator[None]:
    known = dict(registry._known)
    yield
    registry._known.clear()
    registry._known.update(known)


def publish(hub: LocalHub, *names: str) -> None:
    for name in names:
        spec = find_dataset(name)
        if spec.revision is not None:
            hub.add(spec.path, {"README.md": b"# a script lives here\n"})
        hub.add(spec.path, FILES[name](), revision=spec.revision or "main")


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def made(name: str | list[str], tokenizer: Any = letters, **options: Any) -> MultimodalDataset:
    return MultimodalDataset(None, tokenizer, dataset_name=name, **{"timeout": 20.0, "fallback": "raise", **options})


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_the_registered_row_fits_the_dataset(name: str, hub: LocalHub) -> None:
    publish(hub, name)
    spec = find_dataset(name)
    with made(name) as dataset:
        samples = list(dataset)
    assert len(samples) == {"open_platypus": 40, "humaneval": 6, "prosocial_dialog": 5, "financial_phrasebank": 6}.get(
        name, 3 if name in ("clotho_aqa", "ds1000") else 4
    )
    for sample in samples:
        assert (sample["task"], sample["dataset"]) == (spec.task, name)
        assert set(sample["modalities"]) == set(spec.modalities)
    first = samples[0]
    assert first.get("text", "").startswith(TEXTS.get(name, ""))
    if "text" in spec.modalities:
        assert first["input_ids"].tolist() == letters(first["text"])
    if "audio" in spec.modalities:
        assert first["audio"]["sampling_rate"] == hub_samples.RATE
        assert first["audio"]["array"].shape == (100,)
    if "image" in spec.modalities:
        assert first["image"].size == (8, 6)
    if spec.labels:
        assert first["labels"] == 0


def test_all_datasets_at_once(hub: LocalHub) -> None:
    publish(hub, *FILES)
    with made("all", cache_size=200) as dataset:
        assert len({sample["dataset"] for sample in dataset}) == 9


def test_only_the_columns_asked_for_are_read(hub: LocalHub) -> None:
    publish(hub, "open_platypus")
    with made("open_platypus", columns=["instruction", "input", "output"]) as dataset:
        assert dataset[0]["text"].startswith("### Instruction:\ndo 0")
    with pytest.raises(ConfigError, match="'output'"):
        made("open_platypus", columns=["instruction", "input"])


def test_columns_that_the_hub_has_not_are_the_samples_error(hub: LocalHub) -> None:
    publish(hub, "open_platypus")
    spec = find_dataset("open_platypus")
    register_dataset(
        "odd", spec.path, columns={"instruction": "instructions", "output": "output"}, processor="instruction"
    )
    with made("odd") as dataset, pytest.raises(SampleError, match="did you mean 'instruction'"):
        next(iter(dataset))


def test_a_split_that_is_not_there_is_a_mistake_and_nothing_is_made_up(hub: LocalHub) -> None:
    publish(hub, "open_platypus")
    with pytest.raises(ConfigError, match="train"):
        made("open_platypus", split="tset", fallback="synthetic")


@pytest.mark.parametrize(
    ("name", "path", "error"),
    [("gated", "t/gated-for-all", HubAccessError), ("absent", "samples/not-there", DatasetNotFoundError)],
)
def test_a_repository_that_cannot_be_read_is_an_error_or_made_up(
    name: str, path: str, error: type[Exception], hub: LocalHub
) -> None:
    # Of its own: what another test has read with a token, `datasets` gives from its cache without one.
    hub.add("t/gated-for-all", hub_samples.readable(), gated=True, token=hub_samples.READER)
    register_dataset(name, path, columns={"text": "text"}, processor="text")
    with pytest.raises(error):
        made(name)
    with made(name, fallback="synthetic", synthetic_size=4) as dataset:
        assert dataset.is_synthetic
        assert len(dataset) == 4
        with pytest.warns(SyntheticDataWarning, match=error.__name__):
            assert all(sample["synthetic"] for sample in dataset)
        assert error.__name__ in dataset.stats()["synthetic"][name]["cause"]
    with pytest.raises(error):
        made(name, fallback="local")


def test_a_token_opens_what_is_gated(published: Callable[[str], str]) -> None:
    register_dataset("gated", published("gated"), columns={"text": "text"}, processor="text")
    with made("gated", token=hub_samples.READER) as dataset:
        assert len(list(dataset)) == 9


def test_a_hub_that_is_down_at_the_start(hub: LocalHub, impatient: None) -> None:
    publish(hub, "open_platypus", "humaneval")
    hub.set(down=True)
    with pytest.raises(FetchError):
        made("open_platypus", timeout=1.0, retries=1)
    with made(
        ["open_platypus", "humaneval"], fallback="synthetic", synthetic_size=5, timeout=1.0, retries=1
    ) as dataset:
        with pytest.warns(SyntheticDataWarning) as told:
            first = [sample["text"] for sample in dataset]
        assert len(told) == 1
        assert len(first) == 10
        state = dataset.state_dict()
        hub.calm()
        dataset.set_epoch(1)
        assert not dataset.is_synthetic
        assert len(list(dataset)) == 46
        dataset.load_state_dict(state)
        assert len(list(dataset)) == 46
        assert not dataset.is_synthetic


def test_a_hub_that_fails_in_the_middle(hub: LocalHub, impatient: None) -> None:
    rows = [{"text": f"{i} " + "x" * 2000} for i in range(400)]
    hub.add("samples/long", {"data/train-0.parquet": parquet(rows, group=50, compression="none", use_dictionary=False)})
    register_dataset("long", "samples/long", columns={"text": "text"}, processor="text")
    with made("long", fallback="synthetic", timeout=1.0, retries=1, tokenizer=None, memory="2MB") as dataset:
        hub.set(fail_after_bytes=300_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntheticDataWarning)
            samples = list(dataset)
        made_up = [sample.get("synthetic", False) for sample in samples]
        began = made_up.index(True)
        assert len(samples) == len(dataset) == 400
        assert 0 < began < 400
        assert all(made_up[began:])
        assert [sample["text"] for sample in samples[:began]] == [row["text"] for row in rows[:began]]
        assert dataset.stats()["synthetic"]["long"]["from"] == began
        assert dataset[399]["synthetic"] is True
        state = dataset.state_dict()
        hub.calm()
        dataset.load_state_dict(state)
        assert not any(sample.get("synthetic") for sample in dataset)


def test_without_streaming_datasets_are_downloaded(hub: LocalHub) -> None:
    publish(hub, "open_platypus")
    with made("open_platypus", use_streaming=False) as dataset:
        assert len(dataset) == len(list(dataset)) == 40
        assert dataset[-1]["text"].startswith("### Instruction:\ndo 39")


def test_where_streaming_fails_the_download_goes_on(
    hub: LocalHub, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it was downloaded, `datasets` needs the hub no more."""
    publish(hub, "humaneval")
    with made("humaneval", use_streaming=False) as dataset:
        whole = [sample["text"] for sample in dataset]
    hub.set(down=True)
    with made("humaneval", fallback="local", timeout=1.0, retries=0) as dataset:
        assert [sample["text"] for sample in dataset] == whole
        assert not dataset.is_synthetic


def test_copies_read_the_commit_that_they_were_made_at(hub: LocalHub) -> None:
    def push(rows: range) -> None:
        hub.add("t/pushed", {"data/train.parquet": parquet_of([{"text": f"row {i}"} for i in rows])})
        hub.add("t/pushed-lines", {"train.jsonl": jsonl([{"text": f"row {i}"} for i in rows])})

    push(range(9))
    register_dataset("pushed", "t/pushed", columns={"text": "text"})
    register_dataset("pushed_lines", "t/pushed-lines", columns={"text": "text"})
    names = ["pushed", "pushed_lines"]
    made = [StreamingDatasetWrapper("t/pushed"), StreamingDatasetWrapper("t/pushed-lines"),
            MultimodalDataset(None, None, dataset_name=names, fallback="raise")]  # fmt: skip
    before = [list(one) for one in made]
    copies = [pickle.dumps(one) for one in made]
    push(range(100, 103))
    for want, copy, first in zip(before, copies, made, strict=True):
        with pickle.loads(copy) as second:
            assert list(second) == want
        first.close()
