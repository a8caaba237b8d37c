"""The trace that a job was submitted in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column(
        "job", sa.Column("traceparent", sa.String(), nullable=False, server_default=sa.text("''"))
    )


def downgrade() -> None:
    """Take back."""
    op.drop_column("job", "traceparent")
