"""Updates that a fold must keep until the round ends, on disk and not in memory.

A spill is a file without a name, so nothing is left of it when the process ends, however it ends.
What lies in it is encrypted under a key that only this process has ever held: each byte of a file
is written at most once, so the counter of AES-CTR never meets two texts. Wiping forgets the key and
gives the blocks back. The mode hides what is kept and does not prove it unchanged: whoever can
write into an open file of this process can also write into its memory.

Source: NIST SP 800-38A, section 6.5 and appendix B.1; the key is 256 bits, the counter block the
position in the file in units of 16 bytes.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES: Final = 16
KEY_BYTES: Final = 32


class _Vault:
    """One encrypted file without a name, that only grows."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open while it is kept
        self._key = bytearray(os.urandom(KEY_BYTES))
        self._end = 0
        self._lock = threading.Lock()
        self.wipe = weakref.finalize(self, _wipe, self._file, self._key)

    def reserve(self, size_bytes: int) -> int:
        """Where ``size_bytes`` may be written; never given out again, even if nothing is."""
        with self._lock:
            start = self._end
            self._end += -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        return start

    def write(self, position: int, plain: NDArray[Any]) -> None:
        """Encrypt ``plain`` to ``position``, a whole number of blocks into the file."""
        sealed = np.empty(plain.nbytes, np.uint8)
        self._crypt(position, plain.view(np.uint8), sealed)
        done = 0
        while done < sealed.size:
            done += os.pwrite(self._file.fileno(), sealed[done:].data, position + done)

    def read_into(self, position: int, plain: NDArray[np.uint8]) -> None:
        """Fill ``plain`` with what was written at ``position``."""
        done = 0
        while done < plain.size:
            got = os.preadv(self._file.fileno(), [plain[done:].data], position + done)
            if not got:
                raise OSError(f"the spill ends at {position + done}, before what was kept in it")
            done += got
        self._crypt(position, plain, plain)

    def _crypt(self, position: int, given: NDArray[np.uint8], turned: NDArray[np.uint8]) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        counter = (position // BLOCK_BYTES).to_bytes(BLOCK_BYTES, "big")
        if given.size:
            stream = Cipher(algorithms.AES256(self._key), modes.CTR(counter)).encryptor()
            stream.update_into(given.data, turned.data)


def _wipe(file: Any, key: bytearray) -> None:  # noqa: ANN401 - of tempfile, has no public name
    key[:] = bytes(len(key))
    os.ftruncate(file.fileno(), 0)
    file.close()


@dataclass(frozen=True, slots=True, eq=False)
class KeptUpdate:
    """One site's update in a spill, as integers of the ring.

    Attributes:
        vault: File that holds it.
        dtype: Of its entries: int32 where all of the ring fits, else int64.
        places: Position in the file and number of entries, by layer.
    """

    vault: _Vault
    dtype: np.dtype[np.signedinteger[Any]]
    places: Mapping[str, tuple[int, int]]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Entries of each layer, as the shape of the flat layer."""
        return {layer: (size,) for layer, (_, size) in self.places.items()}

    def write(self, layer: str, start: int, entries: NDArray[np.signedinteger[Any]]) -> None:
        """Keep ``entries`` of a flat layer from ``start``, a multiple of 16."""
        position = self.places[layer][0] + start * self.dtype.itemsize
        self.vault.write(position, np.ascontiguousarray(entries, self.dtype))

    def read(self, layer: str, start: int, stop: int) -> NDArray[np.signedinteger[Any]]:
        """Entries of a flat layer; ``start`` is a multiple of 16."""
        stop = min(stop, self.places[layer][1])
        entries = np.empty(max(0, stop - start), self.dtype)
        self.read_into(layer, start, entries)
        return entries

    def read_into(self, layer: str, start: int, out: NDArray[np.signedinteger[Any]]) -> None:
        """Fill ``out``, of this dtype, with entries from ``start`` on, a multiple of 16."""
        position = self.places[layer][0] + start * self.dtype.itemsize
        self.vault.read_into(position, out.view(np.uint8))


class Spill(Mapping[str, KeptUpdate]):
    """Kept updates by site. No file exists before the first is kept."""

    def __init__(self) -> None:
        self._vault: _Vault | None = None
        self._kept: dict[str, KeptUpdate] = {}

    def __getitem__(self, site: str) -> KeptUpdate:
        return self._kept[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def open(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[np.signedinteger[Any]]
    ) -> KeptUpdate:
        """Room for one update, which is not of the spill before ``keep``."""
        vault = self._vault = self._vault or _Vault()
        places = {}
        for name in sorted(shapes):
            size = prod(shapes[name])
            places[name] = (vault.reserve(size * dtype.itemsize), size)
        return KeptUpdate(vault, dtype, places)

    def keep(self, site: str, update: KeptUpdate) -> None:
        """Take ``update``, now written whole, as that of ``site``."""
        self._kept[site] = update

    def take(self, other: Spill) -> None:
        """Keep all that ``other`` keeps too; nothing is copied, for nothing is ever overwritten."""
        self._kept.update(other._kept)

    def wipe(self) -> None:
        """Forget every key; what was kept cannot be read any more, by anyone who shares it."""
        for kept in self._kept.values():
            kept.vault.wipe()
        if self._vault:
            self._vault.wipe()
        self._vault = None
        self._kept.clear()
