"""What the local hub answers, asked in plain HTTP; test_hub_clients.py has the real libraries ask."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

import lazystore
from lazystore.errors import ClosedError, ConfigError
from lazystore.testing import Faults, LocalHub, dependent_waves

NOTE = b"---\nlicense: mit\nconfigs:\n- config_name: a\n---\n# A note\n"
DATA = random.Random(3).randbytes(100_000)
FILES = {"README.md": NOTE, "data/train.parquet": DATA, "data/n+te ü.txt": b"x" * 10}
NAME = "org/name"


@pytest.fixture(scope="module")
def running():
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def hub(running):
    running.calm()
    running.add(NAME, FILES)
    return running


def ask(url, method="GET", body=None, **headers):
    """Status, headers and body; redirects are not followed."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def api(hub, rest="", **headers):
    status, found, body = ask(f"{hub.endpoint}/api/datasets/{NAME}{rest}", **headers)
    return status, found, json.loads(body)


def resolve(hub, path, revision="main", method="GET", repo=NAME, **headers):
    url = f"{hub.endpoint}/datasets/{repo}/resolve/{urllib.parse.quote(revision, safe='')}/{urllib.parse.quote(path)}"
    return ask(url, method, **headers)


# -- the API


def test_a_repository_is_described_with_its_card_and_files(hub):
    sha = hub.add(NAME, FILES)
    status, _, said = api(hub)
    assert status == 200
    assert (said["id"], said["sha"], said["private"], said["gated"], said["disabled"]) == (
        NAME,
        sha,
        False,
        False,
        False,
    )
    assert said["cardData"] == {"license": "mit", "configs": [{"config_name": "a"}]}
    assert [file["rfilename"] for file in said["siblings"]] == sorted(FILES)
    assert all(set(file) == {"rfilename"} for file in said["siblings"])


def test_sizes_come_when_blobs_are_asked_for(hub):
    siblings = api(hub, "/revision/main?blobs=True")[2]["siblings"]
    assert {file["rfilename"]: file["size"] for file in siblings} == {path: len(data) for path, data in FILES.items()}
    assert {file["rfilename"]: file["lfs"]["size"] for file in siblings if "lfs" in file} == {
        "data/train.parquet": len(DATA)
    }


def test_a_revision_is_a_branch_or_the_id_of_any_commit(hub):
    first = hub.add(NAME, FILES)
    second = hub.add(NAME, {"other.txt": b"other"})
    converted = hub.add(NAME, {"default/train/0000.parquet": b"rows"}, revision="refs/convert/parquet")
    assert api(hub)[2]["sha"] == second
    assert api(hub, f"/revision/{first}")[2]["sha"] == first
    assert api(hub, "/revision/refs%2Fconvert%2Fparquet")[2]["sha"] == converted
    assert api(hub, "/revision/refs/convert/parquet")[2]["sha"] == converted
    assert resolve(hub, "README.md", first)[2] == NOTE
    assert resolve(hub, "README.md")[0] == 404
    assert [ref["targetCommit"] for ref in api(hub, "/refs")[2]["converts"]] == [converted]


def test_long_listings_come_in_pages_that_link_to_the_next(hub):
    hub.add(NAME, {f"{i // 10}/{i}.txt": b"x" for i in range(25)})
    hub.set(page_size=7)
    url, found, pages = f"{hub.endpoint}/api/datasets/{NAME}/tree/main?recursive=True&expand=False", [], 0
    while url:
        status, headers, body = ask(url)
        assert status == 200
        found += json.loads(body)
        pages += 1
        url = headers.get("Link", "").partition("<")[2].partition(">")[0]
    assert pages == 4
    assert sorted(entry["path"] for entry in found if entry["type"] == "file") == sorted(
        f"{i // 10}/{i}.txt" for i in range(25)
    )
    assert [entry["path"] for entry in found if entry["type"] == "directory"] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["form", "json"])
