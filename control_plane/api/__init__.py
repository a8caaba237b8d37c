"""HTTP: one module per resource, one table of errors, nothing that decides."""
