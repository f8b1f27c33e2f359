"""How fast is the cache map, how seldom does it miss, and what does an entry cost? And what does weighing cost?

    python benchmarks/bench_cache.py [--peers] [--quick] [--rounds 5] [--only lru] [--json FILE]

All contenders run in this process, in turn (A B C A B C ...); times are CPU time of the process, as nothing here
waits. A hit is one call with a key that is there, the bare loop included; the trace gets every key, and puts
it on a miss: 31 % of it are hits, whatever the policy. Miss ratios are deterministic but for theine's, which
keeps its books in a thread. Without --peers only the standard library stands beside lazystore.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import random
import sys
import threading
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import harness
import numpy as np
from bench_policies import optimum, shifting, zipf, zipf_with_scans
from harness import Contender, Report, Row, Rows, share

from lazystore import LazyStore
from lazystore._core.cache_map import CacheMap
from lazystore._core.weigh import weigh

Keys = list[Any]
Measure = Callable[[Keys], float]

OURS = "lazystore CacheMap"
OURS_LRU = "lazystore CacheMap, lru"
FUNCTOOLS = "functools.lru_cache"
LRU_DICT = "lru-dict, .get()"
RESIDENT = 1000
#: Of each entry in the timings: weights are counted, whatever they are.
WEIGHT = 100
HOUR_NS = 3600 * 10**9
TRACE_KEYS = 100_000
TRACE_ENTRIES = 31_000
MAP_ENTRIES = 1000


def main() -> int:
    """All questions."""
    options = harness.parser("Cache map: hits, a trace, memory, miss ratios; weighing.").parse_args()
    out = Report("What does the memory cache cost, and how seldom does it miss?", options.json)
    ask_hits(out, options)
    ask_trace(out, options)
    ask_memory(out, options)
    ask_misses(out, options)
    ask_weighing(out, options)
    return out.finish()


def in_turn(makers: dict[str, Callable[[], Callable[[], dict[str, float]]]], options: Any) -> Rows:
    """A row a contender; ``makers`` prepare one and return what measures it once a round."""
    rows = Rows(Row(Contender(name, "", {})) for name in makers if not options.only or options.only in name)
    measures: dict[str, Callable[[], dict[str, float]]] = {}
    for row in rows:
        try:
            measures[row.contender.name] = makers[row.contender.name]()
        except ImportError as absent:
            row.problem = f"{absent.name} is not installed"
    for _ in range(harness.rounds(options)):
        for row in rows:
            if not row.problem:
                gc.collect()
                row.runs.append(measures[row.contender.name]())
    return rows


# -- hits ---------------------------------------------------------------------------------------


def call(get: Callable[[Any], object], keys: Keys) -> float:
    """Nanoseconds a call."""
    begin = time.process_time_ns()
    for key in keys:
        get(key)
    return (time.process_time_ns() - begin) / len(keys)


def index(cache: Any, keys: Keys) -> float:
    """Nanoseconds a subscript."""
    begin = time.process_time_ns()
    for key in keys:
        cache[key]
    return (time.process_time_ns() - begin) / len(keys)


def key_kinds() -> dict[str, tuple[Keys, Keys]]:
    """What is stored, and what is asked for: the same objects, or equal ones."""
    ints = list(range(10**6, 10**6 + RESIDENT))
    texts = [f"dataset/part-{n:05}" for n in range(RESIDENT)]
    tuples = [("dataset", n) for n in ints]
    return {
        "int": (ints, ints),
        "str": (texts, texts),
        "str, equal": (texts, ["".join(list(text)) for text in texts]),
        "tuple, equal": (tuples, [("dataset", n) for n in ints]),
    }


def filled_map(**options: Any) -> Callable[[Keys], Measure]:
    """A maker of a CacheMap."""

    def make(keys: Keys) -> Measure:
        cache = CacheMap(RESIDENT * WEIGHT, policy=options.get("policy", "s3fifo"))
        for key in keys:
            cache.put(key, key, WEIGHT, fresh_ns=options.get("fresh_ns", 0))
        return functools.partial(call, cache.get)

    return make


def filled_store(keys: Keys) -> Measure:
    """A whole store, by its ``get``."""
    store = LazyStore.from_keys(lambda key: key, memory="16MB", prefetch=0)
    for key in keys:
        store.get(key)
    return functools.partial(call, store.get)


def filled_functools(keys: Keys) -> Measure:
    cached = functools.lru_cache(RESIDENT)(lambda key: key)
    for key in keys:
        cached(key)
    return functools.partial(call, cached)


def filled_ordered_dict(keys: Keys) -> Measure:
    """What one writes by hand."""
    entries = OrderedDict.fromkeys(keys)
    lock = threading.Lock()

    def get(key: Any) -> object:
        with lock:
            entries.move_to_end(key)
            return entries[key]

    return functools.partial(call, get)


def filled_lru_dict(keys: Keys, *, subscript: bool) -> Measure:
    from lru import LRU

    cache = LRU(RESIDENT)
    for key in keys:
        cache[key] = key
    return functools.partial(index, cache) if subscript else functools.partial(call, cache.get)


def filled_cachetools(keys: Keys, *, decorated: bool) -> Measure:
    import cachetools

    cache: Any = cachetools.LRUCache(RESIDENT)
    if decorated:
        cached = cachetools.cached(cache, lock=threading.Lock())(lambda key: key)
        for key in keys:
            cached(key)
        return functools.partial(call, cached)
    for key in keys:
        cache[key] = key
    return functools.partial(index, cache)


def filled_theine(keys: Keys) -> Measure:
    import theine

    cache = theine.Cache(2 * RESIDENT)
    for key in keys:
        cache.set(key, key)
    return functools.partial(call, cache.get)


def filled_cachebox(keys: Keys) -> Measure:
    import cachebox

    cache = cachebox.LRUCache(RESIDENT)
    for key in keys:
        cache[key] = key
    return functools.partial(call, cache.get)


def ask_hits(out: Report, options: Any) -> None:
    """One call, the key is there."""
    fillers: dict[str, Callable[[Keys], Measure]] = {
        OURS: filled_map(),
        OURS_LRU: filled_map(policy="lru"),
        "lazystore CacheMap, entries that expire": filled_map(fresh_ns=HOUR_NS),
        "lazystore LazyStore.get": filled_store,
        FUNCTOOLS: filled_functools,
        "OrderedDict and a lock": filled_ordered_dict,
    }
    if options.peers:
        fillers |= {
            LRU_DICT: functools.partial(filled_lru_dict, subscript=False),
            "lru-dict, [k]": functools.partial(filled_lru_dict, subscript=True),
            "cachetools LRUCache, [k]": functools.partial(filled_cachetools, decorated=False),
            "cachetools @cached with a lock": functools.partial(filled_cachetools, decorated=True),
            "theine": filled_theine,
            "cachebox LRUCache": filled_cachebox,
        }
    kinds = key_kinds()
    repeats = 20 if options.quick else 200

    def maker(fill: Callable[[Keys], Measure]) -> Callable[[], Callable[[], dict[str, float]]]:
        def make() -> Callable[[], dict[str, float]]:
            measures = {kind: (fill(stored), asked * repeats) for kind, (stored, asked) in kinds.items()}
            return lambda: {kind: measure(keys) for kind, (measure, keys) in measures.items()}

        return make

    rows = in_turn({name: maker(fill) for name, fill in fillers.items()}, options)
    columns = {kind: (lambda row, kind=kind: harness.spread(row.values(lambda run: run[kind]))) for kind in kinds}
    out.table(f"A hit among {RESIDENT} entries, ns", rows, columns)
    for kind in ("int", "str"):
        out.target(
            f"hit, {kind} keys, times functools.lru_cache", times(rows, OURS, FUNCTOOLS, kind), 1.3, at_least=False
        )


def times(rows: Rows, ours: str, theirs: str, figure: str) -> float | None:
    """How many times theirs ours takes, the median over the rounds; None when one of them did not run."""
    found = {row.contender.name: row for row in rows}
    if ours not in found or theirs not in found:
        return None
    return share(found[theirs], found[ours], lambda run: run[figure])


# -- a trace ------------------------------------------------------------------------------------


def play_map(trace: Keys, **options: Any) -> int:
    cache = CacheMap(TRACE_ENTRIES * WEIGHT, **options)
    get, put = cache.get, cache.put
    for key in trace:
        if get(key) is None:
            put(key, key, WEIGHT)
    return cache.hits


def play_functools(trace: Keys) -> int:
    cached = functools.lru_cache(TRACE_ENTRIES)(lambda key: key)
    for key in trace:
        cached(key)
    return cached.cache_info().hits


def play_ordered_dict(trace: Keys) -> int:
    entries: OrderedDict[Any, Any] = OrderedDict()
    hits = 0
    for key in trace:
        if key in entries:
            hits += 1
            entries.move_to_end(key)
        else:
            entries[key] = key
            if len(entries) > TRACE_ENTRIES:
                entries.popitem(last=False)
    return hits


def play_mapping(cache: Any, trace: Keys) -> int:
    """With ``get`` and ``cache[key] = value``."""
    get = cache.get
    missed = 0
    for key in trace:
        if get(key) is None:
            missed += 1
            cache[key] = key
    return len(trace) - missed


def play_lru_dict(trace: Keys) -> int:
    from lru import LRU

    return play_mapping(LRU(TRACE_ENTRIES), trace)


def play_cachetools(trace: Keys) -> int:
    import cachetools

    return play_mapping(cachetools.LRUCache(TRACE_ENTRIES), trace)


def play_cachebox(trace: Keys) -> int:
    import cachebox

    return play_mapping(cachebox.LRUCache(TRACE_ENTRIES), trace)


def play_theine(trace: Keys, entries: int = TRACE_ENTRIES) -> int:
    import theine

    cache = theine.Cache(entries)
    get = cache.get
    missed = 0
    for key in trace:
        if not get(key)[1]:
            missed += 1
            cache.set(key, key)
    return len(trace) - missed


def ask_trace(out: Report, options: Any) -> None:
    """Get, and put on a miss, with everything that leaves."""
    rng = random.Random(3)
    trace = [rng.randrange(TRACE_KEYS) for _ in range(200_000 if options.quick else 1_000_000)]
    players: dict[str, Callable[[Keys], int]] = {
        OURS: play_map,
        OURS_LRU: functools.partial(play_map, policy="lru"),
        FUNCTOOLS: play_functools,
        "OrderedDict": play_ordered_dict,
    }
    if options.peers:
        players |= {
            LRU_DICT: play_lru_dict,
            "cachetools LRUCache": play_cachetools,
            "theine": play_theine,
            "cachebox LRUCache": play_cachebox,
        }

    def maker(play: Callable[[Keys], int]) -> Callable[[], Callable[[], dict[str, float]]]:
        def make() -> Callable[[], dict[str, float]]:
            play(trace[:100])  # what is not installed says so now
            return measure

        def measure() -> dict[str, float]:
            begin = time.process_time_ns()
            hits = play(trace)
            return {"ns": (time.process_time_ns() - begin) / len(trace), "hits": hits / len(trace)}

        return make

    rows = in_turn({name: maker(play) for name, play in players.items()}, options)
    columns = {
        "ns an access": lambda row: harness.spread(row.values(lambda run: run["ns"])),
        "hits": lambda row: f"{row.median(lambda run: run['hits']):.1%}",
    }
    out.table(f"Uniform trace over {TRACE_KEYS} keys, {TRACE_ENTRIES} entries", rows, columns)
    out.target("trace, times lru-dict", times(rows, OURS, LRU_DICT, "ns"), 1.0, at_least=False)


# -- memory -------------------------------------------------------------------------------------


def ask_memory(out: Report, options: Any) -> None:
    """Bytes an entry takes beside key and value, as the allocator sees them."""
    numbers = list(range(10**6, 10**6 + (20_000 if options.quick else 200_000)))

    def map_of(**times: int) -> Callable[[], object]:
        def make() -> object:
            cache = CacheMap(len(numbers))
            for key in numbers:
                cache.put(key, key, **times)
            return cache

        return make

    def functools_cache() -> object:
        cached = functools.lru_cache(len(numbers))(lambda key: key)
        for key in numbers:
            cached(key)
        return cached

    def lru_dict() -> object:
        from lru import LRU

        cache = LRU(len(numbers))
        for key in numbers:
            cache[key] = key
        return cache

    makers = {
        OURS: map_of(),
        "lazystore CacheMap, entries that expire": map_of(fresh_ns=HOUR_NS),
        FUNCTOOLS: functools_cache,
        "OrderedDict": lambda: OrderedDict.fromkeys(numbers),
    }
    if options.peers:
        makers[LRU_DICT] = lru_dict

    def maker(make: Callable[[], object]) -> Callable[[], Callable[[], dict[str, float]]]:
        def measure() -> dict[str, float]:
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                cache = make()
                taken = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
            del cache
            return {"bytes": taken / len(numbers)}

        return lambda: measure

    one_round = type(options)(**{**vars(options), "rounds": 1})
    rows = in_turn({name: maker(make) for name, make in makers.items()}, one_round)
    columns = {"bytes": lambda row: f"{row.median(lambda run: run['bytes']):.0f}"}
    out.table(f"Bytes an entry, key and value apart, {len(numbers)} entries", rows, columns)
    ours = next((row for row in rows if row.contender.name == OURS), None)
    out.target("bytes an entry", ours and ours.median(lambda run: run["bytes"]), 96, at_least=False)


# -- misses -------------------------------------------------------------------------------------


def loop_of(keys: int) -> Callable[[random.Random, int, int], Iterator[int]]:
    return lambda rng, universe, accesses: (n % keys for n in range(accesses))


def shuffled_epochs(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """A dataset of three times the cache, in another order each epoch."""
    items = list(range(3 * MAP_ENTRIES))
    for _ in range(accesses // len(items) + 1):
        rng.shuffle(items)
        yield from items


def window_epochs(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """The same dataset, shuffled within windows of 150: the same order of windows each epoch."""
    for _ in range(accesses // (3 * MAP_ENTRIES) + 1):
        for first in range(0, 3 * MAP_ENTRIES, 150):
            yield from rng.sample(range(first, first + 150), 150)


def loop_and_zipf(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """An epoch over twice the cache while others look things up."""
    popular = zipf(rng, universe, accesses)
    return itertools.chain.from_iterable(
        (universe + n % (2 * MAP_ENTRIES), next(popular)) for n in range(accesses // 2)
    )


def twice(rng: random.Random, universe: int, accesses: int) -> Iterator[int]:
    """Each key two times, 400 keys apart, and never again: all that recency can gain and frequency cannot."""
    for n in range(accesses // 2):
        yield n
        if n >= 400:
            yield n - 400


TRACES: dict[str, Callable[[random.Random, int, int], Iterator[int]]] = {
    "zipf 0.9": zipf,
    "zipf 0.7": functools.partial(zipf, skew=0.7),
    "zipf with scans": zipf_with_scans,
    "shifting zipf": shifting,
    "loop, 1.05 x cache": loop_of(MAP_ENTRIES * 105 // 100),
    "loop, 2 x cache": loop_of(2 * MAP_ENTRIES),
    "loop, 8 x cache": loop_of(8 * MAP_ENTRIES),
    "loop (2 x) and zipf": loop_and_zipf,
    "epochs, shuffled (3 x)": shuffled_epochs,
    "epochs, windows (3 x)": window_epochs,
    "each key twice": twice,
}


def map_misses(trace: list[int], policy: str, limit: int, weights: list[int] | None = None) -> float:
    """Share of the trace that was missed; of its bytes when there are weights."""
    cache = CacheMap(limit, policy=policy)
    missed = total = 0
    for key in trace:
        weight = weights[key] if weights else 1
        total += weight
        if cache.get(key) is None:
            missed += weight
            if weight <= limit // 8 or not weights:
                cache.put(key, key, weight)
    return missed / total


def ask_misses(out: Report, options: Any) -> None:
    """Each trace through each policy."""
    accesses = 60_000 if options.quick else 200_000
    rows = Rows()
    for name, make in TRACES.items():
        trace = list(itertools.islice(make(random.Random(7), 10 * MAP_ENTRIES, accesses), accesses))
        run = {policy: map_misses(trace, policy, MAP_ENTRIES) for policy in ("lru", "s3fifo")}
        run["optimum"] = optimum(trace, MAP_ENTRIES)
        if options.peers:
            try:
                run["theine"] = 1 - play_theine(trace, MAP_ENTRIES) / len(trace)
            except ImportError as absent:
                print(f"theine: {absent}", file=sys.stderr)
        rows.append(Row(Contender(name, "", {}), runs=[run]))
    rng = random.Random(7)
    weights = [min(int(rng.lognormvariate(9, 1.5)) + 100, 2_000_000) for _ in range(10 * MAP_ENTRIES)]
    trace = list(zipf(rng, 10 * MAP_ENTRIES, accesses))
    limit = sum(weights) // 10
    run = {policy: map_misses(trace, policy, limit, weights) for policy in ("lru", "s3fifo")}
    rows.append(Row(Contender("zipf 0.9, 100 B to 2 MB each, share of bytes", "", {}), runs=[run]))
    columns = {
        title: (lambda row, figure=figure: f"{row.runs[0][figure]:.3f}" if figure in row.runs[0] else "-")
        for title, figure in {
            "LRU": "lru",
            "CacheMap": "s3fifo",
            "W-TinyLFU (theine)": "theine",
            "optimum": "optimum",
        }.items()
    }
    out.table(f"Miss ratio, {MAP_ENTRIES} entries, {accesses} accesses", rows, columns)
    for row in rows:
        ratio = row.runs[0]["s3fifo"] / row.runs[0]["lru"]
        out.target(f"misses, times LRU's: {row.contender.name}", ratio, 1.01, at_least=False)


# -- weighing -----------------------------------------------------------------------------------


def records(count: int) -> list[dict[str, Any]]:
    return [
        {"id": n + 1000, "name": f"name {n}", "score": n * 0.5, "tags": [f"t{n % 7}", "u" * (n % 40)]}
        for n in range(count)
    ]


SAMPLES: dict[str, Callable[[], Any]] = {
    "bytes, 100 kB": lambda: bytes(100_000),
    "array, 80 kB": lambda: np.zeros(10_000),
    "10 dicts": lambda: records(10),
    "500 dicts": lambda: records(500),
    "500 dicts out of JSON": lambda: json.loads(json.dumps(records(500))),
    "100,000 dicts (beyond the limit)": lambda: records(100_000),
    "500 arrays in a list": lambda: [np.zeros(100 + n % 5) for n in range(500)],
    "5,000 strings in a set": lambda: {str(n) for n in range(5000)},
    "nested lists": lambda: [[[f"{k} z" for k in range(n % 9)] for n in range(50)] for _ in range(40)],
}


def ask_weighing(out: Report, options: Any) -> None:
    """``weigh`` beside what the allocator gave."""
    rows = Rows()
    for name, make in SAMPLES.items():
        make()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            made = make()
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        row = Row(Contender(name, "", {}))
        for _ in range(harness.rounds(options)):
            begin = time.process_time_ns()
            weight = weigh(made)
            row.runs.append({"us": (time.process_time_ns() - begin) / 1e3, "bytes": taken, "weight": weight})
        rows.append(row)
    columns = {
        "bytes": lambda row: harness.number(row.runs[0]["bytes"]),
        "weighed": lambda row: f"{row.runs[0]['weight'] / row.runs[0]['bytes']:.1%}",
        "us": lambda row: harness.spread(row.values(lambda run: run["us"])),
    }
    out.table("Weighing an object", rows, columns)


if __name__ == "__main__":
    sys.exit(main())
