"""What a plan was made from, as figures with names: measured, or None where nothing is known.

Holds and shows them; measuring is done in ``sampling`` and ``worker_costs``, deciding in ``planning``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DiagnosticProfile"]


@dataclass(slots=True)
class DiagnosticProfile:
    """The figures behind a plan. All times in seconds, all sizes in bytes; None: not known, or not measured.

    A value, picklable; costs nothing to make.

    Parameters:
        sample_count: items that were tried.
        avg_execution_time: of ``func``, a mean over the samples; without a first that stood out (``warm_up_time``).
        warm_up_time: what the first call took beyond the others; 0.0 where it did not stand out.
        coefficient_of_variation: standard deviation of the execution time over its mean.
        is_heterogeneous: whether that is above 0.5.
        cpu_time_ratio: share of the execution time that was computing.
        lock_held_ratio: share of that computing that held the interpreter's lock.
        workload_type: "cpu-bound" (computing at least 70 % of the time), "io-bound" (at most 30 %), "mixed".
        is_picklable: whether function, items and results can travel to another process.
        avg_pickle_time: to pickle and unpickle a result.
        avg_data_pickle_time: to pickle and unpickle an item.
        return_size_bytes: of a result's pickle, a mean.
        data_size_bytes: of an item's pickle, a mean.
        peak_memory_bytes: always None: to measure it would slow ``func`` down many times (tracemalloc).
        physical_cores: of the machine.
        logical_cores: of the machine.
        usable_cores: that this process may use (affinity, container quota).
        multiprocessing_start_method: that a pool of the caller's own would use.
        spawn_cost: until a first worker is up.
        spawn_cost_measured: whether here and now; False: an assumed figure.
        chunking_overhead: to hand over a chunk and take its results.
        chunking_overhead_measured: likewise.
        available_memory: free to this process when the plan was made.
        total_items: of the whole run.
        estimated_serial_time: of a plain loop over all items.
        estimated_result_memory: of all results together.
        max_workers_cpu: workers that the processors have work for.
        max_workers_memory: workers whose chunks in flight fit the available memory.
        target_chunk_duration: asked for.
        optimal_chunksize: items a chunk, as planned.
        overhead_spawn: to start the workers.
        overhead_ipc: to pickle and unpickle all items and results.
        overhead_chunking: to handle all chunks.
        parallel_compute_time: of the work itself, spread over the workers.
        estimated_parallel_time: of the whole run as planned.
        theoretical_max_speedup: if workers cost nothing.
        estimated_speedup: as planned, over a plain loop.
        speedup_efficiency: that speedup over the number of workers.
        rejection_reasons: why no workers, or why not processes.
        constraints: what holds the plan back.
        recommendations: what would make it better.
    """

    sample_count: int = 0
    avg_execution_time: float | None = None
    warm_up_time: float | None = None
    coefficient_of_variation: float | None = None
    is_heterogeneous: bool | None = None
    cpu_time_ratio: float | None = None
    lock_held_ratio: float | None = None
    workload_type: str | None = None
    is_picklable: bool | None = None
    avg_pickle_time: float | None = None
    avg_data_pickle_time: float | None = None
    return_size_bytes: int | None = None
    data_size_bytes: int | None = None
    peak_memory_bytes: int | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    usable_cores: int | None = None
    multiprocessing_start_method: str | None = None
    spawn_cost: float | None = None
    spawn_cost_measured: bool = False
    chunking_overhead: float | None = None
    chunking_overhead_measured: bool = False
    available_memory: int | None = None
    total_items: int | None = None
    estimated_serial_time: float | None = None
    estimated_result_memory: int | None = None
    max_workers_cpu: int | None = None
    max_workers_memory: int | None = None
    target_chunk_duration: float | None = None
    optimal_chunksize: int | None = None
    overhead_spawn: float | None = None
    overhead_ipc: float | None = None
    overhead_chunking: float | None = None
    parallel_compute_time: float | None = None
    estimated_parallel_time: float | None = None
    theoretical_max_speedup: float | None = None
    estimated_speedup: float | None = None
    speedup_efficiency: float | None = None
    rejection_reasons: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    recommendations: list[str] = field(default_factory=list)

    @staticmethod
    def format_time(seconds: float | None) -> str:
        """``"1.50 ms"``; "unknown" for None."""
        if seconds is None:
            return "unknown"
        for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
            if abs(seconds) >= size:
                return f"{seconds / size:.2f} {unit}"
        return f"{seconds / 1e-9:.0f} ns"

    @staticmethod
    def format_bytes(size: float | None) -> str:
        """``"1.50 MB"``, decimal units; "unknown" for None."""
        if size is None:
            return "unknown"
        for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(size) >= scale:
                return f"{size / scale:.2f} {unit}"
        return f"{size:.0f} B"

    def get_overhead_breakdown(self) -> dict[str, float]:
        """Percent of all overhead for "spawn", "ipc" and "chunking"; all 0.0 where there is none or none is known."""
        parts = {
            "spawn": self.overhead_spawn or 0.0,
            "ipc": self.overhead_ipc or 0.0,
            "chunking": self.overhead_chunking or 0.0,
        }
        total = sum(parts.values())
        return {name: 100.0 * part / total if total else 0.0 for name, part in parts.items()}

    def explain_decision(self) -> str:
        """The figures and what follows from them, over several lines."""
        sections = (
            ("What was measured", self._measured()),
            ("The machine", self._machine()),
            ("What is predicted", self._predicted()),
            ("Why not", self.rejection_reasons),
            ("What holds it back", self.constraints),
            ("What would help", self.recommendations),
        )
        return "\n\n".join(
            f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections if lines
        )

    def _measured(self) -> list[str]:
        if not self.sample_count:
            return ["no item was tried"]
        if self.avg_execution_time is None:
            return [f"{self.sample_count} items tried, none of them worked"]
        time, size = self.format_time, self.format_bytes
        lines = [f"{self.sample_count} items tried, {time(self.avg_execution_time)} each"]
        if self.warm_up_time:
            lines.append(
                f"the first took {time(self.warm_up_time)} longer: taken for warm-up, which each worker pays once"
            )
        if self.sample_count > 1 and self.coefficient_of_variation is not None:
            unlike = "unlike (chunks are kept smaller)" if self.is_heterogeneous else "alike"
            lines.append(f"coefficient of variation {self.coefficient_of_variation:.2f}: items are {unlike}")
        if self.cpu_time_ratio is not None:
            lines.append(f"{self.workload_type}: computing for {self.cpu_time_ratio:.0%} of that time")
        if self.lock_held_ratio is not None:
            lines.append(f"the interpreter's lock held for {self.lock_held_ratio:.0%} of the computing")
        if self.is_picklable is False:
            lines.append("cannot travel to another process")
        if self.avg_data_pickle_time is not None:
            lines.append(
                f"an item: {size(self.data_size_bytes)}, {time(self.avg_data_pickle_time)} to pickle and unpickle"
            )
        if self.avg_pickle_time is not None:
            lines.append(
                f"a result: {size(self.return_size_bytes)}, {time(self.avg_pickle_time)} to pickle and unpickle"
            )
        return lines

    def _machine(self) -> list[str]:
        lines = [
            (
                f"processors this process may use: {_known(self.usable_cores)}; the machine has "
                f"{_known(self.logical_cores)} logical, {_known(self.physical_cores)} physical"
            )
        ]
        if self.spawn_cost is not None:
            lines.append(f"start of a worker: {self.format_time(self.spawn_cost)} ({_how(self.spawn_cost_measured)})")
        if self.chunking_overhead is not None:
            how = _how(self.chunking_overhead_measured)
            lines.append(f"handling of a chunk: {self.format_time(self.chunking_overhead)} ({how})")
        if self.available_memory is not None:
            lines.append(f"memory available: {self.format_bytes(self.available_memory)}")
        return lines

    def _predicted(self) -> list[str]:
        if self.estimated_speedup is None:
            return []
        time = self.format_time
        each = "" if self.total_items is not None else " an item"
        lines = [f"{_known(self.total_items)} items; {self.optimal_chunksize} a chunk"]
        if self.estimated_serial_time is not None:
            lines.append(
                f"a plain loop: {time(self.estimated_serial_time)}; as planned: {time(self.estimated_parallel_time)}"
            )
        best = (
            ""
            if self.theoretical_max_speedup is None
            else f"; {self.theoretical_max_speedup:.2f}x if workers cost nothing"
        )
        lines.append(f"speedup {self.estimated_speedup:.2f}x{best}")
        if self.overhead_ipc is not None:
            shares = ", ".join(f"{name} {share:.0f} %" for name, share in self.get_overhead_breakdown().items())
            lines.append(
                f"overhead{each}: start {time(self.overhead_spawn)}, pickling {time(self.overhead_ipc)}, chunks "
                f"{time(self.overhead_chunking)} ({shares})"
            )
        if self.estimated_result_memory is not None:
            lines.append(f"all results together: {self.format_bytes(self.estimated_result_memory)}")
        return lines


def _known(value: int | None) -> str:
    return "an unknown number of" if value is None else str(value)


def _how(measured: bool) -> str:
    return "measured" if measured else "assumed"
