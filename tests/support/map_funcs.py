"""Functions for ``imap`` in tests: worker processes import them from here."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 30.0


def square(number: int) -> int:
    return number * number


def same(value: Any) -> Any:
    return value


def nothing(value: Any) -> None:
    return None


def late_first(number: int) -> int:
    """Of each few neighbours the first are ready last."""
    time.sleep(0.003 * (4 - number % 5) / 4)
    return number


def slow(number: int) -> int:
    time.sleep(0.02)
    return number


def endless_nap(number: int) -> int:
    time.sleep(1000)
    return number


def spin(rounds: int) -> int:
    """Pure Python work; holds the interpreter lock."""
    found = 0
    for k in range(rounds):
        found += k * k
    return found


def picky(number: int) -> int:
    """Does not like what ends in 3."""
    if number % 10 == 3:
        raise ValueError(f"will not do {number}")
    return -number


def always_fails(number: int) -> int:
    raise LookupError(f"no {number}")


def stops(number: int) -> int:
    """``StopIteration`` must not pass for the end of the results."""
    if number == 5:
        raise StopIteration("five")
    return number


def raises(kind: type[BaseException], at: int, number: int) -> int:
    if number == at:
        raise kind(f"at {number}")
    return number


def gives_errors(number: int) -> Exception:
    """Errors as results are results."""
    return ValueError(number)


class AwkwardError(Exception):
    """Cannot be made from its args, so it does not survive pickling."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def awkward(number: int) -> int:
    if number == 7:
        raise AwkwardError("this", "that")
    return number


class HoldsLockError(Exception):
    """Has something inside that does not pickle."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def holds_lock(number: int) -> int:
    if number == 7:
        raise HoldsLockError("locked")
    return number


class Explosive:
    """Pickles, and raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def _explode() -> None:
    raise RuntimeError("cannot be unpickled")


def sometimes_explosive(number: int) -> Any:
    return Explosive() if number == 7 else number


def sometimes_a_lock(number: int) -> Any:
    return threading.Lock() if number == 7 else number


def gives_generator(number: int) -> Any:
    return (k for k in range(number)) if number == 7 else number


def where(value: Any) -> tuple[int, int]:
    """Who ran it: process and thread."""
    time.sleep(0.001)
    return os.getpid(), threading.get_ident()


def pid(value: Any) -> int:
    time.sleep(0.001)
    return os.getpid()


def doubled(rows: Any) -> Any:
    return rows * 2


def block(size: int) -> bytes:
    return bytes([size % 251]) * size


def array(size: int) -> Any:
    import numpy as np

    return np.arange(size, dtype=np.int64)


def total(values: Iterable[int]) -> int:
    return sum(values)


def nested(number: int) -> int:
    """A map inside a map."""
    from lazystore import imap

    return sum(imap(square, range(number)))


def nested_processes(number: int) -> int:
    from lazystore import imap

    return sum(imap(square, range(number), backend="process", n_jobs=2))


def nested_with_a_timeout(count: int) -> tuple[list[int], str]:
    """What a map with a timeout gives inside a worker, and what ran its items."""
    from lazystore import imap

    with imap(square, range(count), timeout=60.0) as inner:
        return list(inner), inner.stats.backend


def prints(number: int) -> int:
    sys.stdout.write(f"line {number}\n")  # in one piece: print writes the end of the line apart
    return number


def handles_signals(number: int) -> int:
    """Takes the signals that imap itself cares for."""
    for number_of in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number_of, signal.SIG_IGN)
    return number


def ignores_everything(number: int) -> int:
    handles_signals(number)
    time.sleep(1000)
    return number


def starts_thread(number: int) -> int:
    """Leaves a thread behind that is not a daemon."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return number


def forks(number: int) -> int:
    """A child that ends at once, and is waited for."""
    child = os.fork()
    if not child:
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    return number


def forks_and_returns(number: int) -> int:
    """The child goes back into the worker's own code, as ``os.fork`` without care does."""
    if number == 7 and not os.fork():
        return -1
    return number


def leaves_child(folder: Path, number: int) -> int:
    """A child that goes on after its worker; its id is written down."""
    child = os.fork()
    if not child:
        time.sleep(1000)
        os._exit(0)
    (folder / str(child)).touch()
    return number


def exits(how: str, at: int, number: int) -> int:
    if number == at:
        leave(how)
    return number


def leave(how: str) -> None:
    """End this process."""
    if how == "sys.exit":
        sys.exit(5)
    if how == "os._exit":
        os._exit(7)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def changes_directory(number: int) -> int:
    os.chdir("/")
    return number


def closes_files(number: int) -> int:
    """Closes what is not its own: all but the standard streams."""
    os.closerange(3, 256)
    return number


def closes_stdout(number: int) -> int:
    for fd in (1, 2):
        with contextlib.suppress(OSError):  # the same worker did it before
            os.close(fd)
    return number


def deep(number: int) -> Any:
    """A result that pickle recurses into too deeply."""
    found: list[Any] = []
    for _ in range(100_000 if number == 7 else 3):
        found = [found]
    return found


def recurses(number: int) -> int:
    return number if number != 7 else recurses(number)


def hungry(number: int) -> int:
    return number if number != 7 else len(bytearray(1 << 62))


# Functions with something of their own: made by partial, so that they travel.


def _marking(folder: Path, number: int) -> int:
    with open(folder / str(number), "a") as file:
        file.write("x")
    time.sleep(0.0005)
    return number


