"""A user's .npz, .csv or .parquet file as a table of numbers, read in bounded memory.

All columns but the label are features. Cells are checked as they come, so that an error names the
row (from 1, without the header) and the column. Nothing is unpickled.
"""

from __future__ import annotations

import csv
import errno
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from workflows.capabilities import DatasetFacts
from workflows.data.examples import DataError, LabelMissing, Unreadable
from workflows.data.labels import LabelColumn, Labels

MAX_TABLE_BYTES: Final = 16 << 30
BLOCK_BYTES: Final = 4 << 20
NAMES_SHOWN: Final = 12
MAX_NAMES_CHARS: Final = 1 << 16
DAMAGED: Final = (  # what zipfile and numpy raise on bytes that are no archive of arrays
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    ValueError,
)
Piece: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Some rows: features as float32, labels as they are in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A data set as read from a file.

    Attributes:
        x: Features, memory-mapped.
        labels: In the same order.
        columns: Names of the features; empty where they have none.
    """

    x: np.ndarray
    labels: Labels
    columns: tuple[str, ...] = ()


def format_of(path: Path) -> str:
    """``npz``, ``parquet`` or ``csv``, told by the first bytes."""
    with path.open("rb") as file:
        magic = file.read(4)
    return {b"PK\x03\x04": "npz", b"PAR1": "parquet"}.get(magic, "csv")


def inspect_dataset(path: Path, label: str = "y") -> DatasetFacts:
    """Read the whole file once and say what it holds, without keeping any of it.

    Raises:
        DataError: It cannot be used.
    """
    column = LabelColumn(label)
    features: tuple[int, ...] = ()
    for x, cells in pieces(path, label):
        features = x.shape[1:]
        column.add(cells)
    labels = column.finish()
    kind = f"{len(labels.classes)} classes" if labels.classes else "real-valued targets"
    shape = " x ".join(map(str, features))
    return DatasetFacts(
        num_examples=len(labels.y),
        features=features,
        num_classes=len(labels.classes),
        summary=f"{format_of(path)} file: {len(labels.y):,} rows of {shape} features, {kind}",
        columns=names_of(path, label),
    )


def read_table(path: Path, label: str, scratch: Path) -> Table:
    """Read the file, with its features laid out in the new file ``scratch``.

    Raises:
        DataError: It cannot be used.
    """
    column = LabelColumn(label)
    features: tuple[int, ...] = ()
    with scratch.open("wb") as file:
        for x, cells in pieces(path, label):
            features = x.shape[1:]
            column.add(cells)
            file.write(np.ascontiguousarray(x).data)
    labels = column.finish()
    x = np.memmap(scratch, np.float32, "r", shape=(len(labels.y), *features))
    return Table(x, labels, names_of(path, label))


def names_of(path: Path, label: str) -> tuple[str, ...]:
    """Names of the features in a file that can be read, unless they are too long to be listed.

    The arrays of an .npz file name none.
    """
    match format_of(path):
        case "csv":
            names = _csv_header(path)
        case "parquet":
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
        case _:
            return ()
    features = tuple(name for name in names if name != label)
    return features if sum(map(len, features)) <= MAX_NAMES_CHARS else ()


def pieces(path: Path, label: str) -> Iterator[Piece]:
    """The rows of the file, checked, a few at a time.

    Raises:
        LabelMissing: It has no column or array ``label``.
        Unreadable: It is damaged, or a cell is no finite number.
        DataError: It has no rows, or more than fits.
    """
    read = {"npz": _npz_pieces, "parquet": _parquet_pieces, "csv": _csv_pieces}[format_of(path)]
    num_rows = 0
    size = 0
    for x, cells in read(path, label):
        _require_finite(x, num_rows)
        num_rows += len(x)
        size += x.nbytes
        if size > MAX_TABLE_BYTES:
            raise DataError(f"the file holds over {MAX_TABLE_BYTES >> 30} GiB of numbers; split it")
        yield x, cells
    if not num_rows:
        raise DataError("the file has no rows")


def _require_finite(x: np.ndarray, before: int) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        row, *column = np.argwhere(~finite)[0].tolist()
        where = ", ".join(str(k + 1) for k in column)
        raise Unreadable(
            f"row {before + row + 1}, feature {where}: NaN, infinite or beyond float32; fill the "
            "cell or drop the row"
        )


# --- .npz: arrays `x` and the label


def _npz_pieces(path: Path, label: str) -> Iterator[Piece]:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            if "x" not in arrays:
                raise Unreadable(f"the file has no array `x`; it has {_listed(arrays)}")
            if label not in arrays:
                raise LabelMissing(f"the file has no array `{label}`; it has {_listed(arrays)}")
            with archive.open("x.npy") as x_file, archive.open(f"{label}.npy") as y_file:
                yield from _aligned(x_file, y_file, label)
    except DAMAGED as error:
        raise Unreadable(f"the .npz file is damaged: {error}; save it anew") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # which a seek to a forged offset gives
            raise
        raise Unreadable("the .npz file is damaged: an offset is wrong; save it anew") from error


def _aligned(x_file: IO[bytes], y_file: IO[bytes], label: str) -> Iterator[Piece]:
    x_shape, x_type = _header(x_file, "x")
    y_shape, y_type = _header(y_file, label)
    if len(x_shape) < 2 or not all(x_shape[1:]):
        raise Unreadable(f"array `x` has the shape {x_shape}; it must be (examples, features...)")
    if y_shape != x_shape[:1]:
        raise Unreadable(
            f"array `{label}` has the shape {y_shape}; it must have one label for each of the "
            f"{x_shape[0]} rows of `x`"
        )
    if x_type.kind not in "fiub":
        raise Unreadable(f"array `x` holds {x_type}, not numbers; convert it to float32")
    if y_type.kind not in "fiubU":
        raise Unreadable(f"array `{label}` holds {y_type}; labels must be numbers or text")
    row_items = int(np.prod(x_shape[1:]))
    step = max(1, BLOCK_BYTES // (row_items * max(4, x_type.itemsize)))
    for start in range(0, x_shape[0], step):
        rows = min(step, x_shape[0] - start)
        x = _read(x_file, x_type, rows * row_items).reshape(rows, *x_shape[1:])
        with np.errstate(over="ignore"):
            yield x.astype(np.float32), _read(y_file, y_type, rows)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else (np.lib.format.read_array_header_2_0)
    )
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise Unreadable(f"array `{name}` holds Python objects; save plain numbers or text")
    if is_fortran and len(shape) > 1:
        raise Unreadable(f"array `{name}` is in Fortran order; save np.ascontiguousarray of it")
    return shape, dtype


def _read(file: IO[bytes], dtype: np.dtype[Any], count: int) -> np.ndarray:
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise EOFError("an array is cut off")
    return np.frombuffer(content, dtype)


# --- .csv


def _csv_pieces(path: Path, label: str) -> Iterator[Piece]:
    names = _csv_header(path)
    at = _label_among(names, label)
    columns = [f"c{k}" for k in range(len(names))]
    bad_rows: list[Any] = []

    def note(row: Any) -> str:  # noqa: ANN401 - pyarrow has no types
        bad_rows.append(row)
        return "error"

    num_rows = 0
    try:
        reader = pyarrow.csv.open_csv(
            path,
            pyarrow.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=columns, skip_rows=1
            ),
            pyarrow.csv.ParseOptions(invalid_row_handler=note),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
            ),
        )
        for batch in reader:
            cells = [pc.utf8_trim_whitespace(column) for column in batch.columns]
            labels = np.asarray(cells.pop(at).to_pylist(), np.str_)
            features = [n for k, n in enumerate(names) if k != at]
            x = np.empty((batch.num_rows, len(cells)), np.float32)
            for k, column in enumerate(cells):
                x[:, k] = _numbers(column, features[k], num_rows)
            num_rows += batch.num_rows
            yield x, labels
    except pa.ArrowException as error:
        if bad_rows:
            row = bad_rows[0]
            raise Unreadable(
                f"row {num_rows + 1} or after has {row.actual_columns} cells, but the header has "
                f"{row.expected_columns}: `{row.text[:60]}`"
            ) from error
        if "Empty CSV file" in str(error):
            return
        raise Unreadable(f"the .csv file cannot be read: {error}; save it anew") from error


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [name.strip() for name in next(csv.reader([file.readline(BLOCK_BYTES)]), [])]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(
            f"the file is neither .npz nor .parquet nor .csv in UTF-8: {error}; save it anew"
        ) from error


def _numbers(column: Any, name: str, before: int) -> np.ndarray:  # noqa: ANN401 - pyarrow
    """A column of text as numbers.

    Raises:
        Unreadable: A cell is none.
    """
    try:
        values: np.ndarray = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        for row, cell in enumerate(column):
            try:
                pc.cast(cell, pa.float64())
            except pa.ArrowInvalid:
                text = cell.as_py()
                what = f"`{text[:40]}` is no number" if text else "the cell is empty"
                raise Unreadable(
                    f"row {before + row + 1}, column `{name}`: {what}; features must be numbers "
                    "(encode text as numbers, or leave the column out)"
                ) from None
        raise
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


# --- .parquet


def _parquet_pieces(path: Path, label: str) -> Iterator[Piece]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            at = _label_among(schema.names, label)
            for k, field in enumerate(schema):
                if k != at and not _is_number(field.type):
                    raise Unreadable(
                        f"column `{field.name}` holds {field.type}, not numbers; encode it as "
                        "numbers or leave it out"
                    )
            rows = max(1, BLOCK_BYTES // (8 * len(schema)))
            num_rows = 0
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                columns = list(batch.columns)
                labels = _parquet_labels(columns[at], label, num_rows)
                x = np.empty((batch.num_rows, len(columns) - 1), np.float32)
                for k, column in enumerate(columns[:at] + columns[at + 1 :]):
                    _require_filled(column, schema.names[k + (k >= at)], num_rows)
                    with np.errstate(over="ignore"):
                        x[:, k] = column.to_numpy(zero_copy_only=False)
                num_rows += batch.num_rows
                yield x, labels
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise Unreadable(f"the .parquet file is damaged: {error}; save it anew") from error


def _is_number(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no types
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def _parquet_labels(column: Any, name: str, before: int) -> np.ndarray:  # noqa: ANN401
    _require_filled(column, name, before)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_number(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.asarray(column.to_pylist(), np.str_)
    raise Unreadable(f"column `{name}` holds {column.type}; labels must be numbers or text")


def _require_filled(column: Any, name: str, before: int) -> None:  # noqa: ANN401 - pyarrow
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise Unreadable(
            f"row {before + row + 1}, column `{name}`: the cell is empty; fill it or drop the row"
        )


def _label_among(names: Sequence[str], label: str) -> int:
    """Position of the label among the columns.

    Raises:
        LabelMissing: It is not there.
        Unreadable: There is nothing else, or a name is there twice.
    """
    if label not in names:
        hint = "; separate columns by commas" if len(names) == 1 else ""
        raise LabelMissing(f"the file has no column `{label}`; it has {_listed(names)}{hint}")
    if len(names) < 2:
        raise Unreadable(f"the file has no column but `{label}`; features are missing")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise Unreadable(f"two columns are called `{twice}`; rename one (is the header missing?)")
    return list(names).index(label)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name[:60]}`" for name in names[:NAMES_SHOWN]) or "none"
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
