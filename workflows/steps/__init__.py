"""Steps after the rounds, each a process of its own: translation to ONNX, and publication."""
