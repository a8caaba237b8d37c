"""Running the revisions; the only module that imports alembic's machinery."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine


def configuration() -> Config:
    """Where alembic finds the revisions; without an ini file and without a URL."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade_to_head(engine: Engine) -> None:
    """Run the revisions that ``engine``'s database lacks, in one transaction."""
    config = configuration()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
