"""Privacy mechanisms as a job declares them.

These are the wire format, which exists from the first version so that a job document means the
same for ever. A runtime enforces those that its header lists (``mechanisms``); admission refuses
the others with that reason.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Mechanism(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A privacy mechanism as its own specification."""


class DpSgd(Mechanism, frozen=True, tag="dp-sgd"):
    """Differentially private local training (Abadi et al., CCS 2016).

    Attributes:
        epsilon: Privacy loss of the whole run, at most.
        delta: Probability that the guarantee fails.
        clip_norm: Largest l2 norm of one example's gradient.
    """

    epsilon: Annotated[float, Meta(gt=0)]
    delta: Annotated[float, Meta(gt=0, lt=1)]
    clip_norm: Annotated[float, Meta(gt=0)] = 1.0


class SecureAggregation(Mechanism, frozen=True, tag="secure-aggregation"):
    """The server learns the sum of the updates only (Bonawitz et al., CCS 2017).

    Attributes:
        threshold: Share of the cohort that must stay for the sum to be opened.
    """

    threshold: Annotated[float, Meta(gt=0.5, le=1)] = 0.7


AnyMechanism = DpSgd | SecureAggregation


class Protection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the developer says must be protected, from whom.

    Attributes:
        unit: Whose presence in the data is hidden.
        against: Adversaries that must not learn it.
    """

    unit: Literal["record", "user", "patient", "device", "site"] = "record"
    against: tuple[
        Literal["honest-but-curious-server", "malicious-server", "other-sites", "model-recipients"],
        ...,
    ] = ()
