"""Catty: persistent, isolated remote sessions for coding agents.

The folders are the architecture; imports point downwards only (tests/test_architecture.py holds it to that):

    cli        one file per command; turns errors into exit codes; no logic
    setup      what the first run puts in place: environment, engine, image, embedded server; `doctor`
    client     REST client, attach link, upload, sync-back, local state, secrets
    server     api, gateway, keeper, sessions, database
    engines    contract and the container engine (Podman, Docker)
    image      the session image: Containerfile, base script, what its identity is computed from
    runtime    what runs inside a machine: init, terminal, workspace
    agents     claude, codex, shell: command line, first-run files, how to continue
    workspace  ignore rules, tree walk, snapshot format, object store, diff, safe apply
    wire       frames, claim, control messages (no I/O)
    errors, constants, labels
"""

__version__ = "0.1.0"
