"""The real data sets that ship with scikit-learn, and how they are read.

The facts are written out so that admission needs no scikit-learn; a test holds them against it.
Features are handed over raw, because scaling by statistics over all sites would leak between them;
only the pixels of ``digits`` are divided by their known maximum.

Source: ``sklearn.datasets``, which takes them from the UCI machine learning repository and, for
``diabetes``, from Efron et al., "Least Angle Regression", 2004.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from workflows.capabilities import DatasetFacts

_NUCLEI: Final = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
)
BUNDLED: Final[Mapping[str, DatasetFacts]] = MappingProxyType(
    {
        "breast-cancer": DatasetFacts(
            num_examples=569,
            features=(30,),
            num_classes=2,
            summary="Wisconsin breast cancer: 30 measures of cell nuclei, malignant or benign",
            columns=(
                *(f"mean {name}" for name in _NUCLEI),
                *(f"{name} error" for name in _NUCLEI),
                *(f"worst {name}" for name in _NUCLEI),
            ),
        ),
        "diabetes": DatasetFacts(
            num_examples=442,
            features=(10,),
            num_classes=0,
            summary="Diabetes: 10 measures of patients, progression after a year (real-valued)",
            columns=("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
        ),
        "digits": DatasetFacts(
            num_examples=1797,
            features=(64,),
            num_classes=10,
            summary="Handwritten digits: 8 x 8 pixels from 0 to 1, ten digits",
        ),
        "iris": DatasetFacts(
            num_examples=150,
            features=(4,),
            num_classes=3,
            summary="Iris: 4 measures of flowers, three species",
            columns=(
                "sepal length (cm)",
                "sepal width (cm)",
                "petal length (cm)",
                "petal width (cm)",
            ),
        ),
        "wine": DatasetFacts(
            num_examples=178,
            features=(13,),
            num_classes=3,
            summary="Wine: 13 chemical measures, three growers",
            columns=(
                "alcohol",
                "malic_acid",
                "ash",
                "alcalinity_of_ash",
                "magnesium",
                "total_phenols",
                "flavanoids",
                "nonflavanoid_phenols",
                "proanthocyanins",
                "color_intensity",
                "hue",
                "od280/od315_of_diluted_wines",
                "proline",
            ),
        ),
    }
)
