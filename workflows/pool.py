"""Whoever does tasks, as those see it that hand them out.

Worker processes of this machine (``workflows.workers``), or those of shards on other machines
(``workflows.shards``).
"""

from __future__ import annotations

import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from workflows.causes import Cause, CauseCode
from workflows.frames import Blob
from workflows.model_file import ModelRef
from workflows.tasks import Reply, SiteFailure, Task

T = TypeVar("T", bound=Task)


class Pool(ABC, Generic[T]):
    """Some workers."""

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """Tasks that are done at a time."""

    @abstractmethod
    def call(self, task: Task, blobs: Sequence[Blob] = ()) -> Future[Reply]:
        """Give ``task`` to the next free worker; a ``SiteFailure`` is the future's exception."""

    @abstractmethod
    def broadcast(self, params: Mapping[str, np.ndarray]) -> ModelRef:
        """Lay ``params`` where every worker can map them; the model before is deleted.

        The same object again is the same model, and is not written again.
        """

    @abstractmethod
    def give_up(self, pending: Iterable[Future[Reply]]) -> None:
        """Let nobody go on with these."""

    def as_completed(
        self, tasks: Iterable[tuple[T, Sequence[Blob]]], deadline_s: float | None = None
    ) -> Iterator[tuple[T, Reply | SiteFailure]]:
        """Answers as they come, in any order, while every worker is kept busy.

        No more than a few answers wait here at a time, however many tasks there are. Tasks that
        are unanswered after ``deadline_s`` seconds, or when the iterator is closed, are given up,
        and the workers that still are at them are replaced.
        """
        ends = None if deadline_s is None else time.monotonic() + deadline_s
        source = iter(tasks)
        done: queue.SimpleQueue[Future[Reply]] = queue.SimpleQueue()
        pending: dict[Future[Reply], T] = {}
        try:
            while True:
                room = max(0 if pending else 1, 2 * self.num_workers - len(pending))
                for task, blobs in islice(source, room):
                    future = self.call(task, blobs)
                    pending[future] = task
                    future.add_done_callback(done.put)
                if not pending:
                    return
                try:
                    wait_s = None if ends is None else max(0.0, ends - time.monotonic())
                    future = done.get(timeout=wait_s)
                except queue.Empty:
                    break
                yield pending.pop(future), _outcome(future)
            late = [*pending.values(), *(task for task, _ in source)]
        finally:
            self.give_up(pending)
        detail = f"no answer within {deadline_s:g} s"
        for task in late:
            yield task, SiteFailure(Cause(code=CauseCode.DEADLINE_PASSED, detail=detail))


def _outcome(future: Future[Reply]) -> Reply | SiteFailure:
    try:
        return future.result()
    except SiteFailure as failure:
        return failure
