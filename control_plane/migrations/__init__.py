"""How the tables came to be, one revision per change."""

from __future__ import annotations

from typing import Final

HEAD: Final = "0007"
"""Newest revision, known without alembic so that a start with tables in place stays quick."""
