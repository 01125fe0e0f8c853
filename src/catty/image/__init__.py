"""The session image: its Containerfile, the script that makes its base, and what its identity is computed from."""
