"""The real libraries, `datasets` and `huggingface_hub`, take the local hub for the Hugging Face Hub."""

from __future__ import annotations

import pytest
from support import hub as the_hub
from support import hub_samples

from lazystore.errors import LazyStoreError

the_hub.start()


@pytest.fixture
def hub():
    found = the_hub.start()
    found.calm()
    yield found
    found.calm()


def load(hub, sample, *, streaming=True, **options):
    import datasets

    # owned by these tests: what others have downloaded would be in the cache
    return datasets.load_dataset(hub_samples.publish(hub, sample, "clients"), streaming=streaming, **options)


def kinds(hub):
    return hub.traffic()["kinds"]


@pytest.mark.parametrize("streaming", [True, False])
def test_every_split_of_parquet_is_read(hub, streaming):
    found = load(hub, "text", streaming=streaming)
    assert {split: list(rows) for split, rows in found.items()} == {
        split: hub_samples.rows(count) for split, count in hub_samples.SPLIT_ROWS.items()
    }
    if streaming:  # a download may lie in the cache of the test process already
        assert kinds(hub)["cdn"] >= 5


def test_configurations_are_those_of_the_card(hub):
    assert [row["id"] for row in load(hub, "carded")["train"]] == list(range(100, 120))
    first = load(hub, "carded", name="first")
    assert [row["id"] for row in first["test"]] == list(range(500, 505))
    assert first["train"].features["label"].names == ["low", "middle", "high"]


@pytest.mark.parametrize(
    ("sample", "count"), [("json-lines", 30), ("csv", 12), ("image-folder", 6), ("image-captions", 5), ("types", 4)]
)
def test_other_kinds_of_files_are_read(hub, sample, count):
    with the_hub.stray_loops_collected():
        assert sum(1 for _ in load(hub, sample, split="train")) == count


def test_a_converted_branch_is_read(hub):
    assert len(list(load(hub, "converted", split="test", revision="refs/convert/parquet"))) == 5


def test_a_token_opens_what_is_closed_and_nothing_else_does(hub):
    import datasets

    for sample, words in (("gated", "gated dataset"), ("private", "doesn't exist")):
        # In this order: what was read with a token lies in their cache, and is then missed in other words.
        with pytest.raises(datasets.exceptions.DatasetNotFoundError, match=words):
            load(hub, sample, split="train")
        assert len(list(load(hub, sample, split="train", token=hub_samples.READER))) == 9


@pytest.mark.parametrize(
    ("sample", "options", "name"),
    [
        ("empty", {}, "EmptyDatasetError"),
        ("nothing", {}, "EmptyDatasetError"),
        ("script", {}, "RuntimeError"),
        ("text", {"revision": "no"}, "DatasetNotFoundError"),
        ("text", {"split": "no"}, "ValueError"),
    ],
)
def test_errors_are_those_of_the_real_hub(hub, sample, options, name):
    with pytest.raises(Exception) as caught:
        load(hub, sample, **options)
    assert type(caught.value).__name__ == name


def test_a_repository_that_is_not_there_is_reported_so(hub):
    import datasets

    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match="doesn't exist on the Hub"):
        datasets.load_dataset("samples/absent", streaming=True)


def test_the_file_system_lists_finds_and_reads(hub):
    import huggingface_hub

    sha = hub.add("samples/listed", {f"deep/{i}/x.txt": b"%d" % i for i in range(12)})
    hub.set(page_size=5)
    files = huggingface_hub.HfFileSystem(skip_instance_cache=True)
    root = f"datasets/samples/listed@{sha}"
    assert len(files.glob(f"{root}/deep/**/*.txt")) == 12
    assert files.cat_file(f"{root}/deep/7/x.txt") == b"7"
    assert files.info(f"{root}/deep/11")["type"] == "directory"


def test_a_part_of_a_redirected_file_is_a_part(hub):
    import huggingface_hub

    data = bytes(range(256)) * 40
    sha = hub.add("samples/blob", {"blob.bin": data}, private=True, token="hf_blob")
    files = huggingface_hub.HfFileSystem(token="hf_blob", skip_instance_cache=True)
    with files.open(f"datasets/samples/blob@{sha}/blob.bin", block_size=100) as file:
        file.seek(5000)
        assert file.read(50) == data[5000:5050]
    assert "400" not in hub.traffic()["statuses"], "the token was carried to the other origin"


def test_the_api_tells_sizes_and_who_asks(hub):
    import huggingface_hub

    hub_samples.publish(hub, "gated")
    api = huggingface_hub.HfApi()
    info = api.dataset_info("samples/gated", files_metadata=True)
    assert info.gated == "auto"
    assert {file.rfilename: file.size for file in info.siblings}["README.md"] == len(
        hub_samples.readable()["README.md"]
    )
    assert api.get_paths_info("samples/gated", ["data", "no"], repo_type="dataset")[0].path == "data"
    assert api.whoami(token=hub_samples.READER)["type"] == "user"


def test_an_interruption_is_overcome_by_their_own_retries(hub, monkeypatch):
    the_hub.be_impatient(monkeypatch)
    rows = load(hub, "text", split="train")
    hub.set(busy=2)
    assert [row["id"] for row in rows] == list(range(100))
    assert hub.traffic()["statuses"]["429"] == 2


def test_a_hub_that_stays_down_is_an_error_of_theirs(hub, monkeypatch):
    the_hub.be_impatient(monkeypatch)
    rows = iter(load(hub, "text", split="train"))
    next(rows)
    hub.set(down=True)
    with pytest.raises(Exception) as caught:
        list(rows)
    assert not isinstance(caught.value, LazyStoreError)
