"""The control plane: HTTP API, use cases, reconciler, records and the composition root."""
