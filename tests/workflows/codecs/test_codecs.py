"""What each codec does to an update: exact bytes, error bounds, no bias, no trust."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from strategies.update import Array
from workflows.codecs import KINDS, AnyCodec, Codec, NoCodec, Undecodable, Unencodable
from workflows.codecs.fp16 import Fp16
from workflows.codecs.int8 import Int8
from workflows.codecs.random_mask import RandomMask
from workflows.codecs.top_k import TopK

CODECS: dict[str, Codec] = {
    "none": NoCodec(),
    "fp16": Fp16(),
    "int8": Int8(bucket=8),
    "random-mask": RandomMask(fraction=0.3),
    "top-k": TopK(fraction=0.3),
}
UPDATE = {
    "w": np.random.default_rng(1).normal(size=(7, 11)).astype(np.float32),
    "b": np.random.default_rng(2).normal(size=5),
    "scalar": np.array(0.25, np.float32),
    "half": np.linspace(-1, 1, 9).astype(np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "zero": np.zeros(20, np.float32),
}


def through(codec: Codec, update: dict[str, Any], seed: int = 3) -> dict[str, Array]:
    return dict(codec.decode(codec.encode(update, seed), update, seed))


@st.composite
def layers(draw: st.DrawFn, largest: float = 1e4) -> Array:
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    width = np.finfo(dtype).bits
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    bound = float(dtype(largest))
    values = st.floats(-bound, bound, width=width)  # type: ignore[arg-type]
    return draw(arrays.arrays(dtype, shape, elements=values))


def test_every_kind_is_known() -> None:
    assert set(KINDS) == set(CODECS)
    assert {kind for kind, cls in KINDS.items() if cls.unbiased} == {"none", "int8", "random-mask"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_survives_the_wire(kind: str) -> None:
    wire = msgspec.json.encode(CODECS[kind])

    assert msgspec.json.decode(wire, type=AnyCodec) == CODECS[kind]
    assert msgspec.json.decode(wire)["kind"] == kind


@pytest.mark.parametrize("kind", KINDS)
@given(x=layers(), seed=st.integers(0, 2**63 - 1))
def test_names_shapes_dtypes_and_bytes_are_as_foretold(kind: str, x: Array, seed: int) -> None:
    codec, before = CODECS[kind], x.copy()

    encoded = codec.encode({"w": x}, seed)
    decoded = codec.decode(encoded, {"w": x}, seed)

    form = codec.form(x.shape, x.dtype)
    assert (encoded["w"].dtype, encoded["w"].shape) == form
    assert encoded["w"].nbytes == form.size_bytes
    assert (decoded["w"].dtype, decoded["w"].shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(x, before)


def test_exact_bytes_of_a_model() -> None:
    """A layer of 2,000 entries and one of 10, in float32."""
    shapes = [(200, 10), (10,)]
    bytes_up = {
        kind: sum(KINDS[kind]().form(shape, np.dtype(np.float32)).size_bytes for shape in shapes)
        for kind in KINDS
    }

    assert bytes_up == {
        "none": 8040,
        "fp16": 4020,
        "int8": (2 * 4 + 2000) + (4 + 10),
        "random-mask": 4 * (500 + 2),
        "top-k": (250 + 4 * 200) + (2 + 4),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_layers_does_not_show(kind: str) -> None:
    codec = CODECS[kind]
    turned = dict(reversed(UPDATE.items()))

    one, other = codec.encode(UPDATE, 5), codec.encode(turned, 5)

    for name in UPDATE:
        assert (
            one[name].tobytes() == other[name].tobytes() == codec.encode(UPDATE, 5)[name].tobytes()
        )


@pytest.mark.parametrize("kind", ["int8", "random-mask"])
def test_another_seed_or_layer_is_another_draw(kind: str) -> None:
    x = np.random.default_rng(4).normal(size=400)
    codec = CODECS[kind]

    encoded = codec.encode({"one": x, "two": x}, 1)

    assert encoded["one"].tobytes() != encoded["two"].tobytes()
    assert encoded["one"].tobytes() != codec.encode({"one": x}, 2)["one"].tobytes()


@given(x=layers())
def test_without_a_codec_an_update_stays_what_it_is(x: Array) -> None:
    assert through(NoCodec(), {"w": x})["w"] is x


@given(x=layers())
def test_half_precision_is_off_by_its_half_unit(x: Array) -> None:
    error = np.abs(through(Fp16(), {"w": x})["w"].astype(np.float64) - x)

    assert (error <= np.maximum(np.abs(x.astype(np.float64)) * 2.0**-11, 2.0**-25)).all()


@given(x=layers(largest=6e4), bucket=st.sampled_from([8, 16, 1024]), seed=st.integers(0, 99))
def test_a_byte_is_off_by_less_than_its_buckets_scale(x: Array, bucket: int, seed: int) -> None:
    decoded = through(Int8(bucket=bucket), {"w": x}, seed)["w"]

    exact, found = x.reshape(-1).astype(np.float64), decoded.reshape(-1).astype(np.float64)
    for start in range(0, exact.size, bucket):
        peak = np.abs(exact[start : start + bucket]).max()
        error = np.abs(found[start : start + bucket] - exact[start : start + bucket])
        rounding = float(np.spacing(x.dtype.type(peak)))  # of the result, in the layer's dtype
        smallest = float(np.finfo(np.float32).smallest_subnormal)
        assert error.max() <= peak / 127 * (1 + 1e-6) + rounding + smallest


def test_a_byte_against_plain_numbers() -> None:
    """QSGD's rounding of three entries, from the same uniforms."""
    x = np.array([1.0, -0.3, 0.004, 0.0, 0.5, -1.0, 0.25, 0.1])
    uniforms = np.random.default_rng(9).random(8)
    scale = float(np.nextafter(np.float32(1 / 127), np.float32(1)))
    scale = float(np.float32(1 / 127)) if float(np.float32(1 / 127)) >= 1 / 127 else scale
    expected = []
    for value, uniform in zip(x.tolist(), uniforms.tolist(), strict=True):
        level = value / scale
        below = level // 1
        up = uniform >= 1 - (level - below)
        expected.append((below + up) * scale)

    codec = Int8(bucket=8)
    encoded = codec.encode_layer(x, np.random.default_rng(9))
    decoded = codec.decode_layer(encoded, x.shape, x.dtype, np.random.default_rng(9))

    assert encoded[:4].tobytes() == np.float32(scale).tobytes()
    np.testing.assert_allclose(decoded, expected, rtol=1e-12)


