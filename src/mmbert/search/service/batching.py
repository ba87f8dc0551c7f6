"""Dynamic batching: requests that wait while the model is busy go through it together as one packed batch.

One thread computes. Whatever of one kind has come in meanwhile is its next batch, so a lone request never waits for
others, and many share a pass. The queue is bounded: who comes when it is full is told when to come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""Answers to several items in their order; an answer may be the error that belongs to its item."""


class Overloaded(Exception):
    """The queue is full.

    Args:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests are waiting")
        self.retry_after = retry_after


class TooLate(Exception):
    """The deadline passed before the answer was there."""


class Closing(Exception):
    """The service is shutting down and takes nothing new."""


@dataclass
class _Job:
    kind: str
    alike: Hashable
    item: Any
    size: int
    deadline: float
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any] = field(repr=False)


class Batcher:
    """Computes in one thread what coroutines submit.

    Args:
        runs: kind -> what computes items of that kind.
        most: items (as counted by their ``size``) in one batch; 1 computes every request by itself.
        capacity: jobs that may wait.
        observe: told (kind, jobs, seconds) of every batch.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        *,
        most: int = 64,
        capacity: int = 256,
        observe: Callable[[str, int, float], None] = lambda kind, jobs, seconds: None,
    ) -> None:
        self._runs, self._most, self._capacity, self._observe = dict(runs), most, capacity, observe
        self._waiting: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._pace = 0.05  # seconds per job, a running mean
        self._thread = threading.Thread(target=self._work, name="mmbert-batches", daemon=True)
        self._thread.start()

    def add(self, kind: str, run: Run) -> None:
        """Let items of one more kind be submitted.

        Raises:
            ValueError: there is such a kind already.
        """
        if kind in self._runs:
            raise ValueError(f"items of kind {kind!r} are computed already")
        self._runs[kind] = run

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    async def submit(self, kind: str, item: Any, *, timeout: float, size: int = 1, alike: Hashable = None) -> Any:
        """The answer to one item.

        Args:
            kind: what computes it.
            item: what that takes.
            timeout: seconds.
            size: of the item, as ``most`` counts.
            alike: only items of equal ``alike`` share a batch: those of one language, say.

        Raises:
            Overloaded: the queue is full.
            TooLate: no answer within ``timeout`` seconds.
            Closing: the service is shutting down.
            MMBertError: what the computation says is wrong with this item.
        """
        loop = asyncio.get_running_loop()
        job = _Job(kind, alike, item, size, time.monotonic() + timeout, loop, loop.create_future())
        with self._wake:
            if self._closing:
                raise Closing("the service is shutting down")
            if len(self._waiting) >= self._capacity:
                raise Overloaded(max(1, round(self._pace * len(self._waiting))))
            self._waiting.append(job)
            self._wake.notify()
        try:
            return await asyncio.wait_for(job.answer, timeout)
        except TimeoutError:
            raise TooLate(f"no answer within {timeout:g} s") from None

    def close(self) -> None:
        """Take nothing new, finish what is waiting, stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            start = time.perf_counter()
            answers = self._compute(batch[0].kind, [job.item for job in batch])
            seconds = time.perf_counter() - start
            self._pace = 0.9 * self._pace + 0.1 * seconds / len(batch)
            self._observe(batch[0].kind, len(batch), seconds)
            for job, answer in zip(batch, answers, strict=True):
                _settle(job, answer)

    def _next(self) -> list[_Job]:
        """The longest-waiting job, and all others like it that fit; empty when there is nothing left to do."""
        with self._wake:
            while True:
                self._drop_late()
                if self._waiting:
                    break
                if self._closing:
                    return []
                self._wake.wait()
            first = self._waiting.popleft()
            batch, size, rest = [first], first.size, deque[_Job]()
            for job in self._waiting:
                if (job.kind, job.alike) == (first.kind, first.alike) and size + job.size <= self._most:
                    batch.append(job)
                    size += job.size
                else:
                    rest.append(job)
            self._waiting = rest
            return batch

    def _drop_late(self) -> None:
        """Forget those that nobody waits for any more."""
        now = time.monotonic()
        self._waiting = deque(job for job in self._waiting if job.deadline > now and not job.answer.cancelled())

    def _compute(self, kind: str, items: list[Any]) -> Sequence[Any]:
        try:
            return self._runs[kind](items)
        except BaseException as error:  # the database's Rust code panics outside of Exception
            if len(items) == 1:
                return [error]
            return [answer for item in items for answer in self._compute(kind, [item])]


def _settle(job: _Job, answer: Any) -> None:
    def now() -> None:
        if job.answer.done():
            return
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        elif isinstance(answer, BaseException):
            job.answer.set_exception(RuntimeError(str(answer)))
        else:
            job.answer.set_result(answer)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        job.loop.call_soon_threadsafe(now)
