"""Flower's ``Grid`` over our workers, in process: real messages, a real ClientApp, no SuperLink.

A message's small records travel in the task. An ``ArrayRecord`` that all messages of a push share
(the global model) is laid into a file once and mapped by each worker once; others travel beside
the task as the bytes that they are. Only runtimes and benchmarks import this module.

Source: ``flwr.serverapp.Grid`` and the Message API of flwr 1.41. One internal is needed before any
``Message`` can be made: ``TaskIdentity``.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec
import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from workflows.causes import Cause, CauseCode
from workflows.frames import Blob
from workflows.model_file import ModelRef, map_model
from workflows.pool import Pool
from workflows.tasks import Answer, AnyAnswer, Reply, SiteFailure, Task

RUN_ID: Final = 1
SERVER_NODE_ID: Final = 1
CLIENT_APP_FAILED: Final = 2  # ErrorCode.CLIENT_APP_RAISED_EXCEPTION
NUMPY: Final = "numpy.ndarray"  # SType.NUMPY


class ReplyUnusable(Exception):
    """What came back is not what a ClientApp answers."""


class ArrayHead(msgspec.Struct, frozen=True, array_like=True):
    """A flwr ``Array`` without its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str


class RecordHead(msgspec.Struct, frozen=True, tag_field="kind"):
    """A record of a message, without the bytes of its arrays."""


class Arrays(RecordHead, frozen=True, tag="arrays"):
    """Arrays whose bytes are the next blobs, in order."""

    heads: tuple[ArrayHead, ...]


class Shared(RecordHead, frozen=True, tag="shared"):
    """Arrays whose bytes lie in a file."""

    heads: tuple[ArrayHead, ...]
    model: ModelRef


class Config(RecordHead, frozen=True, tag="config"):
    """A ``ConfigRecord``."""

    values: Mapping[str, Any]


class Metrics(RecordHead, frozen=True, tag="metrics"):
    """A ``MetricRecord``."""

    values: Mapping[str, Any]


Head = Arrays | Shared | Config | Metrics


class Delivered(Answer, frozen=True, tag="delivered"):
    """Content of the ClientApp's reply."""

    content: Mapping[str, Head]


class Deliver(Task, frozen=True, tag="deliver"):
    """Hand a message to the ClientApp."""

    answered_by: ClassVar[type[Answer]] = Delivered
    message_id: str
    message_type: str
    node_id: int
    site: str
    group_id: str
    ttl: float
    content: Mapping[str, Head]


ANSWERS: Final = AnyAnswer | Delivered


def identify() -> None:
    """Tell flwr which task this process is; without that it makes no message."""
    TaskIdentity.run_id = TaskIdentity.task_id = RUN_ID
    TaskIdentity.node_id = SERVER_NODE_ID


@functools.lru_cache(maxsize=4096)
def _npy_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    template = np.broadcast_to(np.empty((), dtype), shape)
    fields = np.lib.format.header_data_from_array_1_0(template) | {"fortran_order": False}
    np.lib.format.write_array_header_1_0(head, fields)
    return head.getvalue()


def to_array(array: np.ndarray) -> Array:
    """A flwr ``Array`` in the form that flwr's own conversion gives, with one copy of the data."""
    whole = np.ascontiguousarray(array)
    data = b"".join((_npy_head(array.dtype, array.shape), whole.data if whole.size else b""))
    return Array(array.dtype.name, array.shape, NUMPY, data)


def to_numpy(array: Array) -> np.ndarray:
    """What ``array.numpy()`` gives, read-only and without a copy where its form is ours.

    Raises:
        ValueError: The bytes are not what the array says of itself.
    """
    head = _npy_head(np.dtype(array.dtype), array.shape)
    if array.stype != NUMPY or not array.data.startswith(head):
        converted: np.ndarray = array.numpy()
        return converted
    return np.frombuffer(array.data, array.dtype, offset=len(head)).reshape(array.shape)


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Named arrays as a record."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = to_array(array)
    return record


def to_arrays(record: ArrayRecord) -> dict[str, np.ndarray]:
    """A record as named arrays, read-only.

    Raises:
        ValueError: The bytes are not what the arrays say of themselves.
    """
    return {name: to_numpy(array) for name, array in record.items()}


