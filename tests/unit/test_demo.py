"""The demo: it writes what is on disk, says what happened, and notices every difference."""

from __future__ import annotations

import io
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from models import classic

from lazystore import demo, demo_reader
from lazystore.demo import DemoOptions, Report, python_sources
from lazystore.demo_reader import file_sample
from lazystore.errors import ConfigError, LazyStoreError


class Shelf:
    """A dataset already in memory, for the reader's own logic."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    texts = [
        "",
        "x = 1\n",
        "# å\r\nprint('no newline at the end')",
        "\ufeffbom\n",
        *[f"{i}\n" * i for i in range(20)],
    ]
    for number, text in enumerate(texts):
        (tmp_path / f"{number:02}.py").write_bytes(text.encode("utf-8"))
    return [str(path) for path in sorted(tmp_path.iterdir())]


def request(paths: list[str]) -> dict[str, Any]:
    return {"paths": paths, "reads": 8, "seed": 1}


def opener(samples: list[Any]) -> Callable[[], Shelf]:
    return lambda: Shelf(samples)


# --- input ------------------------------------------------------------------------------------------


def test_sources_are_the_standard_library_and_site_packages() -> None:
    found = python_sources()
    assert len(found) == len(set(found)) > 500
    assert all(path.endswith(".py") for path in found)
    assert str(Path(sysconfig.get_path("stdlib")) / "json" / "decoder.py") in found
    assert str(Path(pytest.__file__)) in found
    assert python_sources(7) == found[:7]


def test_file_sample_is_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"one\r\ntwo\n\xc3\xa9")
    assert file_sample(str(path)) == {"path": str(path), "source": "one\r\ntwo\né", "lines": 2, "size": 11}
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        file_sample(str(path))


@pytest.mark.parametrize("wrong", [{"latency_ms": -1.0}, {"latency_ms": float("nan")}, {"limit": 0}])
def test_option_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DemoOptions(**wrong)


def test_written_dataset_holds_the_files_and_skips_what_is_not_utf8(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "zz.py"
    bad.write_bytes(b"\xff\xfe")
    monkeypatch.setattr(demo, "python_sources", lambda limit: [*paths, str(bad), str(tmp_path / "gone.py")])
    kept, report = demo._write(DemoOptions(), tmp_path / "dataset")
    assert kept == paths
    assert (report.items, report.skipped, report.left_out) == (len(paths), 2, 0)
    assert list(classic.samples(tmp_path / "dataset")) == [file_sample(path) for path in paths]
    assert report.memory == demo.MIN_DEFAULT_MEMORY


def test_dataset_stops_at_its_cap_and_says_so(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "python_sources", lambda limit: paths)
    monkeypatch.setattr(demo, "MAX_DATASET_BYTES", 100)
    kept, report = demo._write(DemoOptions(), tmp_path / "dataset")
    assert sum(file_sample(path)["size"] for path in kept) <= 100
    assert kept == paths[: len(kept)]
    assert report.left_out == len(paths) - len(kept) > 0
    assert f"{report.left_out} left out" in "\n".join(report.preface(tmp_path))


# --- reading and verifying ----------------------------------------------------------------------------


def test_reader_accepts_equal_items(paths: list[str]) -> None:
    samples = [file_sample(path) for path in paths]
    streamed = demo_reader.stream(request(paths), opener(samples))
    assert (streamed["items"], streamed["bytes"]) == (len(paths), sum(s["size"] for s in samples))
    assert 0 < streamed["first_s"] <= streamed["seconds"]
    assert demo_reader.verify(request(paths), opener(samples)) == {"verified": len(paths), "wrong": []}
    reads = demo_reader.random_reads(request(paths), opener(samples))
    assert (reads["verified"], reads["wrong"], len(reads["times"])) == (8, [], 8)


@pytest.mark.parametrize("field", ["path", "source", "lines", "size"])
def test_reader_notices_one_wrong_field(paths: list[str], field: str) -> None:
    samples = [file_sample(path) for path in paths]
    samples[5] = {**samples[5], field: samples[6][field]}
    result = demo_reader.verify(request(paths), opener(samples))
    assert result["verified"] == len(paths) - 1
    assert result["wrong"] == [f"item 5: not equal to {paths[5]}"]
    everywhere = [{**s, field: None} for s in samples]
    assert demo_reader.random_reads(request(paths), opener(everywhere))["verified"] == 0


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: [*s, s[0]], lambda s: [s[1], s[0], *s[2:]]])
def test_reader_notices_missing_extra_and_swapped_items(
    paths: list[str], change: Callable[[list[Any]], list[Any]]
) -> None:
    samples = change([file_sample(path) for path in paths])
    assert demo_reader.verify(request(paths), opener(samples))["wrong"]


# --- the report ---------------------------------------------------------------------------------------


def a_report(**changes: Any) -> Report:
    phase = {
        "baseline_rss": 50_000_000,
        "peak_rss": 60_000_000,
        "served": {"gets": 12, "others": 1, "bytes": 10_100_000},
    }
    report = Report(
        options=DemoOptions(latency_ms=20.0),
        memory=2_000_000,
        items=100,
        dataset_bytes=10_000_000,
        chunks=1,
        skipped=0,
        left_out=0,
        write_s=0.1,
        stream={**phase, "first_s": 0.05, "seconds": 2.0, "items": 100, "bytes": 9_000_000},
        verify={**phase, "verified": 100, "wrong": []},
        random={**phase, "times": [0.02] * 18 + [0.04] * 2, "verified": 20, "wrong": []},
    )
    for name, value in changes.items():
        setattr(report, name, {**getattr(report, name), **value})
    return report


def test_report_states_the_figures() -> None:
    report = a_report()
    assert report.ok
    text = "\n".join(report.lines())
    for part in (
        "2.0 MB; the dataset is 5.0 times it",
        "50 ms = 2.5 round trips",
        "50 items/s, 4.5 MB/s",
        "12 GETs and 1 HEADs, 10.1 MB fetched (1.01x the dataset)",
        "p50 20 ms = 1.0 round trips, p95 40 ms = 2.0 round trips",
        "10.0 MB above the imports' 50.0 MB: within budget + 16 MiB = 18.8 MB",
        "100 of 100 items equal to their files, 20 of 20 random reads",
    ):
        assert part in text


@pytest.mark.parametrize(
    "change",
    [
        {"verify": {"verified": 99, "wrong": ["item 5: not equal to x"]}},
        {"verify": {"verified": 99}},
        {"random": {"wrong": ["random read of item 5"]}},
        {"stream": {"items": 99}},
    ],
)
def test_report_of_any_difference_is_not_ok(change: dict[str, Any]) -> None:
    assert not a_report(**change).ok


def test_memory_beyond_the_budget_is_called_over() -> None:
    assert "OVER budget" in "\n".join(a_report(random={"peak_rss": 90_000_000}).lines())


def test_failing_phase_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        def reset(self) -> None:
            pass

    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LazyStoreError, match="the verify phase of the demo failed with status 1"):
        demo._phase("verify", {}, Store())  # type: ignore[arg-type]


# --- all of it ----------------------------------------------------------------------------------------


def test_demo_streams_and_verifies_real_files_and_keeps_the_dataset_on_request(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    out = io.StringIO()
    folder = tmp_path / "kept"
    options = DemoOptions(memory=4 << 20, latency_ms=2.0, folder=folder, limit=300, reads=20)
    report = demo.run(options, out=out)
    assert report.ok, out.getvalue()
    assert report.verify["verified"] == report.items > 250
    assert report.random["verified"] == 20
    assert report.stream["served"]["bytes"] >= report.dataset_bytes
    assert (folder / "index.json").exists()
    assert f"verified                {report.items} of {report.items} items" in out.getvalue()
    with pytest.raises(ConfigError, match="holds a dataset already"):
        demo.run(options, out=out)
