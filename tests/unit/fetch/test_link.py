"""How a source ends and starts again: forks, spawned copies, interrupts, interpreter exit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import lazystore
from lazystore.fetch.engine import WireSource
from lazystore.testing import Faults, ObjectStore

ALL = ["http", "s3", "obstore-http", "obstore-s3", "memory", "faulty"]
OpenKind = Callable[..., WireSource]

#: The package under test, wherever it is, also for scripts in other folders.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lazystore.__file__).parents[1])}

#: What every script below begins with: the source from a pickle, and a way to check what it reads.
PREAMBLE = """
import os, pickle, signal, sys, threading, time
from lazystore.errors import *
from lazystore.fetch.source import Read

with open(sys.argv[1], "rb") as file:
    DATA = file.read()
source = pickle.loads(bytes.fromhex(sys.argv[2]))
if source.url.startswith("memory:"):
    import fsspec
    fsspec.filesystem("memory").pipe_file("/fetch-tests/chunk.bin", DATA)

def reads(count=20, name="chunk.bin"):
    return [Read(name, i * 977, memoryview(bytearray(100 + i))) for i in range(count)]

def right(batch):
    return all(bytes(r.view) == DATA[r.begin : r.end] and r.got == len(r.view) for r in batch)

def check(timeout=60):
    batch = reads()
    source.run(batch, stat=["chunk.bin"], timeout=timeout)
    assert right(batch)
"""


def run(script: str, served: Path, source: WireSource, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter; it must end well and have nothing to complain about.

    (Deprecations apart: newer interpreters warn of every fork beside threads, which is what is tested here.)
    """
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore::DeprecationWarning", *flags, "-c", PREAMBLE + textwrap.dedent(script)),
            *(str(served / "data" / "set" / "chunk.bin"), pickle.dumps(source).hex()),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done


def portable(kind: str, open_kind: OpenKind) -> WireSource:
    """A source whose pickle works in a process that only imports lazystore."""
    return open_kind(kind)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "faulty"])
def test_a_copy_reads_in_another_process(kind: str, open_kind: OpenKind, served: Path) -> None:
    done = run("check(); print('read')", served, portable(kind, open_kind))
    assert done.stdout == "read\n"


@pytest.mark.parametrize("flags", [(), ("-W", "always::ResourceWarning")])
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "faulty"])
def test_an_unclosed_source_says_nothing_at_exit(
    kind: str, flags: tuple[str, ...], open_kind: OpenKind, served: Path
) -> None:
    run("check()", served, portable(kind, open_kind), *flags)


@pytest.mark.parametrize("kind", ["http", "s3", "obstore-http", "obstore-s3"])
@pytest.mark.parametrize("ending", ["", "source.close()"])
def test_a_script_may_end_on_the_heels_of_a_request_that_was_given_up(
    kind: str, ending: str, open_kind: OpenKind, served: Path, faultless: ObjectStore
) -> None:
    faultless.configure(latency_ms=300)
    script = f"""
        check()
        try:
            source.run(reads(), timeout=0.05)
        except FetchTimeoutError:
            print("given up")
        {ending}
    """
    done = run(script, served, portable(kind, open_kind), "-W", "always::ResourceWarning")
    assert done.stdout == "given up\n"


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "faulty"])
def test_a_forked_child_reads_and_leaves_its_parent_alone(kind: str, open_kind: OpenKind, served: Path) -> None:
    script = """
        check()
        stop, turns = threading.Event(), [0]
        failed = []

        def keep_reading():
            try:
                while not stop.is_set():
                    check()
                    turns[0] += 1
            except BaseException as error:
                failed.append(error)

        reader = threading.Thread(target=keep_reading)
        reader.start()
        for ending in ("os._exit(0)", "sys.exit(0)", "source.close(); sys.exit(0)", "os._exit(0)"):
            before = turns[0]
            while turns[0] < before + 2 and not failed:
                time.sleep(0.001)
            child = os.fork()
            if child == 0:
                signal.alarm(100)
                assert source.counters.in_flight_bytes == 0
                check()
                check()
                exec(ending)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, ending
        check()
        stop.set()
        reader.join()
        assert not failed, failed
        check()
        source.close()
        print("read")
    """
    done = run(script, served, portable(kind, open_kind))
    assert done.stdout.splitlines()[-1] == "read"


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "faulty"])
def test_what_a_forked_child_forgets_stays_alive_in_the_parent(
    kind: str, open_kind: OpenKind, served: Path, faultless: ObjectStore
) -> None:
    script = """
        import gc
        check()
        child = os.fork()
        if child == 0:
            signal.alarm(100)
            del source
            gc.collect()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        check(timeout=5)
    """
    run(script, served, portable(kind, open_kind))
    if kind in ("http", "s3"):
        assert faultless.stats()["connections"] <= 20 + 1  # the parent kept using those it had


