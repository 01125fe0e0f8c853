"""Which session somebody means: a UUID, a label, or a unique beginning of one. No I/O."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Mapping
from typing import Final

from catty.errors import AmbiguousLabel, SessionNotFound

__all__ = ["is_uuid", "resolve"]

_MATCHES_SHOWN: Final = 5
REFERENCE_MAX: Final = 80  # what an error repeats of a reference that fits nothing


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its usual spelling."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def resolve(reference: str, labels: Mapping[str, str]) -> str:
    """The id of the session that `reference` means; `labels` maps the owner's session ids to their labels.

    Raises SessionNotFound (with a near label in its hint, if there is one) and AmbiguousLabel.
    """
    if reference in labels:
        return reference
    fitting = {label: id_ for id_, label in labels.items() if reference and label.startswith(reference)}
    if reference in fitting:
        return fitting[reference]
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if fitting:
        shown = sorted(fitting)
        more = f" and {len(shown) - _MATCHES_SHOWN} more" if len(shown) > _MATCHES_SHOWN else ""
        raise AmbiguousLabel(label=reference, matches=", ".join(shown[:_MATCHES_SHOWN]) + more)
    reference = reference[:REFERENCE_MAX]
    near = difflib.get_close_matches(reference, labels.values(), n=1)
    if near:
        raise SessionNotFound(label=reference, hint=f"did you mean {near[0]}? `catty list` shows all.")
    raise SessionNotFound(label=reference)