def test_paths_are_described_and_those_that_are_not_there_left_out(hub, kind):
    wanted = ["data", "README.md", "no"]
    if kind == "json":
        body, content = json.dumps({"paths": wanted}), "application/json"
    else:
        body, content = urllib.parse.urlencode({"paths": wanted}, doseq=True), "application/x-www-form-urlencoded"
    status, _, said = api(hub, "/paths-info/main", method="POST", body=body, Content_Type=content)
    assert status == 200
    assert [(entry["path"], entry["type"]) for entry in said] == [("data", "directory"), ("README.md", "file")]


# -- files


def test_a_small_file_comes_at_once_with_its_identity(hub):
    sha = hub.add(NAME, FILES)
    status, headers, body = resolve(hub, "data/n+te ü.txt")
    assert (status, body) == (200, b"x" * 10)
    assert headers["X-Repo-Commit"] == sha
    head_status, head, nothing = resolve(hub, "data/n+te ü.txt", method="HEAD")
    assert (head_status, head["ETag"], head["Content-Length"], nothing) == (200, headers["ETag"], "10", b"")
    assert resolve(hub, "data/n+te ü.txt", If_None_Match=headers["ETag"])[0] == 304


def test_a_large_file_is_redirected_to_another_origin_and_read_there_by_ranges(hub):
    sha = hub.add(NAME, FILES)
    status, headers, _ = resolve(hub, "data/train.parquet", method="HEAD")
    assert status == 302
    assert (headers["X-Linked-Size"], headers["X-Repo-Commit"]) == (str(len(DATA)), sha)
    link = headers["Location"]
    assert link.startswith(hub.cdn) and not link.startswith(hub.endpoint)
    status, found, body = ask(link, Range="bytes=1000-1999")
    assert (status, body) == (206, DATA[1000:2000])
    assert found["Content-Range"] == f"bytes 1000-1999/{len(DATA)}"
    assert found["ETag"] == headers["X-Linked-ETag"]
    assert ask(link)[2] == DATA
    assert ask(link, Range=f"bytes={len(DATA)}-")[0] == 416


def test_the_link_takes_no_token_and_expires(hub):
    link = resolve(hub, "data/train.parquet")[1]["Location"]
    assert ask(link, **bearer("hf_any"))[0] == 400
    hub.expire_links()
    assert ask(link)[0] == 403
    assert ask(resolve(hub, "data/train.parquet")[1]["Location"])[0] == 200


def test_which_files_are_redirected_can_be_chosen(hub):
    hub.add(NAME, FILES, redirect=False)
    assert resolve(hub, "data/train.parquet")[::2] == (200, DATA)
    hub.add(NAME, FILES, redirect=[".md"])
    assert [resolve(hub, path)[0] for path in ("README.md", "data/train.parquet")] == [302, 200]


def test_files_are_copied_when_they_are_added(hub, tmp_path):
    source = tmp_path / "rows.txt"
    source.write_bytes(b"first")
    hub.add(NAME, {"rows.txt": source})
    source.write_bytes(b"second")
    assert resolve(hub, "rows.txt")[2] == b"first"


def test_a_repository_of_thousands_of_files_can_be_added(hub):
    hub.add("org/many", {f"train/{i:06d}.some-rather-long-name-of-a-file.txt": b"" for i in range(4000)})
    assert len(json.loads(ask(f"{hub.endpoint}/api/datasets/org/many")[2])["siblings"]) == 4000
    hub.remove("org/many")


@pytest.mark.parametrize("name", ["", "a/b/c", "/a", "a/", "a b/c", "ü/c"])
def test_names_that_no_repository_has_are_refused(hub, name):
    with pytest.raises(ConfigError, match="repository's name"):
        hub.add(name, {})


# -- refusals


@pytest.mark.parametrize(
    ("path", "revision", "code"), [("no.txt", "main", "EntryNotFound"), ("README.md", "no\r\nü", "RevisionNotFound")]
)
def test_what_is_not_there_is_said_in_a_header(hub, path, revision, code):
    status, headers, _ = resolve(hub, path, revision)
    assert (status, headers["X-Error-Code"]) == (404, code)
    assert (headers["X-Repo-Commit"] is not None) is (code == "EntryNotFound")