def test_a_child_forked_before_the_first_read_uses_obstore_itself(open_kind: OpenKind, served: Path) -> None:
    script = """
        child = os.fork()
        if child == 0:
            check()
            os._exit(0 if type(source._link.wire).__name__ == "ObstoreWire" else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        check()
        child = os.fork()
        if child == 0:
            check()
            os._exit(0 if type(source._link.wire).__name__ == "HttpWire" else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    run(script, served, portable("obstore-http", open_kind))


def test_a_forked_child_without_the_fsspec_package_is_told_what_to_do(open_kind: OpenKind, served: Path) -> None:
    script = """
        check()
        child = os.fork()
        if child == 0:
            sys.modules["s3fs"] = None
            try:
                check()
            except MissingExtraError as error:
                os._exit(0 if "lazystore[s3]" in str(error) and "spawn" in str(error) else 3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    run(script, served, portable("obstore-s3", open_kind))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_workers_read(
    method: str, open_kind: OpenKind, served: Path, tmp_path: Path, objects: dict[str, bytes]
) -> None:
    script = tmp_path / "workers.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, pickle, sys
            from lazystore.fetch.source import Read

            def size(source):
                read = Read("chunk.bin", 5, memoryview(bytearray(50)))
                return source.run([read], stat=["chunk.bin"], timeout=60)["chunk.bin"], bytes(read.view)

            if __name__ == "__main__":
                source = pickle.loads(bytes.fromhex(sys.argv[1]))
                size(source)
                with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
                    found = pool.map(size, [source] * 4)
                assert len(set(found)) == 1
                print(found[0][0], found[0][1].hex())
            """
        )
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(script)]
    arguments = [pickle.dumps(open_kind("http")).hex(), method]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=150, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(len(objects["chunk.bin"])), objects["chunk.bin"][5:55].hex()]


@pytest.mark.parametrize("kind", ["http", "s3", "obstore-http", "obstore-s3"])
def test_an_interrupt_cancels_what_is_under_way(
    kind: str, open_kind: OpenKind, served: Path, faultless: ObjectStore
) -> None:
    (served / "data" / "set" / "stuck.bin").write_bytes(bytes(50_000))
    faultless.configure(faults=Faults(stall=1.0, only="*stuck*"))
    script = """
        check()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        batch = reads(name="stuck.bin")
        try:
            source.run(batch, timeout=100)
        except KeyboardInterrupt:
            print("interrupted")
        deadline = time.monotonic() + 20
        while source.counters.in_flight_bytes and time.monotonic() < deadline:
            time.sleep(0.01)
        assert source.counters.in_flight_bytes == 0
        check()
    """
    done = run(script, served, portable(kind, open_kind))
    assert done.stdout == "interrupted\n"


def test_a_fork_hook_repairs_the_lock_that_fsspec_forgets() -> None:
    script = """
import os, sys
import fsspec.asyn
import lazystore.fetch.link
lock = fsspec.asyn.get_lock()
lock.acquire()
child = os.fork()
if child == 0:
    os._exit(0 if fsspec.asyn.get_lock().acquire(timeout=5) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
