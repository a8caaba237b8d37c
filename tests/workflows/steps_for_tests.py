"""A step that does what its arguments say, one after another, then exits with 0.

Arguments: ``event``, ``rounds=N`` (with objects, 5 ms each), ``output=NAME``, ``say=TEXT``,
``flood=MB``, ``wait`` (for ever), ``deaf`` (ignore SIGTERM), ``orphan`` (leave a process behind in
a session of its own), ``torn`` (half a line), ``fill`` (the disk), ``fail`` (say why),
``until=NAME`` (that file exists in the run directory), ``seek=HEX`` (in every file that it may
read where secrets could lie, and say in which), ``skip`` (a number), ``exit=CODE``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sharing.object_store import digest_of
from workflows.causes import Cause, CauseCode
from workflows.events import RoundFinished, StepEvent, StepFailed, StepStarted


class Teller:
    """Writes the events of one step."""

    def __init__(self, run: Path, step: str) -> None:
        self.run = run
        self.path = run / f"{step}.events.jsonl"
        self.number = 0

    def tell(self, event: StepEvent) -> None:
        self.number += 1
        line = msgspec.json.encode(
            msgspec.structs.replace(event, number=self.number, at=time.time())
        )
        with self.path.open("ab") as file:
            file.write(line + b"\n")

    def finish_round(self, number: int, rounds: int) -> None:
        names = []
        for what in ("checkpoint", "transcript"):
            content = f"{what} {number}".encode()
            name = digest_of(content)
            part = self.run / "objects" / f".{number}.part"
            part.write_bytes(content)
            part.replace(self.run / "objects" / name.removeprefix("sha256:"))
            names.append(name)
        self.tell(
            RoundFinished(
                number=0,
                at=0,
                round=number,
                rounds=rounds,
                sites=2,
                dropped=0,
                loss=1 / number,
                metrics={"accuracy": 0.5},
                bytes_up=10,
                bytes_down=10,
                seconds=0.005,
                model=names[0],
                checkpoint=names[0],
                transcript=names[1],
            )
        )


def secretive() -> Iterator[Path]:
    """Files of this machine where a careless platform would leave a secret."""
    for process in Path("/proc").glob("[0-9]*"):
        yield process / "environ"
        yield process / "cmdline"
        yield process / "mem"
    for folder in ("/run", "/var/run/argo", "/var/run/secrets", "/tmp", "/argo"):
        for parent, _, names in os.walk(folder):
            yield from (Path(parent) / name for name in names)


def holds(path: Path, needle: bytes) -> bool:
    try:
        return needle in path.read_bytes() and path.parent.name != str(os.getpid())
    except OSError:
        return False


def main(step: str, orders: list[str], run: Path) -> None:
    teller = Teller(run, step)
    for order in orders:
        name, _, value = order.partition("=")
        match name:
            case "event":
                teller.tell(StepStarted(number=0, at=0))
            case "rounds":
                for number in range(1, int(value) + 1):
                    teller.finish_round(number, int(value))
                    time.sleep(0.005)
            case "output":
                (run / value).write_bytes(f"content of {value}".encode())
            case "say":
                os.write(1, value.encode() + b"\n")
            case "flood":
                for _ in range(int(value)):
                    os.write(1, b"spam and eggs!!\n" * 65_536)
            case "wait":
                while True:
                    signal.pause()
            case "until":
                while not (run / value).exists():
                    time.sleep(0.01)
            case "seek":
                found = [str(path) for path in secretive() if holds(path, bytes.fromhex(value))]
                os.write(1, f"found in {found}\n".encode())
            case "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "orphan":
                orphan = subprocess.Popen(
                    [sys.executable, "-S", "-c", "import time; time.sleep(600)"],
                    start_new_session=True,
                )
                (run / "orphan").write_text(str(orphan.pid))
            case "torn":
                with teller.path.open("ab") as file:
                    file.write(b'{"kind": "step.sta')
            case "fill":
                with (run / "filler").open("wb") as file:
                    while True:
                        file.write(bytes(1 << 16))
                        file.flush()
            case "skip":
                teller.number += 1
            case "fail":
                cause = Cause(code=CauseCode.UPDATE_NOT_FINITE, detail="loss is nan", round=2)
                teller.tell(StepFailed(number=0, at=0, cause=cause))
            case "exit":
                sys.exit(int(value))
            case _:
                raise ValueError(order)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:-1], Path(sys.argv[-1]))