def take_apart(
    content: RecordDict, shared: Mapping[int, Shared]
) -> tuple[dict[str, Head], list[Blob]]:
    """Heads of a message's records and the bytes of their arrays, uncopied.

    Args:
        content: Of the message.
        shared: Heads of records that lie in a file, by the record's ``id``.
    """
    heads: dict[str, Head] = {}
    blobs: list[Blob] = []
    for name, record in content.items():
        if id(record) in shared:
            heads[name] = shared[id(record)]
        elif isinstance(record, ArrayRecord):
            heads[name] = Arrays(_array_heads(record))
            blobs += [array.data for array in record.values()]
        elif isinstance(record, ConfigRecord):
            heads[name] = Config(dict(record))
        else:
            heads[name] = Metrics(dict(record))
    return heads, blobs


def put_together(
    heads: Mapping[str, Head], blobs: Sequence[bytes], shared: Mapping[int, ArrayRecord]
) -> RecordDict:
    """The content that was taken apart.

    Args:
        heads: Of the records.
        blobs: Bytes of the arrays that travelled along.
        shared: Records read from files, by the model's version.

    Raises:
        ReplyUnusable: The blobs are not those that the heads announce.
    """
    content, source = RecordDict(), iter(blobs)
    for name, head in heads.items():
        match head:
            case Shared():
                if head.model.version not in shared:
                    raise ReplyUnusable(f"record {name} is nowhere")
                content[name] = shared[head.model.version]
            case Arrays():
                content[name] = _record(head.heads, source)
            case Config():
                content[name] = ConfigRecord(dict(head.values))
            case Metrics():
                content[name] = MetricRecord(dict(head.values))
    return content


def _array_heads(record: ArrayRecord) -> tuple[ArrayHead, ...]:
    return tuple(ArrayHead(n, a.dtype, tuple(a.shape), a.stype) for n, a in record.items())


def _record(heads: Iterable[ArrayHead], blobs: Iterator[bytes]) -> ArrayRecord:
    record = ArrayRecord()
    for head in heads:
        blob = next(blobs, None)
        if blob is None:
            raise ReplyUnusable(f"the bytes of {head.name} are missing")
        record[head.name] = Array(head.dtype, head.shape, head.stype, blob)
    return record


@dataclass(slots=True, eq=False)
class _Batch:
    """Messages that were pushed together, and their replies as they come."""

    waiting: set[str]
    replies: Iterator[Message]


