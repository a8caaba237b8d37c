"""FedProx: federated averaging of clients that are held near the global model.

Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Algorithm 2 and
equation 2, arXiv:1812.06127. The paper draws clients in proportion to their examples and averages
them plainly; here they are drawn uniformly and the mean is weighted by examples, as in FedAvg.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from strategies.fedavg import FedAvg
from strategies.strategy import ClientHalf


class FedProx(FedAvg, frozen=True):
    """FedAvg whose clients also minimise mu/2 * ||w - w_global||**2.

    Attributes:
        mu: Weight of the proximal term.
    """

    mu: Annotated[float, Meta(gt=0)] = 0.01

    def client_half(self) -> ClientHalf:
        return ClientHalf(proximal_mu=self.mu)
