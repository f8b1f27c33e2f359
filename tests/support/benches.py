"""A ``ChunkMemory`` over a source that keeps a diary, ready to read: what the tests of the cache share."""

from __future__ import annotations

from typing import Any

from support.sources import DiarySource

from lazystore._core.decode import DecodePlan
from lazystore._core.frames import FrameStore
from lazystore._core.reader import Reader
from lazystore._core.scan import ItemIterator
from lazystore._core.walk import Progress, Walk
from lazystore.cache.memory import ChunkMemory
from lazystore.formats.format import Opened
from lazystore.formats.leaves import leaf_operation
from lazystore.formats.litdata import parse_index
from lazystore.formats.pytree import compile_tree
from lazystore.formats.stream_codecs import codec_for
from lazystore.streaming.order import OrderSpec, Route, Shape, Topology, make_route
from lazystore.streaming.prefetch import RouteFeed


class Bench:
    """A memory, and the reader it loads for; ``budget`` bytes are the arena's alone."""

    def __init__(self, source: DiarySource, budget: int = 1 << 20, **options: Any) -> None:
        settings = {"timeout": 20.0, "fallback": True, **options}
        index = parse_index(source.objects["index.json"], place="index.json")
        self.source = source
        self.index = index
        self.store = FrameStore(budget)
        leaves = [leaf_operation(tag, allow_pickle=False) for tag in index.tags]
        self.plan = plan = DecodePlan(leaves, compile_tree(index.data_spec, len(leaves)), names=index.tags)
        codec = codec_for(index.compression) if index.compression else None
        layout = Opened("litdata", source, index.names, index.counts, index.hints, plan)
        self.memory = ChunkMemory(source, layout, self.store, codec=codec, **settings)
        self.reader: Reader = self.memory.attach(plan, index.counts, 0, None)
        source.waves.clear()

    def scan(self, start: int, stop: int) -> ItemIterator:
        return ItemIterator(self.reader, start, stop)

    @property
    def shape(self) -> Shape:
        return Shape(self.index.counts, self.index.hints)

    def route(self, kind: str = "window", *, window: int = 1 << 18, block: int = 1 << 14, epoch: int = 1) -> Route:
        """One reader's route over everything."""
        return make_route(OrderSpec(kind, 42, window, block, False), self.shape, Topology(), epoch)

    def walk(self, route: Route, start: int = 0, stop: int | None = None, *, shared: bool = False) -> Walk:
        """The items of a route, fed from this memory."""
        self.feed = RouteFeed(self.memory, route.legs(start, stop), self.shape, shared=shared)
        return Walk(self.reader, self.feed, Progress(start))

    def check(self) -> None:
        """Nothing is pinned or half-filled, and every invariant of the arena holds."""
        assert self.store.filling == 0
        assert self.store.counters()["pins"] == 0
        self.store.check()