class WorkerGrid(Grid):  # type: ignore[misc]  # flwr is untyped here
    """A grid whose nodes are simulated by workers; node k is the k-th site, from 2.

    Messages of one push are given to the workers when their replies are first pulled. The shortest
    of their ttl bounds how long they are waited for.
    """

    def __init__(self, pool: Pool[Deliver], sites: Sequence[str]) -> None:
        self._pool = pool
        self._sites = dict(enumerate(sites, start=SERVER_NODE_ID + 1))
        self._numbers = itertools.count(1)
        self._batches: list[_Batch] = []
        self._unclaimed: dict[str, Message] = {}
        self._shared: tuple[ArrayRecord, Mapping[str, np.ndarray]] | None = None
        self._run: Run | None = None

    def set_run(self, run: Run) -> None:
        """Remember the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that was set.

        Raises:
            LookupError: None was.
        """
        if self._run is None:
            raise LookupError("no run was set")
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """One id per site, in their order."""
        return list(self._sites)

    def site(self, node_id: int) -> str:
        """Name of the site that a node simulates."""
        return self._sites[node_id]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; they are delivered when their replies are pulled."""
        batch = list(messages)
        for message in batch:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
        ids = [message.metadata.message_id for message in batch]
        if batch:
            self._batches.append(_Batch(set(ids), self._exchange(batch)))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The next reply to one of the messages, waited for; nothing when all were pulled."""
        wanted = set(message_ids)
        for known in wanted & self._unclaimed.keys():
            return [self._unclaimed.pop(known)]
        for batch in self._batches:
            while batch.waiting & wanted:
                reply = next(batch.replies)
                answered = reply.metadata.reply_to_message_id
                batch.waiting.discard(answered)
                if answered in wanted:
                    return [reply]
                self._unclaimed[answered] = reply
        self._batches = [batch for batch in self._batches if batch.waiting]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Replies to all messages; ``timeout`` and each message's own ttl bound the wait."""
        batch = list(messages)
        for message in batch if timeout is not None else ():
            message.metadata.ttl = min(message.metadata.ttl, timeout)
        ids = self.push_messages(batch)
        replies: list[Message] = []
        while pulled := self.pull_messages(ids):
            replies += pulled
        return replies

    def _exchange(self, batch: Sequence[Message]) -> Iterator[Message]:
        """Deliver messages and yield the reply to each, or an error in its place."""
        by_id = {message.metadata.message_id: message for message in batch}
        shared = self._share(batch)
        tasks = ((self._task(message, shared)) for message in batch)
        ttl = min(message.metadata.ttl for message in batch)
        for task, outcome in self._pool.as_completed(tasks, ttl):
            yield _reply(by_id.pop(task.message_id), outcome)

    def _share(self, batch: Sequence[Message]) -> dict[int, Shared]:
        """Lay the array record that all messages have in common into a file, unless it is there."""
        common = [r for r in batch[0].content.values() if isinstance(r, ArrayRecord)]
        for message in batch[1:]:
            mine = {id(record) for record in message.content.values()}
            common = [record for record in common if id(record) in mine]
        if not common:
            return {}
        record = common[0]
        if self._shared is None or self._shared[0] is not record:
            raw = {name: np.frombuffer(a.data, np.uint8) for name, a in record.items()}
            self._shared = (record, raw)
        model = self._pool.broadcast(self._shared[1])
        return {id(record): Shared(_array_heads(record), model)}

    def _task(
        self, message: Message, shared: Mapping[int, Shared]
    ) -> tuple[Deliver, Sequence[Blob]]:
        metadata = message.metadata
        heads, blobs = take_apart(message.content, shared)
        task = Deliver(
            message_id=metadata.message_id,
            message_type=metadata.message_type,
            node_id=metadata.dst_node_id,
            site=self._sites[metadata.dst_node_id],
            group_id=metadata.group_id,
            ttl=metadata.ttl,
            content=heads,
        )
        return task, blobs


def _reply(message: Message, outcome: Reply | SiteFailure) -> Message:
    if isinstance(outcome, SiteFailure):
        return _error(message, outcome.cause)
    try:
        content = put_together(outcome.answer.content, outcome.blobs, {})
    except ReplyUnusable as error:
        return _error(message, Cause(code=CauseCode.PROGRAM_DIED, detail=str(error)))
    return Message(content, reply_to=message)


def _error(message: Message, cause: Cause) -> Message:
    reason = msgspec.json.encode(cause).decode()
    return Message(Error(CLIENT_APP_FAILED, reason), reply_to=message)


def cause_of(error: Error) -> Cause:
    """What ``WorkerGrid`` put into an error reply."""
    return msgspec.json.decode(error.reason or "{}", type=Cause)


class NodeDesk:
    """The worker's side: hands messages to a ClientApp and keeps the model they share."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._shared: dict[int, ArrayRecord] = {}

    def deliver(self, task: Deliver, blobs: list[bytes]) -> tuple[Answer, Sequence[Blob]]:
        """Have the ClientApp answer one message."""
        for head in task.content.values():
            if isinstance(head, Shared) and head.model.version not in self._shared:
                mapped = iter([view.tobytes() for view in map_model(head.model).values()])
                self._shared = {head.model.version: _record(head.heads, mapped)}
        message = Message(
            put_together(task.content, blobs, self._shared),
            task.node_id,
            task.message_type,
            ttl=task.ttl,
            group_id=task.group_id,
        )
        message.metadata.__dict__["_message_id"] = task.message_id
        context = Context(RUN_ID, task.node_id, {"site": task.site}, RecordDict(), {})
        heads, made = take_apart(self._app(message, context).content, {})
        return Delivered(content=heads), made
