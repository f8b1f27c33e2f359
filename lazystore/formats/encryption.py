"""Encryption of LitData's datasets: Fernet and RSA, and the key files LitData saves.

The dataset itself holds no key: an index says only which algorithm was used, on items or on whole chunks. Any object
with ``algorithm``, ``level`` and ``decrypt(bytes) -> bytes`` can stand in for the classes here. Needs the ``crypto``
extra (cryptography), when an object is made.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lazystore.errors import ConfigError, DecryptionError, FormatError, MissingExtraError

__all__ = ["Encryption", "FernetEncryption", "RSAEncryption", "check_encryption", "item_opener", "open_token"]

LEVELS = ("sample", "chunk")
#: PBKDF2-HMAC-SHA256 as LitData runs it.
ITERATIONS = 480_000
KEY_BYTES = 32
SALT_BYTES = 16
RSA_BITS, RSA_EXPONENT, RSA_OVERHEAD = 2048, 65537, 66
#: A key file is a few KiB of JSON.
MAX_KEY_FILE = 1 << 20


class Encryption(Protocol):
    """What reading needs of an encryption; LitData's own objects have it."""

    level: str

    @property
    def algorithm(self) -> str: ...

    def decrypt(self, data: bytes, /) -> bytes: ...


class FernetEncryption:
    """Encryption with a password: AES-128-CBC and HMAC-SHA256, as standard Fernet tokens.

    Parameters:
        password: whatever length; the key is derived from it and the salt.
        level: "sample" (every item is a token; random access stays) or "chunk" (every chunk is one).
        salt: 16 bytes; new random ones when None. Without the salt (see :meth:`save`) the data is lost.

    Raises:
        ConfigError: another level or a salt of another length.
        MissingExtraError: cryptography is not installed.

    Cost: 0.1-0.3 s to derive the key; then some 20 us an item and ~150 MB/s. Threads: shared freely. Fork: copied.
    Pickling: with its key, not the password.
    """

    algorithm = "fernet"

    def __init__(self, password: str, level: str = "sample", salt: bytes | None = None) -> None:
        self.level = _level(level)
        self.salt = os.urandom(SALT_BYTES) if salt is None else bytes(salt)
        if len(self.salt) != SALT_BYTES:
            raise ConfigError(f"the salt has {len(self.salt)} bytes instead of {SALT_BYTES}")
        self._use(_derive(password, self.salt))

    def _use(self, key: bytes) -> None:
        self._key = key
        self._fernet = _cryptography("fernet").Fernet(key)

    def encrypt(self, data: bytes) -> bytes:
        """A token of ``data``: 4/3 of it and 100 bytes."""
        return bytes(self._fernet.encrypt(data))

    def decrypt(self, data: bytes) -> bytes:
        """What a token holds.

        Raises:
            DecryptionError: it is none, is damaged, or was made with another password or salt.
        """
        try:
            return bytes(self._fernet.decrypt(data))
        except _cryptography("fernet").InvalidToken:
            raise DecryptionError(
                f"{len(data)} bytes cannot be decrypted with fernet: the password or the key file's salt is not the "
                "one they were encrypted with, or they are damaged"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key file LitData would: level and salt, not the password. Only the owner may read it."""
        salt = base64.urlsafe_b64encode(self.salt).decode()
        _write(path, {"algorithm": self.algorithm, "level": self.level, "salt": salt})

    @classmethod
    def load(cls, path: str | os.PathLike[str], password: str) -> FernetEncryption:
        """The encryption of a key file (LitData's or one of :meth:`save`) and its password.

        Raises:
            FormatError: not such a file. A wrong password shows when the first item is read.
        """
        state = _read(path)
        if state.get("algorithm", cls.algorithm) != cls.algorithm:
            raise FormatError(f"{path} is a key file for {state['algorithm']!r}, not for fernet")
        try:
            salt = base64.b64decode(state["salt"].encode("ascii"), altchars=b"-_", validate=True)
        except (KeyError, AttributeError, ValueError) as error:
            raise FormatError(f"{path} is no key file for fernet: it has no salt in base64 ({error!r})") from None
        if len(salt) != SALT_BYTES:
            raise FormatError(f"{path} is no key file for fernet: its salt has {len(salt)} bytes, not {SALT_BYTES}")
        return cls(password, _stored_level(state, path), salt)

    def __getstate__(self) -> dict[str, Any]:
        return {"level": self.level, "salt": self.salt, "key": self._key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.level, self.salt = state["level"], state["salt"]
        self._use(state["key"])

    def __repr__(self) -> str:
        return f"FernetEncryption(level={self.level!r})"


class RSAEncryption:
    """Encryption with a key pair (2048 bits, OAEP with SHA-256): items of at most 190 bytes.

    Parameters:
        password: protects the private key in the key file.
        level: "sample", or "chunk" for chunks that small.

    Raises:
        ConfigError: another level.
        MissingExtraError: cryptography is not installed.

    Cost: ~0.1 s to make the keys; then ~1 ms an item to decrypt. Threads: shared freely. Fork: copied. Pickling: with
    the private key, encrypted by the password, and the password.
    """

    algorithm = "rsa"

    def __init__(self, password: str, level: str = "sample") -> None:
        rsa = _cryptography("hazmat.primitives.asymmetric.rsa")
        self.level = _level(level)
        self._password = password
        self._private: Any = rsa.generate_private_key(public_exponent=RSA_EXPONENT, key_size=RSA_BITS)
        self._public: Any = self._private.public_key()

    def encrypt(self, data: bytes) -> bytes:
        """256 bytes that only the private key opens.

        Raises:
            ConfigError: more than 190 bytes, or no public key.
        """
        if self._public is None:
            raise ConfigError("the key file has no public key; nothing can be encrypted with it")
        room = self._public.key_size // 8 - RSA_OVERHEAD
        if len(data) > room:
            raise ConfigError(f"RSA encrypts at most {room} bytes at a time, not {len(data)}; use FernetEncryption")
        return bytes(self._public.encrypt(data, _oaep()))

    def decrypt(self, data: bytes) -> bytes:
        """What was encrypted.

        Raises:
            DecryptionError: it is damaged, or was made for another key.
            ConfigError: the key file had no private key.
        """
        if self._private is None:
            raise ConfigError("the key file has no private key; nothing can be decrypted with it")
        try:
            return bytes(self._private.decrypt(bytes(data), _oaep()))
        except ValueError:
            raise DecryptionError(
                f"{len(data)} bytes cannot be decrypted with rsa: the private key is not the one they were encrypted "
                "for, or they are damaged"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key file LitData would, which only the owner may read.

        LitData's form holds the password beside the private key it protects: keep the file itself safe.
        """
        _write(path, self.__getstate__())

    @classmethod
    def load(cls, path: str | os.PathLike[str], password: str) -> RSAEncryption:
        """The encryption of a key file (LitData's or one of :meth:`save`) and its password.

        Raises:
            DecryptionError: the password does not open the private key.
            FormatError: not such a file.
        """
        state = _read(path)
        loaded = cls.__new__(cls)
        loaded._restore(_stored_level(state, path), state.get("private_key"), state.get("public_key"), password, path)
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        serialization = _cryptography("hazmat.primitives.serialization")
        private = public = None
        if self._private is not None:
            lock = serialization.NoEncryption()
            if self._password:
                lock = serialization.BestAvailableEncryption(self._password.encode())
            form = serialization.PrivateFormat.TraditionalOpenSSL
            private = self._private.private_bytes(serialization.Encoding.PEM, form, lock).decode()
        if self._public is not None:
            form = serialization.PublicFormat.SubjectPublicKeyInfo
            public = self._public.public_bytes(serialization.Encoding.PEM, form).decode()
        return {"private_key": private, "public_key": public, "password": self._password, "level": self.level}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state["level"], state["private_key"], state["public_key"], state["password"], "the pickle")

    def _restore(self, level: str, private: Any, public: Any, password: str, place: Any) -> None:
        serialization = _cryptography("hazmat.primitives.serialization")
        self.level, self._password = level, password
        self._private = self._public = None
        try:
            if private is not None:
                key = password.encode() if password and "ENCRYPTED" in private else None
                self._private = serialization.load_pem_private_key(private.encode(), password=key)
                self._public = self._private.public_key()
            elif public is not None:
                self._public = serialization.load_pem_public_key(public.encode())
        except ValueError as error:
            if "password" in str(error).lower() or "decrypt" in str(error).lower():
                raise DecryptionError(f"{place}: the password does not open the private key") from None
            raise FormatError(f"{place} holds no RSA keys ({error})") from None
        except (TypeError, AttributeError) as error:
            if private is not None and not password:
                raise DecryptionError(f"{place}: its private key needs a password") from None
            raise FormatError(f"{place} holds no RSA keys ({error})") from None
        if self._public is None or not hasattr(self._public, "encrypt"):
            raise FormatError(f"{place} holds no RSA keys")

    def __repr__(self) -> str:
        return f"RSAEncryption(level={self.level!r})"


# -- what reading asks ----------------------------------------------------------------------


def check_encryption(given: Any, stored: tuple[str, str] | None) -> Encryption | None:
    """What the caller gave for a dataset whose index says ``stored`` (algorithm and level, or None).

    Raises:
        ConfigError: nothing was given, something else, or something for a dataset that is not encrypted.
    """
    if given is None and stored is None:
        return None
    if stored is None:
        raise ConfigError(f"encryption={given!r} is given for a dataset that is not encrypted; leave it out")
    algorithm, level = stored
    if given is None:
        make = {"fernet": "lazystore.FernetEncryption.load(key_file, password)", "rsa": "lazystore.RSAEncryption.load"}
        raise ConfigError(
            f"the dataset is encrypted ({algorithm}, level {level}); "
            f"pass encryption={make.get(algorithm, 'an object with algorithm, level and decrypt(bytes)')}"
        )
    if not callable(getattr(given, "decrypt", None)):
        raise ConfigError(f"encryption={given!r} has no decrypt(bytes)")
    found = getattr(given, "algorithm", None), getattr(given, "level", None)
    if found != stored:
        raise ConfigError(
            f"the dataset is encrypted with {algorithm}, level {level}; encryption= is {found[0]}, level {found[1]}"
        )
    return given  # type: ignore[no-any-return]


def open_token(encryption: Encryption, token: bytes) -> bytes:
    """Decrypt with whatever the caller gave.

    Raises:
        DecryptionError: also for whatever an object of the caller's raised.
    """
    try:
        data = encryption.decrypt(token)
    except (DecryptionError, ConfigError):
        raise
    except Exception as error:
        raise DecryptionError(
            f"{len(token)} bytes cannot be decrypted with {encryption.algorithm} ({error!r}): "
            "a wrong password or key, or they are damaged"
        ) from error
    if not isinstance(data, bytes):
        raise DecryptionError(f"{type(encryption).__name__}.decrypt gave a {type(data).__name__} instead of bytes")
    return data


def item_opener(encryption: Encryption) -> Callable[[bytes], bytes]:
    """What a decode plan does with an item encrypted for itself, before decoding it."""

    def opened(token: bytes) -> bytes:
        return open_token(encryption, token)

    return opened


# -- files and packages ---------------------------------------------------------------------


def _cryptography(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"cryptography.{name}")
    except ImportError:
        raise MissingExtraError("the dataset is encrypted; pip install lazystore[crypto]") from None


def _derive(password: str, salt: bytes) -> bytes:
    hashes = _cryptography("hazmat.primitives.hashes")
    derive = _cryptography("hazmat.primitives.kdf.pbkdf2").PBKDF2HMAC
    secret = derive(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, iterations=ITERATIONS)
    return base64.urlsafe_b64encode(secret.derive(password.encode()))


def _oaep() -> Any:
    hashes, padding = _cryptography("hazmat.primitives.hashes"), _cryptography("hazmat.primitives.asymmetric.padding")
    return padding.OAEP(mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def _level(level: str) -> str:
    if level not in LEVELS:
        raise ConfigError(f"level={level!r} is not one of {', '.join(LEVELS)}")
    return level


def _stored_level(state: dict[str, Any], path: Any) -> str:
    if state.get("level") not in LEVELS:
        raise FormatError(f"{path} is no key file: its level is {state.get('level')!r}")
    return str(state["level"])


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(MAX_KEY_FILE + 1)
    try:
        state = json.loads(data) if len(data) <= MAX_KEY_FILE else None
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise FormatError(f"{path} is no key file: it holds no JSON object")
    return state


def _write(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """The whole file or none; the temporary one is created for the owner alone."""
    folder = Path(path).parent
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".key-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(state).encode())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
