from __future__ import annotations

from pathlib import Path

import pytest

from clients.errors import FileRefused
from clients.job_files import UNKNOWN, format_of, read_job_file
from tests.clients.values import DIGEST
from workflows.job import Builtin, Bundle, Partitioned
from workflows.job_document import DocumentInvalid

OTHER = "sha256:" + 64 * "b"


def document(folder: Path, program: str, dataset: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(
        f"name: mine\nprogram: {program}\n"
        f"data: {{kind: partitioned, dataset: {dataset}, label: target}}\n"
    )
    return path


@pytest.mark.parametrize(
    "written",
    ["./own", "{path: ./own}", "{kind: bundle, path: ./own}"],
    ids=["as text", "as a path", "as a bundle with a path"],
)
def test_a_program_on_this_machine_waits_for_its_digest(tmp_path: Path, written: str) -> None:
    (tmp_path / "own").mkdir()

    local = read_job_file(document(tmp_path, written, "digits"))

    assert local.program == tmp_path / "own"
    assert local.dataset is None
    assert local.spec.program == Bundle(digest=UNKNOWN)
    assert local.with_digests(DIGEST, None).program == Bundle(digest=DIGEST)


def test_a_local_program_keeps_its_config(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()

    local = read_job_file(document(tmp_path, "{path: ./own, config: {width: 32}}", "digits"))

    spec = local.with_digests(DIGEST, None)
    assert spec.program == Bundle(digest=DIGEST, config={"width": 32})


@pytest.mark.parametrize("name", ["./mine.csv", "mine.csv"])
def test_a_data_set_on_this_machine_waits_for_its_digest(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.csv").write_text("x,target\n1,0\n")

    local = read_job_file(document(tmp_path, "{kind: builtin, name: digits-mlp}", name))

    assert local.dataset == tmp_path / "mine.csv"
    assert local.label == "target"
    spec = local.with_digests(None, OTHER)
    assert spec.data == Partitioned(dataset=OTHER, label="target")
    assert spec.program == Builtin(name="digits-mlp")


def test_what_the_platform_knows_by_name_is_left_alone(tmp_path: Path) -> None:
    local = read_job_file(document(tmp_path, f"{{kind: bundle, digest: '{DIGEST}'}}", "digits"))

    assert (local.program, local.dataset) == (None, None)
    assert local.with_digests(None, None) == local.spec
    assert local.spec.program == Bundle(digest=DIGEST)


@pytest.mark.parametrize(
    ("program", "dataset", "field"),
    [
        ("./gone", "digits", "program: "),
        ("{path: ./gone}", "digits", "program.path: "),
        ("{kind: builtin, name: digits-mlp}", "./gone.csv", "data.dataset: "),
    ],
)
def test_a_path_to_nothing_is_refused_by_its_field(
    tmp_path: Path, program: str, dataset: str, field: str
) -> None:
    with pytest.raises(FileRefused, match=f"job.yaml: {field}.*gone.* does not exist"):
        read_job_file(document(tmp_path, program, dataset))


def test_a_mistake_in_a_document_with_paths_is_found_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    path = document(tmp_path, "./own", "digits")
    path.write_text(path.read_text() + "strategy: {kind: fedavg}\nround: 3\n")

    with pytest.raises(DocumentInvalid) as caught:
        read_job_file(path)

    assert caught.value.line == 5
    assert caught.value.path == "round"


def test_a_document_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("- a\n- b\n")

    with pytest.raises(DocumentInvalid):
        read_job_file(tmp_path / "job.yaml")


def test_a_document_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(FileRefused, match="No such file"):
        read_job_file(tmp_path / "job.yaml")
    with pytest.raises(FileRefused, match="UTF-8"):
        read_job_file(tmp_path / "binary.yaml")


def test_a_data_sets_format_follows_from_its_name() -> None:
    assert format_of(Path("a.CSV")) == "csv"
    with pytest.raises(FileRefused, match="parquet"):
        format_of(Path("a.xlsx"))
