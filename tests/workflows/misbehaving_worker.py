"""A worker that does on command what programs do by mistake; started by test_workers."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from workflows.frames import ArraySpec, Blob, describe
from workflows.model_file import ModelRef, map_model
from workflows.tasks import Answer, Done, Task
from workflows.worker import serve
from workflows.workers import Station


class Told(Answer, frozen=True, tag="told"):
    text: str
    pid: int
    arrays: tuple[ArraySpec, ...] = ()


class Act(Task, frozen=True, tag="act"):
    answered_by: ClassVar[type[Answer]] = Told
    what: str
    text: str = ""
    number: float = 0.0
    model: ModelRef | None = None


class Load(Task, frozen=True, tag="load"):
    answered_by: ClassVar[type[Answer]] = Told
    clock: ClassVar[Any] = "import_s"
    text: str


loaded: list[str] = []


def handle(task: Any, blobs: list[bytes]) -> tuple[Answer, Sequence[Blob]]:
    made: dict[str, np.ndarray] = {}
    text = task.text
    if isinstance(task, Load):
        loaded.append(task.text)
    else:
        match task.what:
            case "echo":
                pass
            case "loaded":
                text = ",".join(loaded)
            case "answer-other":
                return Done(), ()
            case "sum":
                text = str(sum(len(blob) for blob in blobs))
            case "model":
                text = str(sum(float(a.sum()) for a in map_model(task.model).values()))
            case "arrays":
                made = {"x": np.arange(task.number, dtype=np.float32)}
            case "sleep":
                time.sleep(task.number)
            case "hog":
                hoard = [np.ones(1 << 20) for _ in range(10_000)]
                text = str(len(hoard))
            case "raise":
                raise MemoryError if text == "memory" else RuntimeError(text)
            case "leave":
                sys.exit(3)
            case "exit":
                os._exit(int(task.number))
            case "segfault":
                ctypes.string_at(0)
            case "be-killed-once":
                mark = Path(text)
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), 9)
            case "be-killed":
                os.kill(os.getpid(), 9)
            case "flood":
                for _ in range(int(task.number)):
                    sys.stdout.write("x" * (1 << 20))
            case "lie":
                connection = socket.socket(fileno=int(text))
                connection.sendall(b"\x00\x00\x00\x04rude")
                time.sleep(60)
            case "linger":
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                os._exit(7)
            case "fork-bomb":
                while True:
                    os.fork()
            case "hog-beside":
                threading.Thread(target=fork_a_hog).start()
                time.sleep(60)
            case "try":
                text = try_access(text)
            case "environment":
                text = ",".join(sorted(os.environ))
    specs, out = describe(made)
    return Told(text=text, pid=os.getpid(), arrays=specs), out


def fork_a_hog() -> None:
    if os.fork() == 0:
        hoard = np.ones(1 << 27)
        time.sleep(60 * hoard[0])


def try_access(what: str) -> str:
    try:
        kind, _, target = what.partition(" ")
        if kind == "read":
            Path(target).read_bytes()
        elif kind == "write":
            Path(target).write_bytes(b"x")
        elif kind == "connect":
            socket.create_connection(("127.0.0.1", int(target)), 1.0).close()
    except OSError as error:
        return type(error).__name__
    return "ok"


if __name__ == "__main__":
    if "--never-ready" in sys.argv:
        sys.exit(4)
    serve(msgspec.json.decode(sys.argv[-1], type=Station), handle, Act | Load)
