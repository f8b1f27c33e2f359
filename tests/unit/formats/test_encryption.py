"""Encryption: LitData's key files and tokens are read, wrong passwords and keys are told, levels are checked."""

from __future__ import annotations

import contextlib
import json
import pickle
import stat
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import golden

from lazystore.errors import ConfigError, DecryptionError, FormatError
from lazystore.formats.encryption import (
    FernetEncryption,
    RSAEncryption,
    check_encryption,
    item_opener,
    open_token,
)

pytest.importorskip("cryptography")
FERNET = sorted(path.parent.parent.name for path in golden.GOLDEN.glob("*/key/key.json"))


@cache
def fernet(password: str = "pass", salt: bytes = bytes(16)) -> FernetEncryption:
    return FernetEncryption(password, salt=salt)  # deriving takes 0.2 s


@cache
def rsa() -> RSAEncryption:
    return RSAEncryption("pass")


# -- fernet ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FERNET)
def test_key_files_of_the_real_writer_open_its_tokens(name: str) -> None:
    key = golden.GOLDEN / name / "key"
    encryption = FernetEncryption.load(key / "key.json", (key / "password.txt").read_text())
    assert encryption.level == name.rpartition("-")[2] and encryption.algorithm == "fernet"
    stored = (golden.GOLDEN / name / "data" / "chunk-0-0.bin").read_bytes()
    if encryption.level == "chunk":
        opened = encryption.decrypt(stored)
        count = json.loads((golden.GOLDEN / name / "data" / "index.json").read_text())["chunks"][0]["chunk_size"]
        assert int.from_bytes(opened[:4], "little") == count


def test_a_saved_key_file_opens_what_was_encrypted(tmp_path: Path) -> None:
    made = FernetEncryption("pässword", level="chunk")
    made.save(tmp_path / "key.json")
    state = json.loads((tmp_path / "key.json").read_text())
    assert set(state) == {"algorithm", "level", "salt"} and "pässword" not in str(state)
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    loaded = FernetEncryption.load(tmp_path / "key.json", "pässword")
    assert loaded.level == "chunk" and loaded.decrypt(made.encrypt(b"\0secret")) == b"\0secret"
    with pytest.raises(DecryptionError, match="password"):
        FernetEncryption.load(tmp_path / "key.json", "other").decrypt(made.encrypt(b"x"))


def test_salts_are_random_unless_given() -> None:
    assert FernetEncryption("p").salt != FernetEncryption("p").salt
    assert fernet().decrypt(FernetEncryption("pass", salt=bytes(16)).encrypt(b"x")) == b"x"


@pytest.mark.parametrize("options", [{"level": "batch"}, {"level": None}, {"salt": b"short"}])
def test_levels_and_salts_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FernetEncryption("p", **options)


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(1, 255), st.sampled_from(["flip", "cut", "extend"]))
def test_changed_tokens_are_refused(data: bytes, at: int, change: int, kind: str) -> None:
    token = bytearray(fernet().encrypt(data))
    at %= len(token)
    if kind == "flip":
        token[at] ^= change
    elif kind == "cut":
        del token[at:]
    else:
        token += bytes([change])
    with contextlib.suppress(DecryptionError):
        assert fernet().decrypt(bytes(token)) == data  # base64 has bits that mean nothing


@pytest.mark.parametrize(
    "content",
    [
        b"", b"nonsense", b"[]", b"{}", b'{"level": "chunk"}', b'{"level": "chunk", "salt": 5}',
        b'{"level": "chunk", "salt": "AAAA"}', b'{"level": "x", "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}',
        b'{"level": "chunk", "salt": "\xc3\xbc"}', b"[" * 10**5, b" " * (1 << 21),
        b'{"algorithm": "rsa", "level": "chunk", "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}',
    ],
)  # fmt: skip
def test_other_files_are_no_key_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(FormatError, match="key"):
        FernetEncryption.load(tmp_path / "key", "p")


# -- rsa ------------------------------------------------------------------------------------


def test_rsa_opens_what_it_encrypted_up_to_its_size() -> None:
    assert rsa().decrypt(rsa().encrypt(b"x" * 190)) == b"x" * 190
    with pytest.raises(ConfigError, match="190"):
        rsa().encrypt(b"x" * 191)


