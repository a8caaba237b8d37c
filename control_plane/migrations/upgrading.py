"""Running the revisions; the only module that imports alembic's machinery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine

from control_plane.refusals import DatabaseUnavailable


def configuration() -> Config:
    """Where alembic finds the revisions; without an ini file and without a URL."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade_to_head(engine: Engine, prepare: Callable[[Connection], None]) -> None:
    """Run the revisions that ``engine``'s database lacks, in one transaction.

    Args:
        engine: Of the database.
        prepare: Called first in that transaction.

    Raises:
        DatabaseUnavailable: The tables are of a revision that this program does not have.
    """
    config = configuration()
    with engine.begin() as connection:
        prepare(connection)
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseUnavailable(f"the tables are of another version: {error}") from error
