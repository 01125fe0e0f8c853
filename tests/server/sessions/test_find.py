"""Which session somebody means."""

from __future__ import annotations

import pytest

from catty.errors import AmbiguousLabel, SessionNotFound
from catty.server.sessions.find import resolve

ID = "0b0c5a4e-3f7e-4b8e-9d0a-5b1f5f3e8a11"
LABELS = {ID: "brave-tiger-1234", "2": "brave-tiger-12345", "3": "brave-lion-1000", "4": "calm-owl-2000"}


@pytest.mark.parametrize(
    ("reference", "id_"),
    [(ID, ID), ("brave-tiger-1234", ID), ("brave-tiger-12345", "2"), ("brave-l", "3"), ("c", "4")],
)
def test_ids_labels_and_unique_beginnings(reference: str, id_: str) -> None:
    assert resolve(reference, LABELS) == id_


def test_several() -> None:
    with pytest.raises(AmbiguousLabel) as caught:
        resolve("brave-", LABELS)
    assert "brave-lion-1000, brave-tiger-1234, brave-tiger-12345" in caught.value.message


def test_many_are_counted() -> None:
    with pytest.raises(AmbiguousLabel, match="and 3 more"):
        resolve("b", {str(n): f"b-{n}" for n in range(8)})


def test_did_you_mean() -> None:
    with pytest.raises(SessionNotFound) as caught:
        resolve("brave-tigre-1234", LABELS)
    assert caught.value.hint == "did you mean brave-tiger-1234? `catty list` shows all."


@pytest.mark.parametrize("reference", ["", "zzz", "x" * 100000])
def test_none(reference: str) -> None:
    with pytest.raises(SessionNotFound) as caught:
        resolve(reference, LABELS)
    assert len(caught.value.message) < 200
