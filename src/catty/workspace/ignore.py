"""Git's ignore rules, compiled to regular expressions over bytes. No I/O: the text of rule files comes in, answers go out.

Faithful to git (tests/workspace/test_ignore.py compares with the real one), its quirks included: a `**` right after a pattern's
literal beginning crosses directories; only spaces are trimmed; a malformed class never matches. Patterns may come from a machine
(a synced `.gitignore`), so none may cost more than polynomial time of low degree: between two stars the leftmost fit is always as
good as any other, hence the atomic groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from catty.workspace.model import PATH_MAX_BYTES

__all__ = ["Rules", "Source"]

GIT: Final = b".git"

_SPECIAL: Final = re.compile(rb"[*?\[\\]")
_STAR: Final = b"[^/]*"
_CLASSES: Final[dict[bytes, re.Pattern[bytes]]] = {
    b"alnum": re.compile(rb"[0-9A-Za-z]"),
    b"alpha": re.compile(rb"[A-Za-z]"),
    b"blank": re.compile(rb"[ \t]"),
    b"cntrl": re.compile(rb"[\x00-\x1f\x7f]"),
    b"digit": re.compile(rb"[0-9]"),
    b"graph": re.compile(rb"[\x21-\x7e]"),
    b"lower": re.compile(rb"[a-z]"),
    b"print": re.compile(rb"[\x20-\x7e]"),
    b"punct": re.compile(rb"[!-/:-@\[-`{-~]"),
    b"space": re.compile(rb"[\t-\r ]"),
    b"upper": re.compile(rb"[A-Z]"),
    b"xdigit": re.compile(rb"[0-9A-Fa-f]"),
}


class Source(NamedTuple):
    """One rule file: `base` is the directory whose content it speaks about (b"" = the top), `text` what it says."""

    base: bytes
    text: bytes


class Rules:
    """Which paths stay behind.

    `sources` go from the weakest to the strongest; deeper directories win over these. `load` gives the text of a directory's
    `.gitignore`, or None; it is asked once per directory that is looked into (it may call `track`). `tracked` files are never excluded, whatever a rule
    says, nor is anything in a `.git`. With `prefix` (b"" or ending in b"/") the tree is that subdirectory of the one that the rules
    speak about: bases and `load` know it, `match` and `tracked` do not.
    """

    def __init__(
        self,
        sources: Iterable[Source] = (),
        *,
        load: Callable[[bytes], bytes | None] | None = None,
        tracked: Iterable[bytes] = (),
        prefix: bytes = b"",
        ignore_case: bool = False,
    ) -> None:
        self._load = load
        self._prefix = prefix
        self._flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
        self._given: dict[bytes, list[_RuleFile]] = {}
        for source in sources:
            self._given.setdefault(source.base, []).append(_RuleFile(source, self._flags))
        self._chains: dict[bytes, tuple[_RuleFile, ...]] = {}
        top = prefix.rstrip(b"/")
        self._excluded_dirs: dict[bytes, bool] = {b"": False, top: False}  # the tree itself was asked for by name
        self._tracked: set[bytes] = set()
        self._tracked_dirs: set[bytes] = set()
        self.track(tracked)

    def track(self, paths: Iterable[bytes]) -> None:
        """Add files that git tracks; their directories are not excluded either (what else lies in these may be)."""
        for path in paths:
            self._tracked.add(path)
            while (path := path.rpartition(b"/")[0]) and path not in self._tracked_dirs:
                self._tracked_dirs.add(path)

    def match(self, path: bytes, is_dir: bool) -> bool:
        """Whether `path` is excluded. An excluded directory excludes all below it but tracked files."""
        if GIT in path.split(b"/"):
            return False
        full = self._prefix + path
        parent = full.rpartition(b"/")[0]
        excluded = self._is_excluded_dir(parent) or self._decide(full, parent, is_dir)  # may `load`, which may `track`
        return excluded and not (path in self._tracked or (is_dir and path in self._tracked_dirs))

    def _is_excluded_dir(self, directory: bytes) -> bool:
        pending = []
        while (known := self._excluded_dirs.get(directory)) is None:
            pending.append(directory)
            directory = directory.rpartition(b"/")[0]
        for child in reversed(pending):
            known = known or self._decide(child, child.rpartition(b"/")[0], is_dir=True)
            self._excluded_dirs[child] = known
        return known

    def _decide(self, path: bytes, parent: bytes, is_dir: bool) -> bool:
        for rule_file in self._chain(parent):  # strongest first
            verdict = rule_file.verdict(path, is_dir)
            if verdict is not None:
                return verdict
        return False

    def _chain(self, directory: bytes) -> tuple[_RuleFile, ...]:
        """The rule files that speak about the content of `directory`, strongest first."""
        chain = self._chains.get(directory)
        if chain is not None:
            return chain
        own = list(self._given.get(directory, ()))
        if self._load and (text := self._load(directory)):
            own.append(_RuleFile(Source(directory, text), self._flags))
        own = [rule_file for rule_file in reversed(own) if rule_file]
        above = self._chain(directory.rpartition(b"/")[0]) if directory else ()
        chain = self._chains[directory] = (*own, *above)
        return chain


class _RuleFile:
    """A rule file, compiled to two expressions: patterns for names, and patterns for paths. The last pattern that fits decides."""

    def __init__(self, source: Source, flags: int) -> None:
        self._skip = len(source.base) + 1 if source.base else 0
        self._names, self._paths = _Alternatives(flags), _Alternatives(flags)
        for number, line in enumerate(_lines(source.text)):
            if pattern := _Pattern.parse(line):
                (self._names if pattern.name_only else self._paths).add(pattern, number)

    def __bool__(self) -> bool:
        return bool(self._names or self._paths)

    def verdict(self, path: bytes, is_dir: bool) -> bool | None:
        """True: excluded. False: brought back. None: nothing is said about `path`."""
        text = path[self._skip :] + b"/" if is_dir else path[self._skip :]
        by_path = self._paths.last(text) if self._paths else None
        if not self._names:
            return by_path and by_path[1]
        by_name = self._names.last(text[text.rfind(b"/", 0, -1) + 1 :])
        best = max(filter(None, (by_path, by_name)), default=None)
        return best and best[1]


class _Alternatives:
    """Patterns in a few expressions; `last` tells the (number, verdict) of the last that fits.

    Those without wildcards, of which generated rule files have thousands, are looked up; the others are tried some at a time, as
    the groups of a long expression cost each other time.
    """

    _AT_ONCE: Final = 50

    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._literal: dict[bytes, tuple[int, bool]] = {}
        self._pending: list[tuple[bytes, int, bool]] = []
        self._compiled: list[tuple[re.Pattern[bytes], list[tuple[int, bool]]]] = []

    def __bool__(self) -> bool:
        return bool(self._literal or self._pending or self._compiled)

    def add(self, pattern: _Pattern, number: int) -> None:
        """`number` is larger than those before."""
        verdict = not pattern.negated
        if _SPECIAL.search(pattern.body) is None:
            body = self._folded(pattern.body)
            for text in (body + b"/",) if pattern.dir_only else (body, body + b"/"):
                self._literal[text] = number, verdict
        elif expression := pattern.expression():
            self._pending.append((expression, number, verdict))
            if len(self._pending) == self._AT_ONCE:
                self._compile()

    def last(self, text: bytes) -> tuple[int, bool] | None:
        if self._pending:
            self._compile()
        best = self._literal.get(self._folded(text))
        for match, meaning in reversed(self._compiled):
            if best and best > meaning[0]:
                break
            found = match.match(text)
            if found and found.lastindex:
                return max(meaning[found.lastindex - 1], best or meaning[found.lastindex - 1])
        return best

    def _folded(self, text: bytes) -> bytes:
        return text.lower() if self._flags & re.IGNORECASE else text

    def _compile(self) -> None:
        # The first alternative that fits wins, so the last pattern goes first; each has exactly one capturing group.
        patterns, self._pending = self._pending[::-1], []
        expression = re.compile(b"|".join(b"(%s)" % text for text, _, _ in patterns), self._flags)
        self._compiled.append((expression, [(number, verdict) for _, number, verdict in patterns]))


class _Pattern(NamedTuple):
    body: bytes
    negated: bool
    dir_only: bool
    name_only: bool  # without an inner slash it fits a name at any depth

    @classmethod
    def parse(cls, line: bytes) -> _Pattern | None:
        negated = line.startswith(b"!")
        body = line[1:] if negated else line
        dir_only = body.endswith(b"/")
        body = body[:-1] if dir_only else body
        name_only = b"/" not in body
        body = body.removeprefix(b"/")
        return cls(body, negated, dir_only, name_only) if body else None

    def expression(self) -> bytes | None:
        """The regular expression, or None for a pattern that fits nothing. Directories are matched with a slash at their end."""
        special = _SPECIAL.search(self.body)
        start = special.start() if special else len(self.body)
        try:
            tokens = list(_tokens(self.body[start:], self.name_only))
        except _FitsNothing:
            return None
        if sum(token not in (_T_STAR, _T_DIRS, _T_ALL) for token in tokens) > PATH_MAX_BYTES:
            return None  # no path is that long, and compiling it takes the more memory
        return re.escape(self.body[:start]) + _assemble(tokens) + (rb"/\Z" if self.dir_only else rb"/?\Z")


class _FitsNothing(Exception):
    """A pattern that git never matches to anything."""


_T_STAR: Final = b"*"
_T_DIRS: Final = b"**/"  # any number of whole directories, none too
_T_ALL: Final = b"**"
_T_SLASH: Final = b"/"


def _tokens(text: bytes, name_only: bool) -> Iterable[bytes]:
    """Tokens of a glob: the four above, or an expression that fits exactly one byte which is no slash."""
    at = 0
    while at < len(text):
        char = text[at : at + 1]
        if char == b"*":
            end = at
            while text[end : end + 1] == b"*":
                end += 1
            whole = end - at > 1 and not name_only and (at == 0 or text[at - 1 : at] == b"/")
            if whole and end == len(text):
                yield _T_ALL
            elif whole and text[end : end + 1] == b"/":
                yield _T_DIRS
                end += 1
            elif whole and text[end : end + 2] == b"\\/":
                yield from (_T_STAR, _T_SLASH, _T_DIRS)
                end += 2
            else:
                yield _T_STAR
            at = end
        elif char == b"[":
            token, at = _class(text, at + 1)
            yield token
        elif char == b"?":
            yield b"[^/]"
            at += 1
        else:
            if char == b"\\":
                at += 1
                char = text[at : at + 1]
                if not char:
                    raise _FitsNothing
            yield _T_SLASH if char == b"/" else re.escape(char)
            at += 1


def _class(text: bytes, at: int) -> tuple[bytes, int]:
    """The bracket expression whose content starts at `at`, and the position after it."""
    negated = text[at : at + 1] in (b"!", b"^")
    at += negated
    members: set[int] = set()
    previous: int | None = None  # what a following `-` makes a range from
    first = True
    while first or text[at : at + 1] != b"]":
        first = False
        char = text[at : at + 1]
        if char == b"-" and previous is not None and text[at + 1 : at + 2] not in (b"", b"]"):
            at += 2 if text[at + 1 : at + 2] == b"\\" else 1
            members.update(range(previous, _byte(text, at) + 1))
            previous = None
        elif char == b"[" and text[at + 1 : at + 2] == b":" and (name := _class_name(text, at + 2)) is not None:
            if name not in _CLASSES:
                raise _FitsNothing
            members.update(code for code in range(256) if _CLASSES[name].match(bytes((code,))))
            at += len(name) + 3
            previous = None
        else:
            at += char == b"\\"
            previous = _byte(text, at)
            members.add(previous)
        at += 1
        if at >= len(text):
            raise _FitsNothing
    allowed = (set(range(256)) - members if negated else members) - {ord("/")}
    if not allowed:
        raise _FitsNothing
    return b"[%s]" % b"".join(re.escape(bytes((code,))) for code in sorted(allowed)), at + 1


def _class_name(text: bytes, at: int) -> bytes | None:
    """The name in `[:name:]` that starts at `at`; None if this is an ordinary `[`."""
    end = text.find(b"]", at)
    if end < 0:
        raise _FitsNothing
    return text[at : end - 1] if end > at and text[end - 1 : end] == b":" else None


def _byte(text: bytes, at: int) -> int:
    if at >= len(text):
        raise _FitsNothing
    return text[at]


def _assemble(tokens: list[bytes]) -> bytes:
    """The expression of a glob's tokens; chunks between `**/` each hold a fixed number of slashes."""
    chunks: list[list[bytes]] = [[]]
    for token in tokens:
        if token == _T_DIRS:
            chunks.append([])
        else:
            chunks[-1].append(token)
    first, *middle = [_chunk(chunk) for chunk in chunks]
    if not middle:
        return first
    last = middle.pop()
    return b"%s%s(?:[^/]*/)*%s" % (first, b"".join(b"(?>(?:[^/]*/)*?%s)" % chunk for chunk in middle if chunk), last)


