"""The standard streams of the program: no text, and no reader that has gone, ends its work."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

#: ASCII for characters of our texts that have no other decomposition.
PLAIN = {"±": "+/-", "→": "->", "←": "<-", "√": "sqrt", "≥": ">=", "≤": "<="}
#: Errors of a write to a pipe or socket that nobody reads any more.
NO_READER = (errno.EPIPE, errno.ECONNRESET)


class Outlet:
    """A stream whose writes never raise.

    Characters that its encoding lacks are spelt in ASCII. After an error of the system, such as a
    full disk, the rest is dropped, and `error` holds the first one.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Writes a text, or what can be written of it."""
        with self._caught():
            try:
                self.stream.write(text)
            except UnicodeEncodeError as error:
                self.stream.write(plain(text, error.encoding))
        return len(text)

    def flush(self) -> None:
        """Passes on what was written."""
        with self._caught():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            # Python writes what is in its buffer again when it ends, which must not fail then.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


def plain(text: str, encoding: str) -> str:
    """Returns a text in which what an encoding lacks is spelt in ASCII, `?` if there is no way."""
    parts = []
    for letter in text:
        try:
            letter.encode(encoding)
            parts.append(letter)
        except UnicodeEncodeError:
            near = PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)
            parts.append(near.encode("ascii", "ignore").decode() or "?")
    return "".join(parts)


@contextlib.contextmanager
def outlets() -> Iterator[Outlet]:
    """Replaces both standard streams for a time; returns that of the output."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # A stream that was closed before the program began is None.
        out, err = (Outlet(nowhere if stream is None else stream) for stream in before)
        sys.stdout, sys.stderr = out, err  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield out
        finally:
            for stream in (out, err):
                stream.flush()
            sys.stdout, sys.stderr = before
