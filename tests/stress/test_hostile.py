"""Golden datasets with mutated bytes, in a process that may not grow: no crash, no hang, no forged allocation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import golden, scripts

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(sys.platform != "linux", reason="limits the address space"),
]

HUNT = """
import faulthandler, json, logging, os, random, resource, shutil, struct, sys, tempfile, traceback, warnings
from pathlib import Path
faulthandler.dump_traceback_later(100, exit=True)
warnings.simplefilter("ignore")  # pillow warns of images it then refuses
logging.getLogger("lazystore").setLevel(logging.CRITICAL)
from lazystore import LazyStoreError, StreamingDataset, TokensLoader

source, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
tokens = json.loads((source / "index.json").read_text())["config"]["item_loader"] == "TokensLoader"
good = {path.name: path.read_bytes() for path in source.iterdir()}
options = {"item_loader": TokensLoader(7)} if tokens else {}
for loaded in StreamingDataset(source, memory="2MB", **options):
    pass  # optional packages are imported now, and their memory is not counted
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
if "LAZYSTORE_SANITIZED" not in os.environ:  # sanitizers map terabytes
    resource.setrlimit(resource.RLIMIT_AS, (size + (192 << 20),) * 2)
WORDS = [0, 1, 2, 3, 4, 8, 9, 255, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]

def mutate(data):
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(data) or 1) if chance.random() < 0.6 else chance.randrange(min(len(data), 64) or 1)
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([(data[at] if data else 0) ^ (1 << chance.randrange(8))])
            case 2:
                data[at // 4 * 4 : at // 4 * 4 + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(WORDS))
            case 3:
                del data[at:]
            case 4:
                del data[at : at + chance.randrange(1, 20)]
            case 5:
                data[at:at] = chance.randbytes(chance.randrange(1, 20))
    return bytes(data)

def attempt(read):
    try:
        read()
    except LazyStoreError:
        pass

def hunt(folder):
    try:
        dataset = StreamingDataset(folder, memory=chance.choice(["300kB", "2MB"]), **options)
    except LazyStoreError:
        return
    with dataset:
        total = len(dataset)
        for i in {chance.randrange(min(total, 2**40)) for _ in range(6)} if total else ():
            attempt(lambda: dataset[i])
            attempt(lambda: dataset.get_many([i, i // 2, 0]))
            attempt(lambda: dataset.view(i))
        items = iter(dataset)
        def some():
            for _ in range(40):
                next(items, None)
        attempt(some)
        dataset.get_memory_stats()

with tempfile.TemporaryDirectory() as place:
    folder = Path(place)
    for turn in range(rounds):
        files = dict(good)
        names = [name for name in files if name != "index.json" or chance.random() < 0.3]
        for name in chance.sample(names, min(len(names), chance.choice([1, 1, 2]))):
            files[name] = mutate(files[name])
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            hunt(folder)
        except BaseException:
            print(f"seed {seed}, turn {turn}")
            traceback.print_exc(file=sys.stdout)
            raise SystemExit(1)
"""


@pytest.mark.parametrize("name", [name for name in golden.CLASSIC if "pickle" not in golden.config(name)["data_format"]
                                  or "leaves" in name])  # fmt: skip
def test_mutated_golden_datasets_give_items_or_our_errors(name: str) -> None:
    golden.require(name)
    folder: Path = golden.GOLDEN / name / "data"
    assert scripts.run(HUNT, folder, 1, 100, timeout=110) == ""
