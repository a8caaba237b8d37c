from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.data.examples import DataError, LabelMissing, Unreadable
from workflows.data.files import inspect_dataset, read_table

GOOD_CSV = "a,b,y\n1,2.5,cat\n-3, 1e-2 ,dog\n0,4,cat\n"


def csv_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "dataset.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def npz_file(tmp_path: Path, compress: bool = False, **arrays: object) -> Path:
    path = tmp_path / "dataset.npz"
    (np.savez_compressed if compress else np.savez)(path, **arrays)  # type: ignore[operator]
    return path


def parquet_file(tmp_path: Path, **columns: object) -> Path:
    path = tmp_path / "dataset.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def problem(path: Path, label: str = "y") -> str:
    with pytest.raises(DataError) as caught:
        inspect_dataset(path, label)
    return str(caught.value)


def test_a_csv_becomes_numbers_and_classes(tmp_path: Path) -> None:
    table = read_table(csv_file(tmp_path, GOOD_CSV), "y", tmp_path / "rows")

    np.testing.assert_array_equal(table.x, np.float32([[1, 2.5], [-3, 0.01], [0, 4]]))
    assert table.labels.y.tolist() == [0, 1, 0]
    assert table.labels.classes == ("cat", "dog")


def test_the_facts_name_the_features_unless_the_names_are_too_long(tmp_path: Path) -> None:
    long = f"a,{'b' * (1 << 16)},y\n1,2,cat\n3,4,dog\n"

    assert inspect_dataset(csv_file(tmp_path, GOOD_CSV)).columns == ("a", "b")
    assert inspect_dataset(csv_file(tmp_path, long)).columns == ()


def test_the_label_may_be_any_column(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "\ufeffkind,a,b\n7,1,2\n-1,3,4\n7,5,6\n")

    table = read_table(path, "kind", tmp_path / "rows")

    assert table.x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (table.labels.y.tolist(), table.labels.classes) == ([1, 0, 1], (-1, 7))


def test_three_formats_of_one_table_read_alike(tmp_path: Path) -> None:
    a, b, y = [1.0, -3.0, 0.0], [2.5, 0.01, 4.0], ["cat", "dog", "cat"]
    paths = [
        csv_file(tmp_path, GOOD_CSV),
        parquet_file(tmp_path, a=a, b=b, y=y),
        npz_file(tmp_path, x=np.stack([a, b], axis=1), y=np.array(y)),
        npz_file(tmp_path, compress=True, x=np.stack([a, b], axis=1), y=np.array(y)),
    ]

    tables = [read_table(path, "y", tmp_path / f"rows-{k}") for k, path in enumerate(paths)]

    assert [table.columns for table in tables] == [("a", "b"), ("a", "b"), (), ()]
    for table in tables[1:]:
        np.testing.assert_array_equal(table.x, tables[0].x)
        np.testing.assert_array_equal(table.labels.y, tables[0].labels.y)
        assert table.labels.classes == tables[0].labels.classes
    for path in paths:
        facts = inspect_dataset(path)
        assert (facts.num_examples, facts.features, facts.num_classes) == (3, (2,), 2)


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["0", "1", "1"], (0, 1)),
        (["0.0", "1.0", "1.0"], ()),
        (["1", "2.5", "3"], ()),
        (["10", "9", "x"], ("10", "9", "x")),
        (["True", "False", "True"], ("False", "True")),
    ],
    ids=["whole numbers", "decimal points", "one decimal point", "one text", "truth values"],
)
def test_labels_of_a_csv_are_told_by_their_looks(
    tmp_path: Path, cells: list[str], classes: tuple[object, ...]
) -> None:
    text = "a,y\n" + "".join(f"1,{cell}\n" for cell in cells)

    table = read_table(csv_file(tmp_path, text), "y", tmp_path / "rows")

    assert table.labels.classes == classes
    if not classes:
        assert table.labels.y.tolist() == [float(cell) for cell in cells]


def test_images_keep_their_shape(tmp_path: Path) -> None:
    x = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(5, 2, 3, 4)

    table = read_table(npz_file(tmp_path, x=x, y=np.arange(5)), "y", tmp_path / "rows")

    np.testing.assert_array_equal(table.x, x)
    assert table.x.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD_CSV.replace("2.5", "two"), "row 1, column `b`: `two` is no number"),
        (GOOD_CSV.replace(" 1e-2 ", ""), "row 2, column `b`: the cell is empty"),
        (GOOD_CSV.replace("0,4", "nan,4"), "row 3, feature 1: NaN"),
        (GOOD_CSV.replace("0,4", "0,inf"), "row 3, feature 2: NaN, infinite"),
        (GOOD_CSV.replace("0,4", "1e300,4"), "row 3, feature 1: NaN, infinite or beyond float32"),
        (GOOD_CSV.replace("0,4,cat", "0,4,cat,1"), "has 4 cells, but the header has 3"),
        (GOOD_CSV.replace("0,4,cat", "0,4"), "has 2 cells, but the header has 3"),
        (GOOD_CSV.replace("0,4,cat", "0,4,"), "`y` has an empty cell"),
        ("a,y\n1,2\n3,nan\n", "row 2 of `y` is NaN"),
        ("a,a,y\n1,2,0\n", "two columns are called `a`"),
        ("y\n1\n2\n", "no column but `y`"),
        ("a;b;y\n1;2;3\n", "separate columns by commas"),
        ("a,b\n1,2\n", "no column `y`; it has `a`, `b`"),
        ("a,y\n", "no rows"),
        ("", "no column `y`"),
        ("a,y\n1,same\n2,same\n", "nothing to learn"),
        ("a,y\n" + "".join(f"1,{k}\n" for k in range(1001)), "different whole numbers"),
        ("a,y\n" + "".join(f"1,t{k}\n" for k in range(1001)), "different texts"),
        (b"a,y\n" + b"1,x\n" * 9000 + b"1,\xff\n", "cannot be read"),
        (b"\xff\xfe\x00", "neither .npz nor .parquet nor .csv in UTF-8"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "bytes",
)
def test_a_bad_csv_names_the_place(tmp_path: Path, text: str | bytes, words: str) -> None:
    assert words in problem(csv_file(tmp_path, text))


