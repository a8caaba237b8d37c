from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from strategies import KINDS
from strategies.kinds import kinds_of

SHAPES = {
    "shape": "class Shape(msgspec.Struct, tag_field='kind'): pass",
    "square": "class Square(Shape, tag='square'): pass",
    "round": "class Round(Shape, tag='any-round'): is_abstract: ClassVar[bool] = True",
    "circle": "from shapes.round import Round\nclass Circle(Round, tag='circle'): pass",
}


def test_a_module_is_all_it_takes_to_add_a_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shapes").mkdir()
    for name, text in SHAPES.items():
        head = "import msgspec\nfrom typing import ClassVar\n"
        head += "" if name == "shape" else "from shapes.shape import Shape\n"
        (tmp_path / "shapes" / f"{name}.py").write_text(head + text)
    monkeypatch.syspath_prepend(tmp_path)

    import shapes.shape  # type: ignore[import-not-found]

    found = kinds_of(shapes.shape.Shape, "shapes", [str(tmp_path / "shapes")])

    assert [(tag, kind.__name__) for tag, kind in found.items()] == [
        ("circle", "Circle"),
        ("square", "Square"),
    ]


def test_every_strategy_is_found_by_its_tag() -> None:
    assert list(KINDS) == sorted(KINDS)
    assert all(kind.__struct_config__.tag == tag for tag, kind in KINDS.items())
    assert {"fedavg", "fedbuff", "krum", "scaffold"} <= KINDS.keys()
    assert all(issubclass(kind, msgspec.Struct) for kind in KINDS.values())