def test_rsa_keys_come_back_from_their_file(tmp_path: Path) -> None:
    rsa().save(tmp_path / "key.json")
    loaded = RSAEncryption.load(tmp_path / "key.json", "pass")
    assert loaded.level == "sample" and loaded.decrypt(rsa().encrypt(b"x")) == b"x"
    assert set(json.loads((tmp_path / "key.json").read_text())) == {"private_key", "public_key", "password", "level"}
    for password in ("other", ""):
        with pytest.raises(DecryptionError, match="password"):
            RSAEncryption.load(tmp_path / "key.json", password)


def test_a_public_key_alone_encrypts(tmp_path: Path) -> None:
    rsa().save(tmp_path / "key.json")
    state = json.loads((tmp_path / "key.json").read_text()) | {"private_key": None}
    (tmp_path / "public.json").write_text(json.dumps(state))
    public = RSAEncryption.load(tmp_path / "public.json", "")
    assert rsa().decrypt(public.encrypt(b"x")) == b"x"
    with pytest.raises(ConfigError, match="private"):
        public.decrypt(b"x" * 256)


@pytest.mark.parametrize("data", [b"", b"x", bytes(256), b"\xff" * 256])
def test_what_rsa_did_not_encrypt_is_refused(data: bytes) -> None:
    with pytest.raises(DecryptionError, match="key"):
        rsa().decrypt(data)


@pytest.mark.parametrize(
    "state",
    [{}, {"private_key": "x"}, {"private_key": 5}, {"public_key": "-----BEGIN PUBLIC KEY-----"}, {"public_key": 1}],
)
def test_files_without_rsa_keys_are_refused(state: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(json.dumps({"level": "sample", "password": "p", **state}))
    with pytest.raises(FormatError, match="key"):
        RSAEncryption.load(tmp_path / "key", "p")


# -- both -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fernet, rsa])
def test_workers_get_encryption_by_pickle(make: Any) -> None:
    copy = pickle.loads(pickle.dumps(make()))
    assert copy.level == make().level and copy.decrypt(make().encrypt(b"x")) == b"x"


@pytest.mark.parametrize("make", [fernet, rsa])
def test_the_repr_tells_no_secret(make: Any) -> None:
    assert "pass" not in repr(make())


# -- what the index says --------------------------------------------------------------------


def test_what_is_given_fits_what_is_stored() -> None:
    assert check_encryption(None, None) is None
    assert check_encryption(fernet(), ("fernet", "sample")) is fernet()
    own = SimpleNamespace(algorithm="mine", level="chunk", decrypt=lambda data: data)
    assert check_encryption(own, ("mine", "chunk")) is own


@pytest.mark.parametrize(
    "given_, stored, message",
    [
        (None, ("fernet", "sample"), r"FernetEncryption\.load"),
        (None, ("rsa", "sample"), "RSAEncryption"),
        (None, ("mine", "chunk"), "mine"),
        ("password", ("fernet", "sample"), "decrypt"),
        (SimpleNamespace(algorithm="fernet", level="chunk", decrypt=len), ("fernet", "sample"), "level sample"),
        (SimpleNamespace(algorithm="rsa", level="sample", decrypt=len), ("fernet", "sample"), "fernet"),
        (SimpleNamespace(decrypt=len), ("fernet", "sample"), "fernet"),
        (SimpleNamespace(algorithm="fernet", level="chunk", decrypt=len), None, "not encrypted"),
    ],
)
def test_what_does_not_fit_is_told(given_: Any, stored: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_encryption(given_, stored)


def test_errors_of_the_callers_own_object_name_it() -> None:
    def broken(data: bytes) -> bytes:
        raise RuntimeError("no such luck")

    own = SimpleNamespace(algorithm="mine", level="sample", decrypt=broken)
    with pytest.raises(DecryptionError, match=r"mine.*no such luck"):
        item_opener(own)(b"token")
    own = SimpleNamespace(algorithm="mine", level="sample", decrypt=lambda data: "text")
    with pytest.raises(DecryptionError, match="str"):
        open_token(own, b"token")