def test_a_gated_repository_is_described_to_all_and_read_with_a_token(hub):
    hub.add("org/gated", FILES, gated=True, token="hf_in")
    hub.add("org/else", FILES, token="hf_out")
    status, _, body = ask(f"{hub.endpoint}/api/datasets/org/gated")
    assert (status, json.loads(body)["gated"]) == (200, "auto")
    found = {}
    for token in (None, "hf_out", "hf_in", "hf_unknown"):
        status, headers, _ = resolve(hub, "README.md", repo="org/gated", **(bearer(token) if token else {}))
        found[token] = (status, headers["X-Error-Code"])
    gated = "GatedRepo"
    assert found == {None: (401, gated), "hf_out": (403, gated), "hf_in": (200, None), "hf_unknown": (401, None)}


def test_a_private_repository_is_to_others_as_one_that_is_not_there(hub):
    hub.add("org/private", FILES, private=True, token=["hf_in", "hf_too"])
    hub.add("org/else", FILES, token="hf_out")
    for token in (None, "hf_out"):
        headers = bearer(token) if token else {}
        hidden = resolve(hub, "README.md", repo="org/private", **headers)
        absent = resolve(hub, "README.md", repo="org/absent", **headers)
        assert hidden[0] == absent[0] == (404 if token else 401)
        assert hidden[2] == absent[2]
        assert hidden[1]["X-Error-Code"] == absent[1]["X-Error-Code"] == "RepoNotFound"
    assert resolve(hub, "README.md", repo="org/private", **bearer("hf_too"))[0] == 200


def test_a_disabled_repository_is_refused_and_a_removed_one_gone(hub):
    hub.add("org/off", FILES, disabled=True)
    assert resolve(hub, "README.md", repo="org/off")[0] == 403
    hub.remove("org/off")
    assert resolve(hub, "README.md", repo="org/off")[0] == 401
    with pytest.raises(ConfigError, match="org/off"):
        hub.remove("org/off")


