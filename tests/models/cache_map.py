"""Ordered dicts and a list of ghosts: the oracle of ``CacheMap``, victim for victim."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FOREVER = 2**63 - 1
BUCKET = 8
PERIODS = 16
FIRST = 48


@dataclass
class Held:
    key: Any
    value: Any
    weight: int
    seen: int
    freq: int = 0
    expires: bool = False
    stored: int = 0
    fresh_until: int = FOREVER
    keep_until: int = FOREVER


@dataclass
class Ghost:
    tag: int
    left: int
    seen: int


def tag_of(key: Any) -> int:
    return ((hash(key) % 2**64 * 0x9E3779B97F4A7C15) % 2**64 >> 32) or 1


class CacheMapModel:
    """The oldest entry of each queue comes first in its dict."""

    def __init__(self, max_weight: int, policy: str, clock: Callable[[], int]) -> None:
        self.max_weight = max_weight
        self.lru = policy == "lru"
        self.clock = clock
        self.hits = self.misses = self.evictions = self.expirations = 0
        self.period = 0
        self.clear()

    def clear(self) -> None:
        self.main: OrderedDict[Any, Held] = OrderedDict()
        self.small: OrderedDict[Any, Held] = OrderedDict()
        self.departures = self.small_limit = self.main_hits = self.peak = self.capacity = 0
        self.ghosts: list[Ghost | None] = []

    # -- what is held ---------------------------------------------------------------------------

    @property
    def weight(self) -> int:
        return sum(held.weight for queue in (self.main, self.small) for held in queue.values())

    def __len__(self) -> int:
        return len(self.main) + len(self.small)

    def find(self, key: Any) -> Held | None:
        return self.main.get(key) or self.small.get(key)

    def fresh(self, key: Any) -> Held | None:
        held = self.find(key)
        return held if held and (not held.expires or self.clock() < held.fresh_until) else None

    def dead(self, held: Held) -> bool:
        return held.expires and self.clock() >= held.keep_until

    def take(self, key: Any) -> tuple[Any, Any]:
        held = (self.main if key in self.main else self.small).pop(key)
        return held.key, held.value

    def items(self) -> list[tuple[Any, Any]]:
        return [(held.key, held.value) for queue in (self.main, self.small) for held in reversed(queue.values())]

    # -- the mapping ----------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None) -> Any:
        held = self.fresh(key)
        if held is None:
            self.misses += 1
            return default
        self.hits += 1
        held.seen = self.hits + self.misses
        if self.lru:
            self.main.move_to_end(key)
        else:
            held.freq = min(held.freq + 1, 3)
            if key in self.main:
                self.main_hits += held.weight
        return held.value

    def peek(self, key: Any, default: Any = None) -> Any:
        held = self.fresh(key)
        return held.value if held else default

    def entry(self, key: Any, default: Any = None) -> Any:
        held = self.find(key)
        if held is None:
            return default
        if not held.expires:
            return held.value, held.weight, 0, FOREVER, FOREVER
        if self.dead(held):
            self.take(key)
            self.expirations += 1
            return default
        now = self.clock()
        fresh, keep = (until if until == FOREVER else until - now for until in (held.fresh_until, held.keep_until))
        return held.value, held.weight, max(now - held.stored, 0), fresh, keep

    def put(
        self, key: Any, value: Any, weight: int, fresh_ns: int = 0, keep_ns: int = 0, probation: bool = True
    ) -> list[tuple[Any, Any]]:
        if len(self) == self.peak == self.capacity:
            self.set_capacity(self.capacity + self.capacity // 8 or FIRST)
        out = []
        freq = 0
        if old := self.find(key):
            queue = self.main if key in self.main else self.small
            freq = min(old.freq + 1, 3)
            out.append(self.take(key))
        else:
            queue = self.place(key, weight)
        if not probation:
            queue = self.main
        self.make_room(weight, queue, out)
        held = Held(key, value, weight, self.hits + self.misses, freq, bool(fresh_ns or keep_ns))
        if held.expires:
            held.stored = self.clock()
            held.fresh_until = min(held.stored + fresh_ns, FOREVER) if fresh_ns else FOREVER
            held.keep_until = min(held.stored + keep_ns, FOREVER) if keep_ns else FOREVER
        queue[key] = held
        self.peak = max(self.peak, len(self))
        return out

    def pop(self, key: Any, default: Any = None) -> Any:
        held = self.find(key)
        if held is None:
            return default
        self.take(key)
        self.expirations += self.dead(held)
        return default if self.dead(held) else held.value

    def resize(self, max_weight: int) -> list[tuple[Any, Any]]:
        self.max_weight = max_weight
        out: list[tuple[Any, Any]] = []
        self.make_room(0, self.main, out)
        if 4 * len(self) <= self.capacity > FIRST:
            self.peak = len(self)
            self.set_capacity(max(len(self), FIRST))
        return out

    def expire(self) -> set[tuple[Any, Any]]:
        """Of fewer than 1024 entries, all that are dead; in which order is the map's business."""
        gone = {held.key for queue in (self.main, self.small) for held in queue.values() if self.dead(held)}
        self.expirations += len(gone)
        return {self.take(key) for key in gone}

    # -- who leaves -----------------------------------------------------------------------------

    def place(self, key: Any, weight: int) -> OrderedDict[Any, Held]:
        if self.lru:
            return self.main
        self.small_limit = max(self.small_limit - self.main_hits // 4, self.max_weight // 10)
        self.main_hits %= 4
        main_weight = sum(held.weight for held in self.main.values())
        main_full = main_weight + weight > self.max_weight - self.small_limit
        ghost = self.find_ghost(tag_of(key))
        if ghost is None or (self.period - ghost.left) % 2**16 > PERIODS:
            return self.small if main_full or self.weight + weight > self.max_weight else self.main
        self.forget_ghost(ghost)
        absent = self.hits + self.misses - ghost.seen
        if absent <= len(self):
            self.small_limit = min(self.small_limit + weight, self.max_weight - self.max_weight // 10)
        if not main_full or not self.main:
            return self.main
        for _ in range(2):
            tail, held = next(iter(self.main.items()))
            if not held.freq:
                return self.main if self.hits + self.misses - held.seen > 3 * absent else self.small
            held.freq -= 1
            self.main.move_to_end(tail)
        return self.small

    def make_room(self, weight: int, queue: OrderedDict[Any, Held], out: list[tuple[Any, Any]]) -> None:
        while self.weight + weight > self.max_weight:
            key = self.victim(weight if queue is self.small else 0)
            if key in self.small:
                self.add_ghost(tag_of(key), self.small[key].seen)
                self.departures += 1
                if self.departures * PERIODS >= len(self):
                    self.departures = 0
                    self.period += 1
            out.append(self.take(key))
            self.evictions += 1

    def victim(self, coming: int) -> Any:
        while True:
            small_weight = sum(held.weight for held in self.small.values())
            if self.small and (small_weight + coming > self.small_limit or not self.main):
                key, held = next(iter(self.small.items()))
                if held.freq <= 1:
                    return key
                held.freq = 0
                self.main[key] = self.small.pop(key)
            else:
                key, held = next(iter(self.main.items()))
                if self.lru or not held.freq:
                    return key
                held.freq -= 1
                self.main.move_to_end(key)

    # -- ghosts ---------------------------------------------------------------------------------

    def set_capacity(self, capacity: int) -> None:
        slots = 64
        while 4 * slots < 5 * capacity:
            slots *= 2
        if slots > len(self.ghosts) > 0:
            copies: list[Ghost | None] = []
            for _ in range(slots // len(self.ghosts)):
                copies += [ghost and Ghost(**vars(ghost)) for ghost in self.ghosts]
            self.ghosts = copies
        elif slots != len(self.ghosts):
            self.ghosts = [None] * slots
        self.capacity = capacity

    def bucket(self, tag: int) -> range:
        first = tag % len(self.ghosts) // BUCKET * BUCKET
        return range(first, first + BUCKET)

    def find_ghost(self, tag: int) -> Ghost | None:
        for i in self.bucket(tag):
            ghost = self.ghosts[i]
            if ghost and ghost.tag == tag >> 16 | 1:
                return ghost
        return None

    def add_ghost(self, tag: int, seen: int) -> None:
        known = self.find_ghost(tag)
        if known:
            place = next(i for i in self.bucket(tag) if self.ghosts[i] is known)
        else:
            ages = {i: self.period - ghost.left if (ghost := self.ghosts[i]) else 2**16 for i in self.bucket(tag)}
            place = max(ages, key=lambda i: (ages[i], -i))
        self.ghosts[place] = Ghost(tag >> 16 | 1, self.period, seen)

    def forget_ghost(self, ghost: Ghost) -> None:
        self.ghosts = [None if known is ghost else known for known in self.ghosts]
