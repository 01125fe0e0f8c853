"""The agent's terminal: PTY, output and input logs, and the clients attached to it. One per machine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
import time
from typing import Final, Protocol

from catty.constants import KIB
from catty.errors import BadRequest
from catty.runtime import pacing
from catty.runtime.initproto import TERMINAL_FILES, Message
from catty.runtime.inputlog import InputLog
from catty.runtime.outputlog import OutputLog
from catty.runtime.page import Page
from catty.runtime.screen import Screen
from catty.wire.claim import Claim

__all__ = ["Client", "Console"]

_BATCH: Final = 256 * KIB  # output taken before clients get their turn
_JIGGLE_S: Final = 0.04  # for a full-screen program to notice that its size has changed
_ANSWER_S: Final = 10.0  # after its start, in which a program still wants answers to what it asked the terminal
INPUT_HOLD_BYTES: Final = 256 * KIB  # input waiting for the program, beyond which nothing is acknowledged
INPUT_FLOOD_BYTES: Final = 4096 * KIB  # a client that goes on sending then is cut off

Size = tuple[int, int]


class Client(Protocol):
    """An attached client as the console sees it. `size` is its window's, None for a viewer."""

    name: str
    pace: pacing.Pace
    size: Size | None

    def pump(self) -> None:
        """Send what can be sent now."""

    def size_changed(self) -> None:
        """The size in force is another one."""

    def input_fed(self) -> None:
        """The program has read: acknowledgements may go out again."""

    def notice(self, notice: Message) -> None:
        """Show something to the user beside the output."""


