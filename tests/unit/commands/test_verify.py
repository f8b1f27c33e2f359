"""``verify``: sound datasets pass, every damage is found and told, and the rest is read nevertheless."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from support import datasets

import lazystore
from lazystore import cli
from lazystore.testing import ObjectStore

#: items a chunk
EACH = 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return datasets.write(tmp_path / "d", 4 * EACH)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The same without checksums: damage shows where it is decoded."""
    return datasets.write(tmp_path / "b", 4 * EACH, checksums=False)


def verified(folder: Path, *line: str) -> int:
    return cli.main(["verify", str(folder), "--memory", "16MB", *line])


def chunk(folder: Path, number: int) -> Path:
    return sorted(folder.glob("*.bin"))[number]


def break_offset(path: Path, item: int) -> None:
    """Let an item end beyond where the next one begins."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4 + 4 * item, len(data))
    path.write_bytes(data)


def break_size(path: Path, item: int) -> None:
    """Let an item's first leaf claim more bytes than the item has."""
    data = bytearray(path.read_bytes())
    (begin,) = struct.unpack_from("<I", data, 4 + 4 * item)
    struct.pack_into("<I", data, begin, 1 << 30)
    path.write_bytes(data)


def test_sound_dataset_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(folder) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"ok: {4 * EACH} items in 4 chunks read and decoded") and out.count("\n") == 1


def test_damaged_items_are_told_one_by_one(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_size(chunk(bare, 1), 7)
    break_size(chunk(bare, 3), 49)
    assert verified(bare) == 1
    first, second, summary = capsys.readouterr().out.splitlines()
    assert first.startswith(f"damaged: item {EACH + 7}: ") and chunk(bare, 1).name in first
    assert second.startswith(f"damaged: item {4 * EACH - 1}: ")
    assert summary.startswith(f"{4 * EACH - 2} items in 4 chunks") and summary.endswith("; 2 items are damaged")


def test_chunk_that_is_gone_is_given_up_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chunk(folder, 2).unlink()
    assert verified(folder) == 1
    damaged, summary = capsys.readouterr().out.splitlines()
    assert damaged.startswith(f"damaged: items {2 * EACH} to {3 * EACH - 1}: ")
    assert f"{3 * EACH} items in" in summary and summary.endswith(f"{EACH} items are damaged")


def test_chunk_full_of_damage_is_given_up_after_a_few(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for item in range(10, EACH):
        break_size(chunk(bare, 0), item)
    break_size(chunk(bare, 1), 0)
    assert verified(bare) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in lines[:-1]] == [
        *(f" item {item}" for item in range(10, 17)), f" items 17 to {EACH - 1}", f" item {EACH}"
    ]  # fmt: skip
    assert lines[-1].endswith(f"{EACH - 10 + 1} items are damaged")


@pytest.mark.parametrize("most", [0, 1, 2])
def test_list_of_places_is_as_long_as_asked(most: int, bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for item in (3, 8):
        break_size(chunk(bare, 1), item)
    assert verified(bare, "--max-listed", str(most)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == most + 1 and lines[-1].endswith("2 items are damaged")


def test_broken_table_is_damage(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_offset(chunk(bare, 1), 20)
    assert verified(bare) == 1
    assert "damaged" in capsys.readouterr().out


def test_missing_dataset_is_an_error_not_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(tmp_path / "nowhere") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lazystore: ") and "nowhere" in err


def flip_payload(path: Path) -> None:
    """Change a byte that every decoder takes as it is."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_checksums_notice_what_decoding_cannot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(folder) == 0
    assert "checksums compared" in capsys.readouterr().out
    flip_payload(chunk(folder, 2))
    assert verified(folder) == 1
    damaged, summary = capsys.readouterr().out.splitlines()
    assert damaged.startswith(f"damaged: items {2 * EACH} to {3 * EACH - 1}: ") and chunk(folder, 2).name in damaged
    assert summary.endswith(f"{EACH} items are damaged")
    assert verified(folder, "--no-checksums") == 0
    assert "checksums not compared" in capsys.readouterr().out


def test_dataset_without_checksums_is_read_nevertheless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = datasets.write(tmp_path / "plain", 20, checksums=False)
    assert verified(folder) == 0
    assert "there are no checksums to compare" in capsys.readouterr().out


def test_compressed_chunks_are_examined_to_their_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("zstandard")
    folder = datasets.write(tmp_path / "z", 4 * EACH, compression="zstd")
    assert verified(folder) == 0
    chunk(folder, 1).write_bytes(chunk(folder, 1).read_bytes()[:-20])
    assert verified(folder, "--no-checksums") == 1
    assert "damaged: item" in capsys.readouterr().out


def test_remote_datasets_are_verified_shown_and_converted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiohttp")
    with ObjectStore({"b": folder.parent}) as store:
        url = store.http_url("b", folder.name)
        assert cli.main(["verify", url]) == 0
        assert cli.main(["head", url, "-n", "1"]) == 0
        assert cli.main(["convert", url, str(tmp_path / "copy"), "--chunk-size", "30"]) == 0
        chunk(folder, 3).unlink()
        assert cli.main(["verify", url]) == 1
    assert f"items {3 * EACH} to {4 * EACH - 1}" in capsys.readouterr().out
    with lazystore.StreamingDataset(tmp_path / "copy") as dataset:
        datasets.check(dataset, range(4 * EACH))
