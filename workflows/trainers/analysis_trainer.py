"""A query in the place of a program: a site's answer travels the way of its training.

There is no code of a developer in it, and no framework. The weight that goes with an answer is one,
as every site counts once in a tally, so not even the number of a site's examples is told beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from strategies import ClientHalf, Parameters
from workflows.analyses import Query
from workflows.analyses.columns import Columns, SiteColumns
from workflows.capabilities import ProgramFacts
from workflows.causes import Cause, CauseCode
from workflows.data.examples import Examples
from workflows.data.labels import Class
from workflows.job import Local
from workflows.trainers.trainer import Measured, ProgramError, Trained


class AnalysisTrainer:
    """Answers a query; there is a ``Trainer`` in it for whoever runs the rounds."""

    def __init__(
        self, query: Query, known: Columns, classes: tuple[Class, ...], minimum_count: int
    ) -> None:
        """Take up a query.

        Args:
            query: What is asked.
            known: Columns of the data.
            classes: What each class of the label is called.
            minimum_count: Examples below which a site does not answer.
        """
        self._query = query
        self._known = known
        self._classes = classes
        self._minimum_count = minimum_count

    @property
    def facts(self) -> ProgramFacts:
        parameters = self._query.parameters()
        return ProgramFacts(framework="analysis", parameters=parameters, own_train=True)

    def initial(self) -> dict[str, np.ndarray]:
        return dict(self._query.blank())

    def train(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> Trained:
        if len(examples) < self._minimum_count:
            detail = f"fewer examples than evaluate.minimum_count = {self._minimum_count}"
            raise ProgramError(Cause(code=CauseCode.TOO_FEW_EXAMPLES, detail=detail))
        site = SiteColumns(examples, self._known, self._classes)
        return Trained(self._query.answered(site, params), num_examples=1, loss=None)

    def evaluate(self, params: Parameters, examples: Examples, metrics: Sequence[str]) -> Measured:
        return Measured({}, 0)

    def export(self, params: Parameters, samples: np.ndarray, folder: Path) -> None:
        detail = "the answer to a query is no model"
        raise ProgramError(Cause(code=CauseCode.TRANSLATION_FAILED, detail=detail))
