"""What the hub says of a repository, asked for in one request, and what it refuses to say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import hub_samples

from lazystore.errors import ConfigError, DatasetNotFoundError, FetchError, FetchTimeoutError, HubAccessError
from lazystore.hub import repository
from lazystore.hub.repository import Repository, hub_headers, hub_token, read_repository
from lazystore.testing import Faults, LocalHub

Published = Callable[[str], str]


def read(name: str, revision: str | None = None, token: str | None = None, timeout: float = 30.0) -> Repository:
    return read_repository(name, revision=revision, token=token, timeout=timeout)


def test_one_request_tells_all(hub: LocalHub, published: Published) -> None:
    name = published("carded")
    files = hub_samples.carded()
    hub.reset()
    found = read(name)
    assert hub.traffic()["requests"] == 1
    assert found.files == {path: len(data) for path, data in files.items()}
    assert found.card["license"] == "mit"
    assert [one["config_name"] for one in found.card["configs"]] == ["first", "second"]
    assert found.url == f"{hub.endpoint}/datasets/{name}/resolve/{found.sha}"
    assert (found.name, found.gated, found.whole) == (name, False, True)


def test_revisions(hub: LocalHub) -> None:
    old = hub.add("t/rev", {"a.txt": b"1"})
    branch = hub.add("t/rev", {"b.txt": b"22"}, revision="refs/convert/parquet")
    new = hub.add("t/rev", {"c.txt": b"333"})
    assert (read("t/rev").sha, read("t/rev", "main").sha, read("t/rev", old).sha) == (new, new, old)
    found = read("t/rev", "refs/convert/parquet")
    assert (found.sha, found.files) == (branch, {"b.txt": 2})
    with pytest.raises(DatasetNotFoundError, match=r"t/rev has no revision 'v9'"):
        read("t/rev", "v9")


@pytest.mark.parametrize("name", ["samples/text", "datasets/samples/text", "hf://datasets/samples/text"])
def test_ways_to_write_a_name(published: Published, name: str) -> None:
    published("text")
    assert read(name).name == "samples/text"


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a//b", "https://x/y", "a b", "/a"])
def test_names_that_no_repository_has(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a dataset"):
        read(name)


def test_absent_and_private_ones_cannot_be_told_apart(published: Published) -> None:
    for name in ("nobody/nothing", published("private")):
        with pytest.raises(DatasetNotFoundError, match=r"there is no dataset .* or it is private.*or give a token="):
            read(name)
    assert read("samples/private", token=hub_samples.READER).files


def test_gated_ones_are_described(published: Published) -> None:
    assert read(published("gated")).gated


def test_wrong_tokens(published: Published) -> None:
    with pytest.raises(HubAccessError, match=r"refuses access to samples/text \(Invalid credentials.*token does not"):
        read(published("text"), token="stolen")


def test_disabled_ones(hub: LocalHub) -> None:
    hub.add("t/off", {"a": b""}, disabled=True)
    with pytest.raises(HubAccessError, match="disabled"):
        read("t/off")


def test_tokens_that_are_valid_elsewhere(hub: LocalHub, published: Published) -> None:
    name = published("private")
    hub.add("t/others", {"a": b""}, private=True, token="another")
    with pytest.raises(DatasetNotFoundError, match=r"check its name$"):
        read(name, token="another")


def test_a_busy_hub_is_asked_again_when_it_says(hub: LocalHub, published: Published) -> None:
    name = published("text")
    hub.set(busy=2)
    assert read(name).files
    hub.set(busy=1, retry_after=1)
    began = time.monotonic()
    assert read(name).files
    assert time.monotonic() - began >= 1


def test_accidents_are_tried_again(hub: LocalHub, published: Published) -> None:
    name = published("text")
    for kind in ("error_503", "cut"):
        hub.set(faults=Faults(first=(kind, kind)))
        assert len(read(name).files) == 6


def test_a_hub_that_is_down(hub: LocalHub, published: Published) -> None:
    name = published("text")
    hub.set(down=True)
    with pytest.raises(FetchError, match=r"cannot ask the hub about samples/text.*4 attempts.*HF_ENDPOINT") as caught:
        read(name)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.attempts == 4


def test_a_hub_that_is_silent(hub: LocalHub, published: Published) -> None:
    name = published("text")
    hub.set(faults=Faults(stall=1.0))
    began = time.monotonic()
    with pytest.raises(FetchTimeoutError, match="cannot ask the hub"):
        read(name, timeout=0.3)
    assert time.monotonic() - began < 10


def test_something_else_that_answers(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("t/json", {"x": b"[1, 2]"}, redirect=False)
    monkeypatch.setattr(repository, "_ask", lambda *_: b"<html>")
    with pytest.raises(FetchError, match="no description of a repository"):
        read("t/json")


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set; unset it"):
        read("samples/text")


def test_where_the_hub_is_is_looked_up_when_asked(monkeypatch: pytest.MonkeyPatch, published: Published) -> None:
    name = published("text")
    with LocalHub() as other:
        sha = other.add(name, {"another.txt": b""})
        monkeypatch.setenv("HF_ENDPOINT", other.endpoint + "/")
        assert read(name).url == f"{other.endpoint}/datasets/{name}/resolve/{sha}"


class _Answering(BaseHTTPRequestHandler):
    """Answers as a broken or hostile endpoint does."""

    def do_GET(self) -> None:
        kind = self.path.rpartition("/")[2]
        places = {"moved": Path(__file__).as_uri(), "lost": "http://[::1"}
        self.send_response(302 if kind in places else 200)
        if kind in places:
            self.send_header("Location", places[kind])
        if kind == "short":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            for _ in range({"endless": 1000, "dripping": 1000, "short": 1}.get(kind, 0)):
                self.wfile.write(b"x" * (1 if kind == "dripping" else 65536 if kind == "endless" else 10))
                time.sleep(0.01 if kind == "dripping" else 0)
        except OSError:
            pass  # the other side has had enough

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def strange() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_without_end_is_given_up(strange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "MAX_ANSWER", 1 << 20)
    with pytest.raises(ConnectionError, match="more than 1048576 bytes"):
        repository._get(f"{strange}/endless", {}, 10)


def test_an_answer_that_drips_is_given_up_in_time(strange: str) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="all the time there was"):
        repository._get(f"{strange}/dripping", {}, 10, began + 0.1)
    assert time.monotonic() - began < 10


def test_an_answer_that_is_cut_is_no_answer(strange: str) -> None:
    with pytest.raises(ConnectionError, match="cut"):
        repository._get(f"{strange}/short", {}, 10)


def test_a_redirect_to_a_local_file_is_not_followed(strange: str) -> None:
    with pytest.raises(FetchError, match=r"file:.* is no address of the web"):
        repository._get(f"{strange}/moved", {}, 10)


def test_a_redirect_to_no_address(strange: str) -> None:
    with pytest.raises(FetchError, match=r"redirects to 'http://\[::1'"):
        repository._get(f"{strange}/lost", {}, 10)


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "5", '"x"', "[" * 100_000, '{"siblings": [], "sha": "../../.."}',
     '{"siblings": [], "sha": "' + 40 * "b" + '", "id": "../.."}',
     '{"siblings": [{"rfilename": "a", "size": 1e999}], "sha": "' + 40 * "b" + '"}'],
)  # fmt: skip
def test_answers_that_describe_nothing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(repository, "_ask", lambda *_: text.encode())
    with pytest.raises(FetchError, match="no description of a repository"):
        read("a/b")


# -- tokens ------------------------------------------------------------------------------------


def test_tokens_come_from_the_argument_the_environment_or_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert hub_token(None) is None
    with pytest.raises(HubAccessError, match="hf auth login"):
        hub_token(True)
    monkeypatch.setenv("HF_TOKEN", " of-environment\n")
    assert (hub_token(None), hub_token(True), hub_token("own"), hub_token(False)) == (
        "of-environment", "of-environment", "own", None
    )  # fmt: skip
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert (hub_token(None), hub_token(True)) == (None, "of-environment")


def test_a_token_is_taken_without_the_blanks_around_it_and_never_shown() -> None:
    assert hub_token(" hf_abc\n") == "hf_abc"
    assert hub_token("") is None
    for broken in ("hf_abc\nX-Other: 1", "hf_\xe9", "hf abc"):
        with pytest.raises(ConfigError, match="characters that no token has") as caught:
            hub_token(broken)
        assert "hf_" not in str(caught.value).partition("like")[0]


def test_a_login_is_read_by_its_own_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "of-login")
    assert hub_token(None) is None  # no login: the package is not even imported
    (tmp_path / "token").write_text("x")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert hub_token(None) == "of-login"


def test_headers_say_who_asks() -> None:
    assert hub_headers(None)["User-Agent"] == "lazystore"
    assert "Authorization" not in hub_headers(None)
    assert hub_headers("abc")["Authorization"] == "Bearer abc"


def test_the_token_is_not_shown_to_whom_the_hub_points_at(hub: LocalHub) -> None:
    sha = hub.add("t/secret", {"big.parquet": b"x" * 10}, private=True, token="mine")
    status, _, body = repository._get(
        f"{hub.endpoint}/datasets/t/secret/resolve/{sha}/big.parquet", hub_headers("mine"), 10
    )
    assert (status, body) == (200, b"x" * 10)  # the CDN refuses whoever shows it the token
