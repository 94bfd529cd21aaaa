"""Alembic's folder: one file a change of the tables, applied by `database.open_database`."""
