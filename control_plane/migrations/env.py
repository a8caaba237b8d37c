"""Alembic's entry: runs the revisions on the connection that it is handed."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

import control_plane.records.tables  # noqa: F401 - it fills the metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
