"""How often and how long, in seconds. Tests pass shorter ones."""

from __future__ import annotations

from dataclasses import dataclass

from catty import constants

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Each figure's reason stands beside it."""

    first_save: float = constants.FIRST_SAVE_S
    save_every: float = constants.SAVE_EVERY_S
    status_every: float = 5.0  # a fraction of a minute, the shortest thing that activity is measured over
    activity_write: float = 15.0  # `list` shows minutes; each write costs an fsync
    log_copy: float = 60.0  # the ring's 8 MiB are copied at most this often, for `logs` after a crash
    scan: float = 2.0  # how soon requests taken by another server are seen
    renew: float = 10.0  # a third of a lease
    sweep: float = 20.0  # how soon the death of a machine is seen when the engine's events did not tell
    boot: float = 60.0  # a machine that was started must answer within; 150 ms is normal
    redial: float = 0.1  # between tries to reach a machine
    redial_max: float = 5.0
    request: float = 15.0  # one control request
    upload_wait: float = 600.0  # without any byte of upload from this owner
    last_save: float = 1800.0  # a last save that takes longer is given up for salvage
    grace: float = float(constants.STOP_GRACE_S)
    retry: float = 5.0  # after a failure of the engine or of a last save, doubled up to `retry_max`
    retry_max: float = 300.0
    spare_delay: float = (
        3.0  # after a session has started, before a machine is made for the next: its agent comes first
    )
    spare_keep: float = 1800.0  # a machine that nobody wanted by then is destroyed
    stop_wait: float = 540.0  # `stop` answers with the session as it is after this; clients wait for ten minutes
    poll: float = 1.0  # how soon a long poll sees what another server changed
