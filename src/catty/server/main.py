"""A server: everything opened, listening, and closed again in order. One process is api, gateway and keeper."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from catty import __version__
from catty.constants import NOFILE_LIMIT, SUN_PATH_MAX
from catty.engines.base import Engine
from catty.engines.ca import host_ca_bundle
from catty.errors import CattyError, ServerStartFailed, UsageError
from catty.image.identity import current_image
from catty.server import log
from catty.server.access import Door, host_names
from catty.server.api import Api, make_application
from catty.server.db.access import LOCAL_USER, AccessStore, new_token
from catty.server.db.engine import Database
from catty.server.db.migrate import migrate
from catty.server.db.sessions import SessionStore
from catty.server.files import DataDirectory
from catty.server.front import Front, Guests
from catty.server.gateway import Gateway
from catty.server.keeper import Keeper
from catty.server.sessions.changes import Changes
from catty.server.sessions.context import Context
from catty.server.sessions.machines import Machines
from catty.server.sessions.spares import Spares
from catty.server.sessions.timing import Timing
from catty.server.sessions.workspaces import Workspaces
from catty.server.settings import Settings, from_arguments

__all__ = ["Server", "main", "rotate_token", "run", "serve"]

_LOG: Final = logging.getLogger(__name__)
_KEEPALIVE_S: Final = 60.0  # also what a later request on a connection has for its head
_BACKLOG: Final = 128  # asyncio accepts as many at once, before any can be turned away
_SHUTDOWN_S: Final = 2.0  # for requests under way; a long poll is cut off
_TLS_HANDSHAKE_S: Final = 10.0
_TCP_SHARE: Final = 0.5  # of the descriptors; the rest is for the owner's socket, machines, files

OpenEngine = Callable[[Path, str], Engine]
"""Opens the engine; called with the data directory and the installation's name."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that listens. `tcp`: (host, port), None without TCP. `token`: the local owner's."""

    settings: Settings
    token: str
    tcp: tuple[str, int] | None
    context: Context
    keeper: Keeper
    gateway: Gateway
    access: AccessStore
    database: Database


def main(arguments: Sequence[str]) -> int:
    """`python -m catty.server`; the exit code."""
    try:
        run(from_arguments(arguments))
    except CattyError as error:
        sys.stderr.write(f"error: {error.message} [{error.code}]\n  → {error.hint}\n")
        return error.exit_code
    return 0


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Sessions go on running. Raises ServerStartFailed, UsageError."""
    with _explained():
        DataDirectory(settings.data)
        log.set_up(settings.data / "server.log" if settings.embedded else None)
    _allow_descriptors()
    try:
        asyncio.run(_run(settings))
    except CattyError as error:
        _LOG.error("server did not start", extra={"reason": error.message})
        raise


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(settings) as server:
        _LOG.info("serving", extra={"socket": settings.socket_path, "tcp": server.tcp, "version": __version__})
        await stop.wait()
        _LOG.info("stopping; sessions go on")


@contextlib.asynccontextmanager
async def serve(
    settings: Settings, *, open_engine: OpenEngine | None = None, timing: Timing | None = None
) -> AsyncIterator[Server]:
    """A server for the length of the context. Raises ServerStartFailed, UsageError."""
    async with contextlib.AsyncExitStack() as stack:
        with _explained():
            server = await _open(stack, settings, open_engine or _open_engine, timing or Timing())
        yield server