def test_no_request_goes_without_an_answer(hub):
    chance = random.Random(11)
    parts = [*"/%?&=.", "api", "datasets", "org", "name", "tree", "main", "resolve", "refs", "paths-info", "revision"]
    parts += ["/", "/", "/", "README.md", "%ff", "%0d%0a", "%C3%BC", "cursor=x", "cursor=-1", "recursive=1", "\xfc"]
    targets = ["/" + "".join(chance.choices(parts, k=chance.randrange(12))) for _ in range(150)]
    targets += [f"/api/datasets/{NAME}/tree/main?cursor=x", f"/api/datasets/{NAME}/paths-info/main"]
    parts_of_url = urllib.parse.urlsplit(hub.endpoint)
    with socket.create_connection((parts_of_url.hostname, parts_of_url.port), timeout=20) as sock:
        for target in targets:
            method, body = chance.choice([("GET", ""), ("HEAD", ""), ("POST", '{"paths": 1}'), ("PUT", "x")])
            head = (
                f"{method} {target} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            sock.sendall((head + body).encode("latin-1"))
            answer = http.client.HTTPResponse(sock, method=method)
            answer.begin()
            answer.read()
            assert answer.status in (200, 302, 400, 401, 404, 501), target
    assert "log" in hub.traffic()


# -- what goes wrong, and what is counted


def test_traffic_is_counted_by_what_it_was_about(hub):
    hub.reset()
    api(hub)
    api(hub, "/tree/main")
    api(hub, "/paths-info/main", method="POST", body="paths=data")
    ask(resolve(hub, "data/train.parquet")[1]["Location"])
    ask(f"{hub.endpoint}/api/whoami-v2")
    traffic = hub.traffic()
    assert traffic["kinds"] == {"info": 1, "tree": 1, "paths": 1, "resolve": 1, "cdn": 1, "other": 1}
    assert traffic["requests"] == 6
    assert traffic["bytes"] > len(DATA)
    assert traffic["log"][4]["sent"] == len(DATA)
    hub.reset()
    assert hub.traffic()["requests"] == 0


def test_round_trips_are_seen_in_the_log(hub):
    hub.set(latency_ms=30)
    hub.reset()
    ask(resolve(hub, "data/train.parquet")[1]["Location"])
    log = hub.traffic()["log"]
    assert dependent_waves(log) == 2
    assert all(entry["finished"] - entry["received"] >= 0.029 for entry in log)


def test_a_hub_that_is_down_refuses_connections_until_it_is_up_again(hub):
    kept = http.client.HTTPConnection(urllib.parse.urlsplit(hub.endpoint).netloc, timeout=20)
    kept.request("GET", f"/api/datasets/{NAME}")
    kept.getresponse().read()
    hub.set(down=True)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        kept.request("GET", f"/api/datasets/{NAME}")
        kept.getresponse()
    kept.close()
    for url in (hub.endpoint, hub.cdn):
        with pytest.raises(ConnectionRefusedError):
            ask(url)
    hub.set(down=True)
    hub.set()
    assert api(hub)[0] == 200
    assert ask(resolve(hub, "data/train.parquet")[1]["Location"])[2] == DATA


def test_it_goes_down_after_so_many_requests(hub):
    hub.set(fail_after_requests=2)
    assert [api(hub)[0], api(hub)[0]] == [200, 200]
    with pytest.raises(ConnectionRefusedError):
        api(hub)
    hub.calm()
    assert api(hub)[0] == 200


def test_it_goes_down_in_the_middle_of_a_body(hub):
    link = resolve(hub, "data/train.parquet")[1]["Location"]
    hub.set(fail_after_bytes=70_000)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(link)
    assert caught.value.partial == DATA[:70_000]
    with pytest.raises(ConnectionRefusedError):
        ask(link)
    hub.set()
    assert ask(link)[2] == DATA


def test_it_is_down_at_once_when_nothing_may_be_answered(hub):
    hub.set(fail_after_requests=0)
    with pytest.raises(ConnectionRefusedError):
        api(hub)


def test_a_busy_hub_says_when_to_come_back(hub):
    hub.set(busy=1, retry_after=3)
    status, headers, _ = api(hub)
    assert (status, headers["Retry-After"]) == (429, "3")
    assert api(hub)[0] == 200


def test_faults_befall_the_paths_they_are_meant_for(hub):
    hub.set(faults=Faults(first=("error_503",), only="repos/*.parquet"))
    assert api(hub)[0] == 200
    link = resolve(hub, "data/train.parquet")[1]["Location"]
    assert [ask(link)[0], ask(link)[0]] == [503, 200]
    assert hub.traffic()["faults"] == {"error_503": 1}
    hub.calm()
    assert hub.traffic()["faults"] == {}


@pytest.mark.parametrize(
    "values", [{"latency_ms": -1}, {"fail_after_bytes": -1}, {"fail_after_requests": -1}, {"bandwidth": "fast"}]
)
def test_weather_that_cannot_be_is_refused(hub, values):
    with pytest.raises(ConfigError):
        hub.set(**values)
    assert api(hub)[0] == 200


# -- the process


def test_a_hub_that_is_closed_is_gone_with_its_files(tmp_path):
    hub = LocalHub(start_timeout=60)
    with pytest.raises(ClosedError):
        hub.endpoint  # noqa: B018
    with hub:
        hub.add(NAME, FILES)
        folder = Path(hub._places["folder"])
        assert any(folder.iterdir())
        assert hub.environment(tmp_path)["HF_ENDPOINT"] == hub.endpoint
        with pytest.raises(TypeError, match="url"):
            pickle.dumps(hub)
    assert not folder.exists()
    hub.close()
    with pytest.raises(ClosedError):
        hub.add(NAME, FILES)


def test_the_hub_goes_with_the_process_that_started_it():
    script = (
        "import os\nfrom lazystore.testing import LocalHub\nhub = LocalHub().start()\n"
        "print(hub.endpoint, hub._places['folder'], flush=True)\nos._exit(0)"
    )
    home = str(Path(lazystore.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": home},
        timeout=60,
        check=True,
    )
    endpoint, folder = done.stdout.split()
    # Its stdout was our pipe: run() has waited for the server too.
    with pytest.raises(OSError):
        ask(endpoint)
    assert not Path(folder).exists()