def _chunk(tokens: list[bytes]) -> bytes:
    """Stars stay within one name: all but a name's last may take the leftmost fit of what follows them."""
    out: list[bytes] = []
    fixed: list[bytes] = []
    starred = False
    for token in (*tokens, None):
        if token is not None and token not in (_T_STAR, _T_SLASH, _T_ALL):
            fixed.append(token)
            continue
        text = b"".join(fixed)
        if not starred:
            out.append(text)
        elif token == _T_STAR:
            out.append(b"(?>[^/]*?%s)" % text)
        else:
            out.append(_STAR + text)
        fixed, starred = [], token == _T_STAR
        if token == _T_SLASH:
            out.append(b"/")
        elif token == _T_ALL:
            out.append(b".*")
    return b"".join(out)


def _lines(text: bytes) -> Iterable[bytes]:
    """The lines of a rule file that hold a pattern, as git reads them."""
    for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line and not line.startswith(b"#"):
            yield _trim(line.removesuffix(b"\r").partition(b"\0")[0])


def _trim(line: bytes) -> bytes:
    """Without the spaces at its end that no backslash protects."""
    body = line.rstrip(b" ")
    backslashes = len(body) - len(body.rstrip(b"\\"))
    return line[: len(body) + 1] if backslashes % 2 and len(body) < len(line) else body
