"""Typed bytes become actions, whatever the encoding and the chunking."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catty.client.keys import Action, Forward, Interrupt, Keys, Leave, Local, Paste, detach_keys
from catty.errors import UsageError

CTRL_C = [
    b"\x03",
    b"\x1b[99;5u",
    b"\x1b[99;5:1u",
    b"\x1b[99:67;5u",
    b"\x1b[99:67:99;5:1u",
    b"\x1b[99;69u",  # Caps Lock
    b"\x1b[99;133u",  # Num Lock
    b"\x1b[1089::99;5u",  # Cyrillic layout
    b"\x1b[27;5;99~",
]
NOT_CTRL_C = [
    b"\x1b[99;5:3u",  # release
    b"\x1b[99;5:2u",  # repetition of a key held down
    b"\x1b[99;6u",  # with Shift
    b"\x1b[99;7u",  # with Alt
    b"\x1b[99u",
    b"\x1b[67;5;99~",
    b"\x1b\x03",  # Alt
    b"c",
]


def run(keys: Keys, *chunks: bytes, now: float = 0.0) -> list[Action]:
    return merged([action for chunk in chunks for action in keys.feed(chunk, now)] + keys.flush())


def merged(actions: list[Action]) -> list[Action]:
    out: list[Action] = []
    for action in actions:
        if isinstance(action, Forward) and out and isinstance(out[-1], Forward):
            out[-1] = Forward(out[-1].data + action.data)
        else:
            out.append(action)
    return out


@pytest.mark.parametrize("first", CTRL_C)
@pytest.mark.parametrize("second", CTRL_C)
def test_ctrl_c_twice_leaves_and_the_second_is_not_forwarded(first: bytes, second: bytes) -> None:
    keys = Keys(Interrupt.TWICE)
    assert keys.feed(first, 10.0) == [Forward(first)]
    assert keys.feed(second + b"more", 10.99) == [Leave()]


@pytest.mark.parametrize("ctrl_c", CTRL_C)
def test_ctrl_c_after_a_second_is_a_first_one_again(ctrl_c: bytes) -> None:
    keys = Keys(Interrupt.TWICE)
    for now in (1.0, 2.5, 4.0):
        assert keys.feed(ctrl_c, now) == [Forward(ctrl_c)]


@pytest.mark.parametrize("other", NOT_CTRL_C)
def test_other_keys_are_not_ctrl_c(other: bytes) -> None:
    keys = Keys(Interrupt.TWICE)
    assert run(keys, other, other, other) == [Forward(other * 3)]


def test_release_events_between_two_ctrl_c_change_nothing() -> None:
    keys = Keys(Interrupt.TWICE)
    release = b"\x1b[99;5:3u"
    assert run(keys, b"\x1b[99;5:1u", release) == [Forward(b"\x1b[99;5:1u" + release)]
    assert keys.feed(b"\x1b[99;5:1u", 0.5) == [Leave()]


def test_never_and_once() -> None:
    assert run(Keys(Interrupt.NEVER), b"\x03\x03\x03") == [Forward(b"\x03\x03\x03")]
    assert run(Keys(Interrupt.ONCE), b"\x03") == [Leave()]


@pytest.mark.parametrize("pastes", [True, False])
def test_nothing_in_a_paste_is_a_key(pastes: bool) -> None:
    paste = b"\x1b[200~\x03\x03\r~.\r~?\x1b[99;5u\x1b[99;5u\x1b[201~"
    keys = Keys(Interrupt.TWICE, detach=detach_keys("ctrl-c"), pastes=pastes)
    expected = Paste(paste[6:-6], paste) if pastes else Forward(paste)
    assert run(keys, paste) == [expected]
    assert run(keys, b"\r~.") == [Forward(b"\r"), Leave()]


def test_a_long_paste_streams() -> None:
    keys = Keys(pastes=True)
    assert run(keys, b"\x1b[200~" + b"x" * 3000) == [Forward(b"\x1b[200~" + b"x" * 3000)]  # flushed: it is slow
    assert run(keys, b"y" * 5000, b"\x1b[201~") == [Forward(b"y" * 5000 + b"\x1b[201~")]


def test_the_end_of_a_paste_is_found_across_a_pause() -> None:
    keys = Keys(Interrupt.TWICE)
    assert run(keys, b"\x1b[200~\x03\x1b[20") == [Forward(b"\x1b[200~\x03")]
    assert run(keys, b"1~\x03") == [Forward(b"\x1b[201~\x03")]
    assert run(keys, b"\x03") == [Leave()]


@pytest.mark.parametrize(
    "enter", [b"\r", b"\n", b"\x1b[13u", b"\x1b[13;1:1u", b"\x1b[13;1u\x1b[13;1:3u", b"\x1b[57414u", b"", b"\r\x1b[I"]
)
@pytest.mark.parametrize(
    "tilde", [b"~", b"\x1b[126u", b"\x1b[96:126;2u", b"\x1b[96;2;126u", b"\x1b[27;2;126~", b"\x1b[126;129u"]
)
@pytest.mark.parametrize("dot", [b".", b"\x1b[46u", b"\x1b[46;1:1u"])
def test_tilde_dot_after_enter_leaves(enter: bytes, tilde: bytes, dot: bytes) -> None:
    keys = Keys()
    assert run(keys, enter + tilde + dot) == ([Forward(enter)] if enter else []) + [Leave()]


@pytest.mark.parametrize(
    ("typed", "actions"),
    [
        (b"~?", [Local.HELP]),
        (b"~s", [Local.SYNC]),
        (b"~\x1a", [Local.SUSPEND]),
        (b"~?~?~.", [Local.HELP, Local.HELP, Leave()]),
        (b"~~", [Forward(b"~")]),
        (b"~~.", [Forward(b"~.")]),
        (b"~x.", [Forward(b"~x.")]),
        (b"~\r~.", [Forward(b"~\r"), Leave()]),
        (b"a~.", [Forward(b"a~.")]),
        (b"\x1b[A~.", [Forward(b"\x1b[A~.")]),
        (b"~", []),
        (b"~\x1b", [Forward(b"~\x1b")]),
        (b"~/\r", [Forward(b"~/\r")]),
    ],
)
def test_local_escapes(typed: bytes, actions: list[Action]) -> None:
    assert run(Keys(), typed) == actions


@pytest.mark.parametrize(
    ("text", "typed", "actions"),
    [
        ("ctrl-p,ctrl-q", b"ab\x10\x11cd", [Forward(b"ab"), Leave()]),
        ("ctrl-p,ctrl-q", b"\x1b[112;5u\x1b[113;5u", [Leave()]),
        ("ctrl-p,ctrl-q", b"\x10\x10\x11", [Forward(b"\x10"), Leave()]),
        ("ctrl-p,ctrl-q", b"\x10x\x11", [Forward(b"\x10x\x11")]),
        ("a,a,b", b"aaab", [Forward(b"a"), Leave()]),
        ("ctrl-@", b"\0", [Leave()]),
        ("ctrl-\\", b"\x1c", [Leave()]),
        ("", b"\x10\x11", [Forward(b"\x10\x11")]),
    ],
)
def test_detach_keys(text: str, typed: bytes, actions: list[Action]) -> None:
    assert run(Keys(detach=detach_keys(text)), typed) == actions


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "ab", ",", "ctrl-1", "é", "ctrl-p,,q"])
def test_wrong_detach_keys(text: str) -> None:
    with pytest.raises(UsageError, match="detach keys"):
        detach_keys(text)


def test_an_escape_by_itself_is_sent_after_the_pause() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b", 0.0) == []
    assert keys.holding
    assert keys.flush() == [Forward(b"\x1b")]
    assert not keys.holding


PIECES = st.sampled_from(
    [
        *CTRL_C,
        *NOT_CTRL_C,
        b"\r",
        b"~",
        b"\x1b[126u",
        b"?",
        b"s",
        b"\x1b",
        b"\x1b[",
        b"\x1b[200~",
        b"\x1b[201~",
        b"/tmp/a.png",
        b"x" * 50,
        b"\x10",
        b"\x11",
        b"\xff\xfe",
        b"\x1b[<0;1;1M",
        b"\x1bOA",
        b"\x1b[I",
    ]
)


@given(st.lists(PIECES, max_size=20), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_chunking_changes_nothing(pieces: list[bytes], cuts: list[int], pastes: bool) -> None:
    data = b"".join(pieces)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[start:end] for start, end in itertools.pairwise(edges)]

    def keys() -> Keys:
        return Keys(Interrupt.TWICE, detach=detach_keys("ctrl-p,ctrl-q"), pastes=pastes)

    def until_left(actions: list[Action]) -> list[Action]:
        return actions[: actions.index(Leave()) + 1] if Leave() in actions else actions

    assert until_left(run(keys(), *chunks)) == until_left(run(keys(), data))


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_without_our_keys_every_byte_goes_through(chunks: list[bytes]) -> None:
    data = b"".join(chunks).replace(b"~", b"-")
    actions = run(Keys(Interrupt.NEVER), *(chunk.replace(b"~", b"-") for chunk in chunks))
    forwarded = b"".join(action.data for action in actions if isinstance(action, Forward))
    # an unfinished end of a paste is never released: its rest is still to come
    assert data.startswith(forwarded)
    assert b"\x1b[201~".startswith(data[len(forwarded) :])


@pytest.mark.parametrize(
    "typed",
    [
        b"\x1b[" + b"9" * 5000 + b"u",
        b"\x1b[27;" + b"9" * 5000 + b";5~",
        b"\x1b[27;5;" + b"9" * 5000 + b"~",
        b"\x1b[1000::99999999;5u",
        b"\x1b[1000::200;5u",
        b"\x1b[999999999;1u",
        b"\x1b[55296u",
        b"\x1b[97;;55296u",
        b"\x1b[97;" + b"9" * 5000 + b";1u",
    ],
)
def test_what_only_looks_like_a_key_is_typed_as_it_is(typed: bytes) -> None:
    assert Keys(Interrupt.TWICE, detach=(b"a",)).feed(typed, 0.0) == [Forward(typed)]
