"""The errors callers get for requests that were not cured: what failed where, how often it was tried, what to do.

When to give up is decided in ``engine.py``; what an error of a storage client means in ``retry.py``.
"""

from __future__ import annotations

from lazystore.errors import DatasetNotFoundError, FetchError, FetchTimeoutError, LazyStoreError, SourceChangedError
from lazystore.fetch.jobs import Batch, Job
from lazystore.fetch.retry import Verdict, WireError

__all__ = ["failure", "timed_out"]

#: Characters of a storage client's own words that go into our message.
MAX_CAUSE = 300

_REMEDY = {
    Verdict.MISSING: "check the URL, and that the dataset is complete there",
    Verdict.DENIED: (
        "check the credentials in storage_options (a public bucket may need {'anon': True}); some stores "
        "answer like this for objects that do not exist"
    ),
    Verdict.CHANGED: "the dataset was rewritten while it was read: open it again",
    Verdict.BEYOND: "the object is shorter than its index says: upload it again",
    Verdict.BRIEF: "check the host, the port and the network",
}


def failure(batch: Batch, job: Job, url: str, error: BaseException, verdict: Verdict) -> LazyStoreError:
    """The error a caller gets for a failure that more attempts would not cure.

    Args:
        url: the object's, without secrets.
    """
    if isinstance(error, LazyStoreError):
        return error
    elapsed = batch.deadline.elapsed()
    tries = f"{job.attempts} attempt{'s' if job.attempts != 1 else ''}, {elapsed:.1f} s"
    message = f"cannot read {_where(job, url)}: {_words(error)} ({tries})"
    if remedy := _REMEDY.get(verdict):
        message += f"; {remedy}"
    if verdict is Verdict.MISSING:
        return DatasetNotFoundError(message)
    kind = SourceChangedError if verdict is Verdict.CHANGED else FetchError
    return kind(message, url=url, begin=job.begin, end=job.end, attempts=job.attempts, elapsed=elapsed)


def timed_out(batch: Batch, job: Job | None, url: str, error: BaseException | None) -> FetchTimeoutError:
    """The error of a call whose deadline passed, or would pass before another attempt.

    Args:
        job: what was tried most often; None if nothing was.
        url: the job's object, or the root without a job.
    """
    elapsed = batch.deadline.elapsed()
    if job is None:
        return FetchTimeoutError(f"no answer from {url!r} in {elapsed:.1f} s", elapsed=elapsed)
    last = f"the last one failed with {_words(error)}" if error is not None else "none was answered"
    return FetchTimeoutError(
        f"{_where(job, url)} did not come within {batch.deadline.timeout:g} s: {job.attempts} attempts in "
        f"{elapsed:.1f} s, {last}; raise the timeout if the storage is just slow",
        url=url,
        begin=job.begin,
        end=job.end,
        attempts=job.attempts,
        elapsed=elapsed,
    )


def _where(job: Job, url: str) -> str:
    return f"{url} bytes {job.begin}-{job.end}" if job.end >= 0 else url


def _words(error: BaseException) -> str:
    """The storage client's own words, shortened; obstore appends pages of debug output."""
    text = str(error).partition("\n\nDebug source")[0].strip().replace("\n", " ")
    if len(text) > MAX_CAUSE:
        text = text[: MAX_CAUSE - 3] + "..."
    if isinstance(error, WireError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