async def _open(
    stack: contextlib.AsyncExitStack, settings: Settings, open_engine: OpenEngine, timing: Timing
) -> Server:
    directory = DataDirectory(settings.data)
    await asyncio.to_thread(directory.lock)
    stack.callback(directory.unlock)
    tls = _tls(settings)

    database = Database(settings.database_url)
    stack.push_async_callback(database.close)
    await migrate(database)
    access = AccessStore(database)
    installation = await access.installation(directory.installation())
    token = directory.token(new_token)
    await access.add_token(await access.user(LOCAL_USER), token)

    opener = functools.partial(open_engine, settings.data, installation)
    machines = Machines(opener, directory.key(), timing, used=(settings.data / "engine").is_dir())
    stack.push_async_callback(machines.close)
    workspaces = Workspaces(settings.data, machines, timing.boot)
    stack.callback(workspaces.close)
    spares = await stack.enter_async_context(Spares(machines, timing, enabled=not settings.no_spare))
    context = Context(
        sessions=SessionStore(database, directory.name(), Changes()),
        machines=machines,
        workspaces=workspaces,
        spares=spares,
        image=lambda: settings.image or current_image(),
        ca_bundle=settings.ca_bundle or host_ca_bundle(),
        timing=timing,
    )
    keeper = await stack.enter_async_context(Keeper(context))
    gateway = await stack.enter_async_context(Gateway(access, context.sessions, machines, keeper.active))

    address = settings.address
    unix_door = Door("")
    tcp_door = Door(
        address[0] if address else "localhost",
        host_names(settings.hosts, tls[1]),
        tls=tls[0] is not None or settings.insecure,
    )
    api = Api(settings.data, context, keeper, access, unix_door, tcp_door)
    runner = web.AppRunner(
        make_application(api),
        access_log=None,
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=_SHUTDOWN_S,
        auto_decompress=False,  # anybody could send a few MB that keep this process busy with as many GB
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    handlers = runner.server
    assert handlers is not None  # noqa: S101  # after setup()

    def front(door: Door, guests: Guests) -> Callable[[], Front]:
        stack.callback(guests.abort_waiting)
        return lambda: Front(door, handlers, gateway.serve, guests)

    await _listen_unix(stack, settings.socket_path, front(unix_door, Guests()))
    tcp_guests = Guests(_descriptors() * _TCP_SHARE)
    tcp = await _listen_tcp(stack, settings, front(tcp_door, tcp_guests), tls[0]) if address else None
    return Server(settings, token, tcp, context, keeper, gateway, access, database)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What keeps a server from starting, in words: a disk that is full or closed, a database that is none."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ServerStartFailed(reason=f"{where}{(error.strerror or str(error)).lower()}") from error
    except SQLAlchemyError as error:
        raise ServerStartFailed(reason=f"its database: {getattr(error, 'orig', None) or error}") from error


def _descriptors() -> int:
    """How many this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _allow_descriptors() -> None:
    """As many as may be had without asking: many systems give 1024 for a start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NOFILE_LIMIT if hard == resource.RLIM_INFINITY else min(hard, NOFILE_LIMIT)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_engine(data: Path, installation: str) -> Engine:
    from catty.engines.container import open_engine  # only when a machine is needed: starts fast without

    return open_engine(data, installation)


def _tls(settings: Settings) -> tuple[ssl.SSLContext | None, list[str]]:
    """The TLS context, and the names in its certificate."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None, []
    from cryptography import x509

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        certificate = x509.load_pem_x509_certificate(settings.tls_cert.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return context, [
            *names.get_values_for_type(x509.DNSName),
            *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
        ]
    except x509.ExtensionNotFound:
        return context, []
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot use the certificate or its key: {error}") from None


async def _listen_unix(stack: contextlib.AsyncExitStack, path: Path, front: Callable[[], Front]) -> None:
    sock = stack.enter_context(_bind(path))
    server = await asyncio.get_running_loop().create_unix_server(front, sock=sock, backlog=_BACKLOG)
    stack.callback(server.close)


@contextlib.contextmanager
def _bind(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        if path.is_socket():
            path.unlink()  # of a server that was killed: this one holds the directory's lock
        before = os.umask(0o177)  # never open to others, not even between bind and chmod
        try:
            _bind_to(sock, path)
        except OSError as error:
            raise ServerStartFailed(reason=f"cannot listen on {path}: {error}") from None
        finally:
            os.umask(before)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


def _bind_to(sock: socket.socket, path: Path) -> None:
    """Also to a path that is too long for the kernel's address (about 100 bytes), where the system can name directories otherwise."""
    if len(os.fsencode(path)) <= SUN_PATH_MAX or not hasattr(os, "O_PATH"):
        sock.bind(str(path))
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


async def _listen_tcp(
    stack: contextlib.AsyncExitStack, settings: Settings, front: Callable[[], Front], tls: ssl.SSLContext | None
) -> tuple[str, int] | None:
    assert settings.address is not None  # noqa: S101  # for mypy
    host, port = settings.address
    handshake = _TLS_HANDSHAKE_S if tls else None
    try:
        server = await asyncio.get_running_loop().create_server(
            front, host, port, ssl=tls, ssl_handshake_timeout=handshake, backlog=_BACKLOG
        )
    except OSError as error:
        if not settings.embedded:
            raise ServerStartFailed(reason=f"cannot listen on {settings.listen}: {error}") from None
        _LOG.warning("no TCP: its address is taken", extra={"listen": settings.listen, "reason": str(error)})
        return None
    stack.callback(server.close)
    return host, server.sockets[0].getsockname()[1]


async def rotate_token(settings: Settings) -> str:
    """Replace the local owner's token; all others of theirs end at once, also on a running server."""
    directory = DataDirectory(settings.data)
    database = Database(settings.database_url)
    try:
        await migrate(database)
        access = AccessStore(database)
        user = await access.user(LOCAL_USER)
        token = new_token()
        # In this order: whoever is killed in between leaves a file whose token works.
        await access.add_token(user, token)
        directory.replace_token(token)
        await access.revoke(user, but=token)
    finally:
        await database.close()
    return token
