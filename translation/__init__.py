"""From a framework's model to ONNX, and the proof that both answer the same.

Exporters (``from_torch``, ``from_sklearn``) run where the framework and the developer's code are;
``parity`` runs elsewhere, with the file and some recorded answers alone. Importing the package
imports no framework.
"""

from __future__ import annotations

__all__ = ["OnnxInvalid", "ParityFailed", "TranslationError", "Untranslatable"]


class TranslationError(Exception):
    """There is no ONNX form of the model that can be handed out."""


class Untranslatable(TranslationError):
    """The model has no ONNX form that the exporter can find."""


class OnnxInvalid(TranslationError):
    """The file is not one whole, well-formed ONNX model."""


class ParityFailed(TranslationError):
    """The ONNX model answers differently from the original."""