@pytest.mark.parametrize("bucket", [8, 1024, 1 << 17])
def test_tiles_do_not_show_in_bytes(bucket: int) -> None:
    """More entries than one tile holds: every bucket is that of the layer cut there."""
    x = np.random.default_rng(6).normal(size=(1 << 16) * 2 + 77)

    found = through(Int8(bucket=bucket), {"w": x})["w"]

    ends = [*range(bucket, x.size, bucket)]
    for part, exact in zip(np.split(found, ends), np.split(x, ends), strict=True):
        assert np.abs(part - exact).max() <= np.abs(exact).max() / 127 * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["int8", "random-mask"])
def test_over_seeds_the_mean_is_exact_and_the_variance_as_stated(kind: str) -> None:
    codec, trials = CODECS[kind], 2000
    x = np.array([0.9, -0.5, 0.001, 0.0, 1.0, -1.0, 0.33, 0.77, 0.05, -0.2])

    found = np.array([through(codec, {"w": x}, seed)["w"] for seed in range(trials)])

    if kind == "int8":
        peaks = np.array([1.0] * 8 + [0.2] * 2)
        level = x * 127 / peaks
        share = level - np.floor(level)
        variance = (peaks / 127) ** 2 * share * (1 - share)
        assert (variance <= (peaks / 127) ** 2 / 4).all()
    else:
        variance = x**2 * (10 / 3 - 1)
    deviation = np.sqrt(variance / trials)
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - x), 5 * deviation + 1e-6)
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.2, atol=1e-9)


@given(x=layers(largest=50), fraction=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_a_mask_keeps_so_many_entries_and_scales_them(x: Array, fraction: float, seed: int) -> None:
    codec = RandomMask(fraction=fraction)
    update = {"w": np.where(x == 0, x.dtype.type(1), x)}

    encoded = codec.encode(update, seed)["w"]
    found = through(codec, update, seed)["w"]

    kept = found != 0
    assert kept.sum() == encoded.size <= ceil(fraction * x.size) + 1
    if x.size:
        share = x.dtype.type(x.size / encoded.size)
        np.testing.assert_allclose(found[kept], update["w"][kept] * share, rtol=2e-3)


def test_every_entry_is_kept_as_often() -> None:
    codec, trials = RandomMask(fraction=0.3), 1000
    x = {"w": np.ones(10)}

    kept = sum((through(codec, x, seed)["w"] != 0).astype(int) for seed in range(trials))

    assert (np.abs(np.asarray(kept) - 300) < 5 * sqrt(trials * 0.3 * 0.7)).all()


def test_a_whole_mask_is_no_codec() -> None:
    found = through(RandomMask(fraction=1), UPDATE)

    for name, x in UPDATE.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (Fp16(), 70_000.0),
        (Int8(), 1e300),
        (Int8(), np.nan),
        (Int8(), np.inf),
        (Fp16(), np.nan),
        (TopK(), np.nan),
        (TopK(), -np.inf),
    ],
    ids=str,
)
def test_a_value_without_a_form_is_refused_with_its_layer(codec: Codec, value: float) -> None:
    with pytest.raises(Unencodable, match="layer w holds"):
        codec.encode({"b": np.ones(3), "w": np.array([0.5, value])}, 1)


def spoilt(kind: str, how: str) -> dict[str, Any]:
    encoded = dict(CODECS[kind].encode(UPDATE, 3))
    w = encoded["w"].copy()
    match how:
        case "another layer":
            encoded["v"] = encoded.pop("w")
        case "another dtype":
            encoded["w"] = w.astype(np.int64)
        case "another shape":
            encoded["w"] = w[:-1]
        case "a scale of NaN":
            w[:4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)
            encoded["w"] = w
        case "a negative scale":
            w[:4] = np.frombuffer(np.float32(-1).tobytes(), np.uint8)
            encoded["w"] = w
        case "an entry of -128":
            w[-1] = 128
            encoded["w"] = w
    return encoded


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(
            (kind, how)
            for kind in ("fp16", "int8", "random-mask", "top-k")
            for how in ("another layer", "another dtype", "another shape")
        ),
        ("int8", "a scale of NaN"),
        ("int8", "a negative scale"),
        ("int8", "an entry of -128"),
    ],
)
def test_what_no_codec_made_is_refused(kind: str, how: str) -> None:
    with pytest.raises(Undecodable, match=r"layers? (w|missing or unknown: v, w)"):
        CODECS[kind].decode(spoilt(kind, how), UPDATE, 3)


def test_a_codec_without_sense_does_not_decode() -> None:
    for wire in (
        b'{"kind": "zip"}',
        b'{"kind": "int8", "bucket": 0}',
        b'{"kind": "random-mask", "fraction": 0}',
        b'{"kind": "random-mask", "fraction": 1.5}',
        b'{"kind": "top-k", "fraction": 0}',
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wire, type=AnyCodec)
