"""How `init` and `terminal` talk: JSON packets with file descriptors beside them. (`workspace` gets its claim as a line of JSON.)

The channel is a SOCK_SEQPACKET pair, so one packet is one message. A message that does not fit a packet travels in a memfd, which is
then the first of its descriptors.

    terminal → init   {"id": 3, "op": "spawn", …}              init → terminal   {"id": 3, "ok": true, …} or {"id": 3, "ok": false, "error", "message"}
    init → terminal   {"event": "boot", …}                 the first message of every life of `terminal`

    op        request                                                  reply
    claim     text                                                     epoch; error "claim-refused" for any but the first
    start     fresh (bool), cols, rows                                 -          the workspace is in place; see `agent.py`
    env       env {}                                                   -
    spawn     argv, user, cwd, env {}, tty (bool); fds 0 1 2           pid
    signal    signal (number), pid (absent: the agent)                 -
    kill      pid                                                      -          HUP, and KILL a moment later, to its group
    usage     -                                                        cpu_seconds, execs
    shutdown  grace (seconds)                                          -          once the agent has ended

    event     fields
    boot      epoch, machine, claim (see `public_claim`) or null, agent {…}; fds: TERMINAL_FILES, then the PTY if there is one
    claimed   claim
    agent     state, wants, code, signal, pid, resumed; fds: the new PTY if it starts
    exit      pid, code, signal         of a spawned program
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any, Final

__all__ = ["TERMINAL_FILES", "Message", "public_claim", "receive", "send"]

Message = dict[str, Any]

_PACKET_MAX: Final = 32 << 10  # well below what a socket buffer holds
_FDS_MAX: Final = 16
TERMINAL_FILES: Final = (  # in this order beside `boot`; docs/design.md, "Exactly once"
    "output",  # memfd; its position is the end of the output stream
    "output_pipe_out",  # the end that is read
    "output_pipe_in",
    "input",  # memfd; its position is the end of the input taken
    "input_reader",  # the same memfd; its position is the end of the input fed
    "input_pipe_out",
    "input_pipe_in",
    "page",  # memfd of `page.SIZE` bytes: what each client has sent, and times
)


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one message whole, or raise BlockingIOError (nothing sent) or another OSError (the other side is gone)."""
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) <= _PACKET_MAX:
        _send(sock, b"J" + text, fds)
        return
    body = os.memfd_create("message")
    try:
        os.write(body, text)
        _send(sock, b"M", (body, *fds))
    finally:
        os.close(body)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and the descriptors that came with it (close-on-exec, the caller's to close).

    None once the other side has gone; raises BlockingIOError when there is none now.
    """
    slots = array.array("i")
    packet, ancillary, _, _ = sock.recvmsg(
        _PACKET_MAX + 1, socket.CMSG_SPACE((_FDS_MAX + 1) * slots.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            slots.frombytes(data[: len(data) - len(data) % slots.itemsize])
    fds = list(slots)
    if not packet:
        return None
    if packet[:1] == b"J":
        return json.loads(packet[1:]), fds
    body = fds.pop(0)
    try:
        return json.loads(os.pread(body, os.fstat(body).st_size, 0)), fds
    finally:
        os.close(body)


def public_claim(claim: Message) -> Message:
    """What of a claim (`wire.claim.Claim`) the supervised processes get: everything but the environment with its secrets."""
    return {
        "machine": claim["machine"],
        "session": claim["session"],
        "label": claim["label"],
        "token": claim["token"],
        "agent": claim["agent"]["name"],
        "conversation": list(claim["agent"].get("conversation", ())),
    }


def _send(sock: socket.socket, packet: bytes, fds: tuple[int, ...]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
