"""The command line: one file per command. Parses, calls downwards, prints; turns errors into exit codes."""