class Console:
    """See the module's text. `files` are those of `initproto.TERMINAL_FILES`, then the PTY's master if there is one already."""

    def __init__(self, files: list[int], agent: Message) -> None:
        named = dict(zip(TERMINAL_FILES, files, strict=False))
        self.page = Page(named["page"])
        self.output = OutputLog(named["output"], named["output_pipe_out"], named["output_pipe_in"])
        self.input = InputLog(
            named["input"], named["input_reader"], named["input_pipe_out"], named["input_pipe_in"], self.page
        )
        self.screen = Screen(self.output, self.page)
        self.clients: set[Client] = set()
        self.size: Size = (0, 0)  # none yet
        self.agent = agent
        self.exit_at: int | None = None  # end of the output of an agent that has exited
        self.ending = False  # the agent ends with its session: clients hear of that from the server
        self._loop = asyncio.get_running_loop()
        self._pty: int | None = None
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._opened_at = float("-inf")
        if len(files) > len(TERMINAL_FILES):
            self._open(files[-1])
            rows, cols = struct.unpack("HHHH", fcntl.ioctl(files[-1], termios.TIOCGWINSZ, bytes(8)))[:2]
            self.size = (cols, rows)
            self._loop.call_soon(self.drain)  # for an agent that has ended meanwhile

    # ------------------------------------------------------------------------------------ the agent

    @property
    def running(self) -> bool:
        return bool(self.agent["state"] == "running")

    def agent_changed(self, agent: Message, master: int | None) -> None:
        """init says how the agent is now; `master` comes with one that has just been started."""
        before, self.agent = self.agent, agent
        if master is not None:
            if before["state"] == "exited":
                self._take_last_words()
                self.input.drop_pending()
            self.exit_at = None
            self._opened_at = time.monotonic()
            self._open(master)
        self.drain()

    # ------------------------------------------------------------------------------------ output

    def drain(self) -> None:
        """Take output as far as the clients' pace allows, and let each of them send."""
        before = self.output.end
        emptied = self._pull(before)
        if emptied and self.agent["state"] == "exited" and self.exit_at is None:
            self.exit_at = self.output.end
        if self.output.end != before:
            self.page.touch(output=True, now=time.monotonic_ns())
            self.screen.follow()
        if self.output.end != before or self.exit_at is not None:
            for client in tuple(self.clients):
                client.pump()
        if self._pty is not None and not self._reading:
            self._look_again()

    @property
    def unseen(self) -> bool:
        """Whether the agent has only just begun and no writer was ever there: the next one gets its output from the first byte.

        So its terminal answers what the program asked at its start (kitty keys, colours), which a repainted screen leaves out.
        """
        just_begun = time.monotonic() - self._opened_at < _ANSWER_S or not self.output.end
        return self.output.start == 0 and just_begun and not self.input.known

    def acknowledged(self) -> None:
        """A client has moved: perhaps the program may go on."""
        if self._pty is not None and not self._reading:
            self.drain()

    def _pull(self, before: int) -> bool:
        """Take output; whether there is no more now. Reading goes on by itself unless a client holds it back."""
        if self._pty is None:
            return True
        bound = self._limit().offset
        batch = before + _BATCH
        try:
            emptied = self.output.pull(self._pty, batch if bound is None else min(batch, bound))
        except EOFError:
            self._close()
            return True
        self._read(on=emptied or self.output.end == batch)
        return emptied

    def _take_last_words(self) -> None:
        """Whatever the clients' pace: what is still in the old terminal would be lost with it."""
        if self._pty is not None:
            with contextlib.suppress(EOFError):
                self.output.pull(self._pty, self.output.end + _BATCH)
            self._close()

    def _limit(self) -> pacing.Limit:
        return pacing.limit((client.pace for client in self.clients), self.output.end, time.monotonic())

    def _look_again(self) -> None:
        """Go on once the client that holds the output back has had its time, or at once if none does any more."""
        if self._timer is not None:
            self._timer.cancel()
        bound = self._limit()
        held = bound.offset is not None and bound.offset <= self.output.end
        self._timer = self._loop.call_later(max(0.0, bound.until - time.monotonic()) if held else 0.0, self.drain)

    # ------------------------------------------------------------------------------------ input

    def type(self, client: str, offset: int, data: bytes | memoryview) -> int:
        """Take a client's input; see `InputLog.take`."""
        if self.input.pending > INPUT_FLOOD_BYTES:
            raise BadRequest("more input than the program reads")
        taken = self.input.take(client, offset, data)
        self._feed()
        return taken

    @property
    def input_held(self) -> bool:
        """Whether so much input waits for the program that none is acknowledged."""
        return self.input.pending > INPUT_HOLD_BYTES

    def _feed(self) -> None:
        if self._pty is None or not self.running:
            return  # an agent that has exited leaves its keys unread, and unechoed
        try:
            done = self.input.feed(self._pty)
        except OSError:
            done = True  # nobody can read it any more
        if done:
            self._loop.remove_writer(self._pty)
        else:
            self._loop.add_writer(self._pty, self._feed_more)

    def _feed_more(self) -> None:
        held = self.input_held
        self._feed()
        if held and not self.input_held:
            for client in tuple(self.clients):
                client.input_fed()

    # ------------------------------------------------------------------------------------ clients

    def attach(self, client: Client) -> None:
        """Count a client in. Its size counts from now on."""
        self.clients.add(client)
        self.resize()

    def detach(self, client: Client) -> None:
        """Count it out; the program is not held back by it any more."""
        self.clients.discard(client)
        self.resize()
        self.acknowledged()

    def resize(self) -> None:
        """Put the size of the smallest writer in force; that of the last one stays."""
        sizes = [client.size for client in self.clients if client.size is not None]
        if not sizes:
            return
        size = min(cols for cols, _ in sizes), min(rows for _, rows in sizes)
        if size != self.size:
            self.size = size
            self._apply(size)
            for client in self.clients:
                client.size_changed()

    def provoke_repaint(self) -> None:
        """Make a full-screen program paint everything again: it does when its size changes, so change it for a moment."""
        cols, rows = self.size
        if self._pty is not None and self.running and rows > 2 and self.screen.alternate():
            self._apply((cols, rows - 1))
            self._loop.call_later(_JIGGLE_S, lambda: self._apply(self.size))

    def notice(self, notice: Message) -> None:
        """Show something to every client."""
        for client in self.clients:
            client.notice(notice)

    def use_claim(self, claim: Claim) -> None:
        """Take the first size from the claim."""
        if self.size == (0, 0):
            self.size = (claim.cols, claim.rows)

    # ------------------------------------------------------------------------------------ inside

    def _open(self, master: int) -> None:
        self._pty = master
        self._read(on=True)
        self._feed()

    def _close(self) -> None:
        if self._pty is not None:
            self._read(on=False)
            self._loop.remove_writer(self._pty)
            os.close(self._pty)
            self._pty = None

    def _read(self, *, on: bool) -> None:
        if self._pty is not None and on != self._reading:
            self._reading = on
            if on:
                self._loop.add_reader(self._pty, self.drain)
            else:
                self._loop.remove_reader(self._pty)

    def _apply(self, size: Size) -> None:
        if self._pty is not None:
            fcntl.ioctl(self._pty, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
