"""What PID 1 does once, as root of a fresh machine: closed addresses, rights, certificates, owners of the volumes.

Nothing here fails the boot: what cannot be done is said on standard error, which is the engine's log of the machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final

__all__ = ["close_network", "drop_network_rights", "own", "trust"]

SYSTEM_BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
LOCAL_BUNDLE: Final = "/usr/local/share/ca-certificates/catty-host.crt"

_CAP_NET_ADMIN: Final = 12
_PR_CAPBSET_DROP: Final = 24
_CAPABILITY_VERSION_3: Final = 0x20080522

_RTM_NEWROUTE: Final = 24
_NLM_FLAGS: Final = 0x1 | 0x4 | 0x100 | 0x400  # request, acknowledge, replace, create
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_BLACKHOLE, _RTA_DST = 254, 4, 6, 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def close_network(closed: Iterable[str]) -> None:
    """Bring the loopback up, and make the addresses in `closed` (CIDRs) unreachable."""
    try:
        _loopback_up()
    except OSError as error:
        _say(f"loopback: {error}")
    for cidr in closed:
        try:
            _blackhole(cidr)
        except (OSError, ValueError) as error:
            _say(f"{cidr} stays reachable: {error}")


def drop_network_rights() -> None:
    """Give up CAP_NET_ADMIN for this process and all that come from it, by sudo too."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_CAPBSET_DROP, _CAP_NET_ADMIN, 0, 0, 0) != 0:
        _say(f"bounding set: {os.strerror(ctypes.get_errno())}")
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; low words, then high words
    if libc.capget(header, sets) != 0:
        _say(f"capabilities: {os.strerror(ctypes.get_errno())}")
        return
    words = list(struct.unpack("=6I", sets.raw))
    words[:3] = [word & ~(1 << _CAP_NET_ADMIN) for word in words[:3]]
    if libc.capset(header, struct.pack("=6I", *words)) != 0:
        _say(f"capabilities: {os.strerror(ctypes.get_errno())}")


def trust(extra: str, system: str = SYSTEM_BUNDLE, local: str = LOCAL_BUNDLE) -> dict[str, str]:
    """Lay the certificates in the file `extra` over the machine's own bundle.

    Those that are new go into `system`, which every tool of Debian reads, and into `local`, where `update-ca-certificates` finds
    them again. Returns the environment for tools that bring a bundle of their own.
    """
    if not extra:
        return {}
    try:
        with open(extra, encoding="utf-8", errors="replace") as file:
            offered = _certificates(file.read())
        with open(system, encoding="utf-8", errors="replace") as file:
            present = file.read()
        known = set(_certificates(present))
        new = [certificate for certificate in offered if certificate not in known]
        if new:
            text = "".join(f"{_BEGIN}\n{body}\n{_END}\n" for body in new)
            os.makedirs(os.path.dirname(local), exist_ok=True)
            _replace(local, text)
            _replace(system, present.rstrip("\n") + "\n" + text)
    except OSError as error:
        _say(f"certificates: {error}")
        return {}
    bundle = (
        "CARGO_HTTP_CAINFO",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
    )
    return dict.fromkeys(bundle, system) | ({"NODE_EXTRA_CA_CERTS": local} if new else {})


def own(workspace: str, home: str, uid: int) -> None:
    """Give the agent its two directories where a fresh volume belongs to root, and a home its first files."""
    try:
        import pwd

        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = uid
    for directory, mode in ((workspace, 0o755), (home, 0o750)):
        try:
            os.makedirs(directory, exist_ok=True)
            if os.stat(directory).st_uid != uid:
                os.chown(directory, uid, gid)
                os.chmod(directory, mode)
        except OSError as error:
            _say(f"{directory}: {error}")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
        if not flags & _IFF_UP:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _blackhole(cidr: str) -> None:
    """`ip route replace blackhole CIDR`."""
    address, _, prefix = cidr.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    bits = int(prefix) if prefix else len(packed) * 8
    number = int.from_bytes(packed, "big") >> (len(packed) * 8 - bits) << (len(packed) * 8 - bits)
    destination = number.to_bytes(len(packed), "big")
    route = struct.pack("=8BI", family, bits, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_BLACKHOLE, 0)
    body = route + struct.pack("=HH", 4 + len(destination), _RTA_DST) + destination
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), _RTM_NEWROUTE, _NLM_FLAGS, 1, 0) + body)
        answer = netlink.recv(4096)
    (error,) = struct.unpack_from("=i", answer, 16)
    if error:
        raise OSError(-error, os.strerror(-error))


def _certificates(text: str) -> list[str]:
    """The bodies of the PEM certificates in `text`, in one spelling, without repetitions."""
    bodies = []
    for part in text.split(_BEGIN)[1:]:
        body, end, _ = part.partition(_END)
        if end:
            bodies.append("\n".join(body.split()))
    return list(dict.fromkeys(bodies))


def _replace(path: str, text: str) -> None:
    with open(f"{path}.catty-new", "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    os.rename(f"{path}.catty-new", path)


def _say(text: str) -> None:
    print(f"catty-init: {text}", file=sys.stderr, flush=True)
