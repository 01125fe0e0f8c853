"""Dialling an endpoint whose directory is hostile."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from catty.engines.base import TcpEndpoint, UnixEndpoint
from catty.engines.endpoint import connect, dial
from catty.errors import EndpointRefused, MachineUnreachable


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="catty-endpoint-"))  # pytest's own are too long for a socket's path
    yield path
    shutil.rmtree(path)


@pytest.fixture
def endpoint(directory: Path) -> UnixEndpoint:
    return UnixEndpoint(directory, os.getuid())


def listen(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def test_connects_without_blocking(endpoint: UnixEndpoint) -> None:
    with listen(endpoint.directory / "terminal") as server, connect(endpoint, "terminal") as client:
        accepted, _ = server.accept()
        assert client.getblocking() is False
        with accepted:
            accepted.sendall(b"hello")
            client.setblocking(True)
            assert client.recv(5) == b"hello"


def test_leaves_no_descriptor_open(endpoint: UnixEndpoint) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with listen(endpoint.directory / "terminal"):
        connect(endpoint, "terminal").close()
    with pytest.raises(MachineUnreachable):
        connect(endpoint, "terminal")
    (endpoint.directory / "workspace").touch()
    with pytest.raises(EndpointRefused):
        connect(endpoint, "workspace")
    assert len(os.listdir("/proc/self/fd")) == before


def test_symlink_is_refused_even_to_a_good_socket(endpoint: UnixEndpoint) -> None:
    with listen(endpoint.directory / "elsewhere"):
        (endpoint.directory / "terminal").symlink_to(endpoint.directory / "elsewhere")
        with pytest.raises(EndpointRefused, match="another kind"):
            connect(endpoint, "terminal")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.touch(), lambda path: path.mkdir()])
def test_other_kinds_of_files_are_refused(endpoint: UnixEndpoint, make) -> None:
    make(endpoint.directory / "terminal")
    with pytest.raises(EndpointRefused, match="another kind"):
        connect(endpoint, "terminal")


def test_other_owner_is_refused(endpoint: UnixEndpoint) -> None:
    with listen(endpoint.directory / "terminal"), pytest.raises(EndpointRefused, match="belongs to user"):
        connect(UnixEndpoint(endpoint.directory, os.getuid() + 1), "terminal")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_socket_of_another_user_is_refused(endpoint: UnixEndpoint) -> None:
    with listen(endpoint.directory / "terminal"):
        os.chown(endpoint.directory / "terminal", 12345, 12345)
        with pytest.raises(EndpointRefused, match="belongs to user 12345"):
            connect(endpoint, "terminal")


def test_directory_swapped_for_a_symlink_is_refused(endpoint: UnixEndpoint, tmp_path: Path) -> None:
    with listen(endpoint.directory / "terminal"):
        link = tmp_path / "link"
        link.symlink_to(endpoint.directory)
        with pytest.raises(EndpointRefused, match="another kind"):
            connect(UnixEndpoint(link, os.getuid()), "terminal")


def test_datagram_socket_is_refused(endpoint: UnixEndpoint) -> None:
    with listen(endpoint.directory / "terminal", socket.SOCK_DGRAM), pytest.raises(EndpointRefused):
        connect(endpoint, "terminal")


def test_nobody_there_is_unreachable(endpoint: UnixEndpoint) -> None:
    with pytest.raises(MachineUnreachable):
        connect(endpoint, "terminal")
    listen(endpoint.directory / "terminal").close()
    with pytest.raises(MachineUnreachable):
        connect(endpoint, "terminal")
    with pytest.raises(MachineUnreachable):
        connect(UnixEndpoint(endpoint.directory / "gone", os.getuid()), "terminal")


def test_full_backlog_is_unreachable_not_a_hang(endpoint: UnixEndpoint) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(endpoint.directory / "terminal"))
        server.listen(0)
        with connect(endpoint, "terminal"), pytest.raises(MachineUnreachable):
            connect(endpoint, "terminal")


def test_only_known_listeners_and_sockets(endpoint: UnixEndpoint) -> None:
    with pytest.raises(ValueError, match="listener"):
        connect(endpoint, "../terminal")
    with pytest.raises(EndpointRefused):
        connect(TcpEndpoint("localhost", 1, 2), "terminal")


async def test_dial_waits_for_the_listener(endpoint: UnixEndpoint) -> None:
    dialling = asyncio.ensure_future(dial(endpoint, "workspace", seconds=10))
    await asyncio.sleep(0)
    assert not dialling.done()
    with listen(endpoint.directory / "workspace"):
        (await dialling).close()


async def test_dial_gives_up_at_its_deadline(endpoint: UnixEndpoint) -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    with pytest.raises(MachineUnreachable):
        await dial(endpoint, "terminal", seconds=0.1)
    assert loop.time() - before < 2


async def test_dial_does_not_retry_what_is_refused(endpoint: UnixEndpoint) -> None:
    (endpoint.directory / "terminal").touch()
    with pytest.raises(EndpointRefused):
        await dial(endpoint, "terminal", seconds=60)
