"""PID 1 of a machine for engine tests before there is a runtime: closes addresses and listens, no more."""

import os
import signal
import socket
import subprocess
import sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for closed in filter(None, os.environ.get("CATTY_CLOSED", "").split(",")):
    subprocess.run(["ip", "route", "add", "blackhole", closed], check=True)
listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for listener, name in zip(listeners, ("terminal", "workspace"), strict=True):
    listener.bind(f"/run/catty/endpoint/{name}")
    listener.listen()
while True:
    signal.pause()
