"""Named figures with their units and reasons. A figure that a user can see stands in docs/behaviour.md too (a test compares)."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# --- session
TTL_DEFAULT_S: Final = 7200  # 2 h of inactivity
TTL_MIN_S: Final = 300  # 5 m: shorter would end a session during a cup of tea
TTL_MAX_S: Final = 7 * 86400
TTL_WARNING_S: Final = 300  # the keeper warns in the terminal this long before the end
ACTIVITY_CPU_SHARE: Final = 0.05  # of one core, over ACTIVITY_WINDOW_S: a busy agent may print nothing for an hour
ACTIVITY_WINDOW_S: Final = 60

# --- machine
CPUS_DEFAULT: Final = 2.0
MEMORY_DEFAULT_MB: Final = 4096
PIDS_LIMIT: Final = 4096
NOFILE_LIMIT: Final = 65536  # clamped to what the host allows
AGENT_UID: Final = 1000
AGENT_USER: Final = "agent"
WORKSPACE_DIR: Final = "/workspace"
AGENT_HOME: Final = "/home/agent"
RUNTIME_DIR: Final = "/opt/catty"
ENDPOINT_DIR: Final = "/run/catty/endpoint"  # inside a machine; the sockets `terminal` and `workspace` lie in it
DISK_REFUSE_PERCENT: Final = 90.0  # new sessions are refused when the server's disk is this full

# --- terminal
RING_BYTES: Final = 8 * MIB  # output kept for exact replay, and for `catty logs`
ACK_WINDOW_BYTES: Final = 1 * MIB  # unacknowledged output per client before the writer paces the PTY
ACK_EVERY_BYTES: Final = 128 * KIB  # a client acknowledges at least this often, and when it falls idle
STALL_S: Final = 1.0  # a client that acknowledges nothing for this long skips to a screen
INPUT_LIMIT_BYTES: Final = 1 * MIB  # keystrokes kept by a client while offline
PASTE_UPLOAD_LIMIT_BYTES: Final = 10 * MIB
RECONNECT_FIRST_S: Final = 0.1
RECONNECT_MAX_S: Final = 5.0
OFFLINE_NOTICE_S: Final = 1.0  # no status line for shorter outages
PING_EVERY_S: Final = 25.0  # below every common NAT and proxy timeout; jittered
PING_GIVE_UP_S: Final = 75.0
DOUBLE_CTRL_C_S: Final = 1.0
FRAME_MAX_BYTES: Final = 1 * MIB + 64  # one WebSocket message of the attach dialect

# --- workspace
UPLOAD_LIMIT_BYTES: Final = 1 * GIB
UPLOAD_LARGEST_SHOWN: Final = 5
FIRST_SAVE_S: Final = 10.0
SAVE_EVERY_S: Final = 30.0
BLOB_BYTES: Final = 1 * MIB  # files are cut into blobs of this size
PACK_BYTES: Final = 16 * MIB  # a pack is closed when its raw blobs reach this
PACK_MAX_BYTES: Final = 20 * MIB  # what a server accepts as one pack
TRANSFER_MESSAGE_BYTES: Final = 1 * MIB  # payload of one message of a transfer; with its kind one byte more
TRANSFER_WINDOW_BYTES: Final = 8 * MIB  # sent and not yet taken by the other side
TRANSFER_IDLE_S: Final = 60.0  # a side that says nothing for this long is given up; at work it says so more often
SNAPSHOT_REBASE_SHARE: Final = 0.2  # a delta larger than this share of its base becomes a base of its own
TRASH_KEEP_DAYS: Final = 7
MASS_DELETE_COUNT: Final = 50  # more deletions than this, covering over half of the tree, pause sync-back
MASS_DELETE_SHARE: Final = 0.5
UPLOADS_DIR: Final = ".catty-uploads"

# Never uploaded, unless git tracks them (behaviour.md, "Workspace"); in gitignore syntax.
UPLOAD_EXCLUDES: Final = ("node_modules/", "__pycache__/", "*.pyc", ".venv/", "venv/", ".env", ".DS_Store", "*.log")
# Never saved from a machine; in gitignore syntax.
SAVE_EXCLUDES: Final = ("node_modules/", "__pycache__/", ".venv/", "venv/", ".cache/", ".npm/", ".yarn/")
# Never written on the user's machine without --sync-config: they run code when a tool merely opens the directory.
SYNC_CONFIG_PATTERNS: Final = (".claude/settings*.json", ".mcp.json", ".envrc", ".vscode/", "*.code-workspace")

# --- secrets
RESERVED_NAMES: Final = frozenset({"PATH", "HOME", "USER", "SHELL", "PWD"})
RESERVED_PREFIXES: Final = ("LD_", "CATTY_")

# --- server
SUN_PATH_MAX: Final = 100  # bytes; the kernel's limit for a Unix socket's path is 108 with the final NUL, on macOS 104
TCP_PORT: Final = 4815  # 127.0.0.1, for browsers and other clients
STOP_GRACE_S: Final = 10  # the agent's time to end after SIGTERM
