"""The life of a session: states, provisioning, supervision, the one way to stop, and what keeps them going over crashes."""
