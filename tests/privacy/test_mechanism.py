"""Privacy as a job declares it: the wire format, which must not change its meaning."""

from __future__ import annotations

import msgspec
import pytest

from privacy import AnyMechanism, DpSgd, Mechanism, Protection, SecureAggregation


@pytest.mark.parametrize(
    ("text", "mechanism"),
    [
        (
            b'{"kind":"dp-sgd","epsilon":8,"delta":1e-6}',
            DpSgd(epsilon=8.0, delta=1e-6, clip_norm=1.0),
        ),
        (
            b'{"kind":"dp-sgd","epsilon":8,"delta":1e-6,"clip_norm":0.5}',
            DpSgd(epsilon=8.0, delta=1e-6, clip_norm=0.5),
        ),
        (b'{"kind":"secure-aggregation"}', SecureAggregation(threshold=0.7)),
        (b'{"kind":"secure-aggregation","threshold":1}', SecureAggregation(threshold=1.0)),
    ],
)
def test_a_document_becomes_a_mechanism(text: bytes, mechanism: Mechanism) -> None:
    assert msgspec.json.decode(text, type=AnyMechanism) == mechanism
    assert msgspec.json.decode(msgspec.json.encode(mechanism), type=AnyMechanism) == mechanism


@pytest.mark.parametrize(
    "text",
    [
        b'{"kind":"magic"}',
        b'{"kind":"dp-sgd"}',
        b'{"kind":"dp-sgd","epsilon":0,"delta":1e-6}',
        b'{"kind":"dp-sgd","epsilon":8,"delta":1}',
        b'{"kind":"dp-sgd","epsilon":8,"delta":1e-6,"clip":1}',
        b'{"kind":"secure-aggregation","threshold":0.5}',
    ],
)
def test_a_promise_that_cannot_be_meant_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=AnyMechanism)


def test_protection_names_a_unit_and_adversaries_of_a_closed_set() -> None:
    text = b'{"unit":"patient","against":["honest-but-curious-server","other-sites"]}'
    protection = msgspec.json.decode(text, type=Protection)

    assert protection.against == ("honest-but-curious-server", "other-sites")
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"against":["everyone"]}', type=Protection)
