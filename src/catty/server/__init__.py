"""The server: api, gateway, keeper, sessions, database."""
