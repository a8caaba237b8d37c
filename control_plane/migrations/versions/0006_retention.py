"""Holds, when a closed job's checkpoints were wiped, and when keys end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "hold",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    for name in ("created_at", "ends_at"):
        op.add_column("secret", sa.Column(name, sa.DateTime(timezone=True)))
    op.add_column("job", sa.Column("wiped_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Take back."""
    op.drop_column("job", "wiped_at")
    for name in ("created_at", "ends_at"):
        op.drop_column("secret", name)
    op.drop_table("hold")