def marking(folder: Path) -> Callable[[int], int]:
    """Leaves a mark for each call."""
    return functools.partial(_marking, folder)


def marks(folder: Path) -> dict[int, int]:
    """Calls by input."""
    return {int(path.name): path.stat().st_size for path in folder.iterdir()}


def _flaky(folder: Path, failures: int, number: int) -> int:
    """Fails so many times for each input of 0, 3, 6, ..."""
    with open(folder / str(number), "a") as file:
        file.write("x")
    if number % 3 == 0 and (folder / str(number)).stat().st_size <= failures:
        raise ConnectionError(f"{number} is not there yet")
    return number


def flaky(folder: Path, failures: int) -> Callable[[int], int]:
    return functools.partial(_flaky, folder, failures)


def _gated(gate: Path, at: int, number: int) -> int:
    """Input ``at`` waits until the file is there."""
    if number == at:
        wait_for(gate)
    return number


def gated(gate: Path, at: int) -> Callable[[int], int]:
    return functools.partial(_gated, gate, at)


def wait_for(path: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path.name} did not come")
        time.sleep(0.002)


def _kill_at(folder: Path, victims: dict[int, int], number: int) -> int:
    times = sum(path.name.startswith(f"{number}-") for path in folder.iterdir())
    if times < victims.get(number, 0):
        (folder / f"{number}-{times}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def kill_at(folder: Path, victims: dict[int, int]) -> Callable[[int], int]:
    """Kills its process at these inputs, so many times each."""
    return functools.partial(_kill_at, folder, victims)


STATE: dict[str, Any] = {}
OWN = threading.local()


def _set_up(folder: Path) -> None:
    """An initializer: notes who was set up, and gives the thread something of its own."""
    OWN.ready = (os.getpid(), threading.get_ident())
    with open(folder / f"{os.getpid()}-{threading.get_ident()}", "a") as file:
        file.write("x")


def set_up(folder: Path) -> Callable[[], None]:
    return functools.partial(_set_up, folder)


def was_set_up(number: int) -> bool:
    time.sleep(0.001)
    return getattr(OWN, "ready", None) == (os.getpid(), threading.get_ident())


def bad_set_up() -> None:
    raise OSError("no such model")


class Sized:
    """A one-shot iterator that tells a length, right or wrong."""

    def __init__(self, values: Iterable[Any], length: int) -> None:
        self.values = iter(values)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.values


class Again:
    """Can be iterated again and again; has no length."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values
        self.begun = 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return iter(self.values)


class Hint:
    """Raises when it is asked how long it may be."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = iter(values)

    def __iter__(self) -> Hint:
        return self

    def __next__(self) -> Any:
        return next(self.values)

    def __length_hint__(self) -> int:
        raise RuntimeError("do not ask")


class Counted:
    """An endless or finite source that knows how much was taken, and by which threads."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = iter(values)
        self.taken = 0
        self.threads: set[int] = set()

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> Any:
        value = next(self.values)
        self.taken += 1
        self.threads.add(threading.get_ident())
        return value


class Method:
    """A bound method as the function."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, number: int) -> int:
        return self.factor * number

    def __call__(self, number: int) -> int:
        return self.times(number)


class WordlessError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class DisguisedError(Exception):
    """Comes back from its pickle as something that is no error."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("3",)


class DeadlyError(Exception):
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (0,)


class Shy:
    """An item whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("do not look")


class RichError(Exception):
    """Says more than its message."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code
        self.later: Any = None


def raises_of_kind(kind: str, item: Any) -> Any:
    if item != 7:
        return item
    if kind == "wordless":
        raise WordlessError
    if kind == "disguised":
        raise DisguisedError("a wolf")
    if kind == "rich":
        error = RichError("rich", 42)
        error.later = {"a": 1}
        error.add_note("of the function")
        raise error
    if kind == "chained":
        try:
            {}["gone"]
        except KeyError as cause:
            raise ValueError("outer") from cause
    if kind == "group":
        raise ExceptionGroup("both", [ValueError("one"), TypeError("two")])
    if kind == "unicode":
        raise ValueError("\udcff \0 \U0001f600")
    if kind == "large":
        raise ValueError("x" * 3_000_000)
    if kind == "os":
        raise FileNotFoundError(2, "No such file", "/gone")
    raise AssertionError(kind)


def fails_shyly(item: Any) -> Any:
    raise LookupError("shy item")


def gives_failures(number: int) -> Any:
    """Results of a map inside, failures among them."""
    from lazystore import imap

    return list(imap(picky, range(number, number + 2), on_error="yield", backend="serial"))


def sized(size: int) -> bytes:
    return b"x" * size


def many_arrays(count: int) -> Any:
    import numpy as np

    return {k: np.full(100 + k, k) for k in range(count)}


def odd_arrays(_: int) -> Any:
    """Arrays that are no plain block of memory."""
    import numpy as np

    big = np.arange(90_000).reshape(300, 300)
    return [
        big[::2, ::3],
        np.asfortranarray(big),
        big.T,
        np.array([], dtype="f4"),
        np.array(5.0),
        np.array([1, "two", None], dtype=object),
        np.zeros(20_000, dtype=[("a", "i4"), ("b", "f8", 3)]),
        memoryview(big).tobytes(),
        np.ma.masked_array(np.arange(50_000), mask=np.arange(50_000) % 2),
    ]


def deadly(number: int) -> int:
    if number == 3:
        raise DeadlyError("back home")
    return number
