from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.step_log import TAIL_BYTES, StepLog

LIMIT_BYTES = 1 << 17


@settings(max_examples=50)
@given(sizes=st.lists(st.integers(0, 50_000), max_size=12))
def test_the_beginning_and_the_end_are_kept_however_it_is_chunked(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "federate.log"
    everything = b"".join(b"%07d\n" % number for number in range(sum(sizes) // 8 + 1))
    chunks, offset = [], 0
    for size in sizes:
        chunks.append(everything[offset : offset + size])
        offset += size
    printed = b"".join(chunks)

    with StepLog(path, limit_bytes=LIMIT_BYTES) as log:
        for chunk in chunks:
            log.write(chunk)

    kept = path.read_bytes()
    assert len(kept) <= LIMIT_BYTES
    head_bytes = LIMIT_BYTES - TAIL_BYTES - 512
    if len(printed) <= head_bytes + TAIL_BYTES:
        assert kept == printed
    else:
        assert kept.startswith(printed[:head_bytes] + b"\n[foedus] ")
        assert kept.endswith(b" left out here\n" + printed[-TAIL_BYTES:])
        left_out = len(printed) - head_bytes - TAIL_BYTES
        assert b"[foedus] %d bytes are left out here\n" % left_out in kept


def test_the_last_lines_are_known_while_it_is_open(tmp_path: Path) -> None:
    with StepLog(tmp_path / "federate.log", limit_bytes=LIMIT_BYTES) as log:
        log.write(b"one\ntwo\nthr")
        log.write(b"ee\n")

        assert log.last_lines(2) == "two\nthree"


def test_a_file_that_can_not_be_written_holds_nobody_up() -> None:
    with StepLog(Path("/dev/full"), limit_bytes=LIMIT_BYTES) as log:
        log.write(b"one\n")
        log.write(b"two\n")

        assert log.error is not None
        assert log.error.errno == errno.ENOSPC
        assert log.last_lines(2) == "one\ntwo"
