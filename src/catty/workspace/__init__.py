"""Trees of files: ignore rules, walk, snapshot format, object store, diff, safe apply."""
