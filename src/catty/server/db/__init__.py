"""The database: schema, migrations, queries. Nothing here exists on SQLite or PostgreSQL only, but the pragmas in `engine.py`."""