def test_a_bad_cell_deep_in_a_file_is_named_by_its_row(tmp_path: Path) -> None:
    rows = [f"{k}.25,{k % 2}\n" * 1 for k in range(900_000)]
    rows[812_345] = "oops,1\n"

    assert "row 812346, column `a`: `oops`" in problem(csv_file(tmp_path, "a,y\n" + "".join(rows)))


ROWS = np.ones((3, 2))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": ROWS}, "no array `y`; it has `x`"),
        ({"z": ROWS, "y": [0, 1, 0]}, "no array `x`"),
        ({"x": ROWS, "y": [0, 1]}, "one label for each of the 3 rows"),
        ({"x": [1, 2, 3], "y": [0, 1, 0]}, "must be (examples, features...)"),
        ({"x": np.array([["a"], ["b"]]), "y": [0, 1]}, "not numbers"),
        ({"x": np.array([[None], [1]]), "y": [0, 1]}, "Python objects"),
        ({"x": ROWS, "y": np.array([None, 1, 2])}, "Python objects"),
        ({"x": np.asfortranarray(np.ones((3, 2))), "y": [0, 1, 0]}, "Fortran order"),
        ({"x": [[1.0], [np.nan]], "y": [0, 1]}, "row 2, feature 1: NaN"),
        ({"x": np.full((2, 2, 2), np.inf), "y": [0, 1]}, "row 1, feature 1, 1"),
        ({"x": ROWS, "y": [0.5, np.inf, 1]}, "row 2 of `y` is NaN or infinite"),
        ({"x": ROWS, "y": [1j, 2, 3]}, "labels must be numbers or text"),
        ({"x": np.ones((0, 2)), "y": []}, "no rows"),
    ],
)
def test_a_bad_npz_names_the_array(tmp_path: Path, arrays: dict[str, object], words: str) -> None:
    assert words in problem(npz_file(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": ["one", "two"], "y": [0, 1]}, "column `a` holds string, not numbers"),
        ({"a": [1.0, None], "y": [0, 1]}, "row 2, column `a`: the cell is empty"),
        ({"a": [1.0, 2.0, float("nan")], "y": [0, 1, 1]}, "row 3, feature 1: NaN"),
        ({"a": [1, 2, 3], "y": ["u", "v", None]}, "row 3, column `y`: the cell is empty"),
        ({"a": [[1], [2]], "y": [0, 1]}, "not numbers"),
        ({"a": [1, 2], "y": [[0], [1]]}, "labels must be numbers or text"),
        ({"a": [1, 2]}, "no column `y`"),
    ],
)
def test_a_bad_parquet_names_the_column(
    tmp_path: Path, columns: dict[str, object], words: str
) -> None:
    assert words in problem(parquet_file(tmp_path, **columns))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return exec, ("raise SystemExit('unpickled')",)

    path = npz_file(tmp_path, x=np.array([[Bomb()]], dtype=object), y=np.array([1]))

    assert "Python objects" in problem(path)


def test_a_missing_label_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(LabelMissing):
        inspect_dataset(csv_file(tmp_path, GOOD_CSV), "colour")


@settings(max_examples=100)
@given(st.sampled_from(["npz", "npz-packed", "parquet"]), st.data())
def test_damaged_bytes_give_a_data_error_or_a_data_set(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("damaged")
    x, y = np.arange(12.0).reshape(6, 2), np.array(["a", "b"] * 3)
    path = (
        parquet_file(tmp_path, a=x[:, 0], y=y)
        if kind == "parquet"
        else npz_file(tmp_path, kind == "npz-packed", x=x, y=y)
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(4, len(content))) :]
    path.write_bytes(content)

    try:
        facts = inspect_dataset(path)
    except DataError:
        return
    assert facts.num_examples > 0


def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    """200 MB of zeros that are 200 kB on disk; a reader may take 60 MB beyond its imports."""
    path = tmp_path / "dataset.npz"
    rows = 50_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("x.npy", "w") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 1000)}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(200):
                file.write(bytes(rows * 20))
        with archive.open("y.npy", "w") as file:
            np.lib.format.write_array(file, np.arange(rows) % 2)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from workflows.data.files import inspect_dataset\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); facts = inspect_dataset(Path(sys.argv[1]))\n"
        "assert facts.num_examples == 50_000\n"
        "sys.exit(peak() - before > 60 * 1024)"
    )

    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)

    assert done.returncode == 0


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    parquet_file(tmp_path, a=[1.0, 2.0], y=[0, 1]).rename(tmp_path / "dataset.csv")

    assert inspect_dataset(tmp_path / "dataset.csv").num_examples == 2


def test_a_directory_of_text_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        inspect_dataset(csv_file(tmp_path, bytes(range(256))))
