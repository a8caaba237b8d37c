"""Kept updates: what is written comes back, and nothing else can be made of the file."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from strategies import Ring, digest_of_fold
from strategies.median import CoordinateMedian
from strategies.spill import KeptUpdate, Spill
from tests.strategies.cohorts import fold, scalars

SHAPES = {"w": (5, 7), "b": ()}
ENTRIES = np.arange(-17, 18)


def kept(spill: Spill, site: str = "a", dtype: type = np.int32) -> KeptUpdate:
    update = spill.open(SHAPES, np.dtype(dtype))
    update.write("w", 0, ENTRIES[:16])
    update.write("w", 16, ENTRIES[16:])
    update.write("b", 0, np.array([9]))
    spill.keep(site, update)
    return update


def open_files() -> list[str]:
    return [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_what_was_written_is_read(dtype: type) -> None:
    update = kept(Spill(), dtype=dtype)

    np.testing.assert_array_equal(update.read("w", 0, 100), ENTRIES)
    np.testing.assert_array_equal(update.read("w", 16, 20), ENTRIES[16:20])
    assert update.read("b", 0, 1).tolist() == [9]
    assert update.read("b", 0, 1).dtype == dtype


def test_the_file_has_no_name_and_holds_what_aes_ctr_gives(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    update = kept(Spill())
    vault = update.vault
    raw = os.pread(vault._file.fileno(), 1 << 20, 0)

    assert list(tmp_path.iterdir()) == []
    stream = Cipher(algorithms.AES256(bytes(vault._key)), modes.CTR(bytes(16))).decryptor()
    plain = stream.update(raw)
    assert plain[:4] == (9).to_bytes(4, "little")  # layers by name, each from a whole block
    assert plain[16 : 16 + 140] == ENTRIES.astype("<i4").tobytes()
    assert ENTRIES.astype("<i4").tobytes()[:16] not in raw


def test_equal_updates_look_different() -> None:
    spill = Spill()
    first, second = kept(spill, "a"), kept(spill, "b")
    size = 16 + 144
    raw = os.pread(first.vault._file.fileno(), 2 * size, 0)

    assert second.places["b"][0] == size
    assert raw[:size] != raw[size:]


def test_wiping_forgets_the_key_and_the_blocks() -> None:
    spill = Spill()
    vault = kept(spill).vault
    key, copy = vault._key, os.dup(vault._file.fileno())

    spill.wipe()

    assert bytes(key) == bytes(32)
    assert os.fstat(copy).st_size == 0
    assert len(spill) == 0
    os.close(copy)
    spill.wipe()
    kept(spill)
    assert len(spill) == 1


def test_a_fold_that_is_dropped_leaves_no_file() -> None:
    before = sorted(open_files())
    strategy = CoordinateMedian()
    partial = fold(scalars(1, 2, 3), strategy, {"w": np.zeros(())})
    assert len(open_files()) == len(before) + 1

    del partial
    gc.collect()

    assert sorted(open_files()) == before


def test_a_fold_merged_into_another_outlives_its_own() -> None:
    strategy, model = CoordinateMedian(), {"w": np.zeros(())}
    cohort = scalars(1, 2, 3)
    left, right = fold(cohort[:1], strategy, model), fold(cohort[1:], strategy, model)
    strategy.merge(left, right)
    del right
    gc.collect()

    assert digest_of_fold(left) == digest_of_fold(fold(cohort, strategy, model))


def test_a_wide_ring_is_kept_whole() -> None:
    ring, strategy = Ring(fraction_bits=40, magnitude=2048.0), CoordinateMedian()
    assert (Ring().dtype, ring.dtype) == (np.int32, np.int64)
    assert Ring(magnitude=128.0).dtype == np.int64  # 2**31 itself is no int32

    delta = strategy.finish(
        fold(scalars(2048.0, 2048.0, 2.0**-20), strategy, {"w": np.zeros(())}, ring), ring
    )

    assert float(delta["w"]) == 2048.0
