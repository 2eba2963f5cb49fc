"""One question and its answer: the bytes of a stream become events, by the state table or not at all."""

from __future__ import annotations

import enum
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from aheadless.exceptions import Delivery, ProtocolError, StreamInterruptedError
from aheadless.protocol.codec import decode_event, decode_tokens, join_surrogates, remainder
from aheadless.protocol.events import Done, Failure, Start, Token, Unknown
from aheadless.protocol.ndjson import MAX_LINE, NDJSONDecoder

if TYPE_CHECKING:
    from aheadless.protocol.events import Event

__all__ = ["MAX_STREAM", "Turn", "TurnState"]

# Four of the longest lines. A question has at most 4000 units and a usual reply a few KiB, so a stream of this size is
# one that never ends.
MAX_STREAM: Final = 4 * MAX_LINE


class TurnState(enum.Enum):
    """Where a turn is."""

    WAITING = "waiting"
    """For `start`."""

    STREAMING = "streaming"
    """Tokens may come."""

    DONE = "done"
    """`done` was read: the reply is complete."""

    FAILED = "failed"
    """`error` was read: the server gave up."""

    INTERRUPTED = "interrupted"
    """It ended without either, by the other side or by ours."""


_text_of: Final = attrgetter("text")

_W, _S, _D, _F = TurnState.WAITING, TurnState.STREAMING, TurnState.DONE, TurnState.FAILED

NEXT: Final[dict[TurnState, dict[type[Event], TurnState]]] = {
    _W: {Start: _S, Failure: _F, Unknown: _W},
    _S: {Token: _S, Done: _D, Failure: _F, Unknown: _S},
}
"""What is not in this table breaks the protocol; a state that has no row is final."""


class Turn:
    """Feed it the bytes of one stream, take its events.

    ::

        while (event := turn.next_event()) is None:
            turn.receive_data(await anext(chunks))

    Events before a bad line are given before the error is raised, and no byte is looked at after the end of the turn.
    """

    def __init__(self, *, max_line: int = MAX_LINE, max_stream: int = MAX_STREAM) -> None:
        self.state: TurnState = TurnState.WAITING
        self.conversation_id: str | None = None
        self.ready: list[Token] = []
        """Tokens that were decoded ahead, the next one last: to take one from the end is to be given it.

        It stays the same list as long as the turn lives, so that a reader can hold on to it.
        """
        self._max_line = max_line
        self._decoder = NDJSONDecoder(max_line=max_line)
        self._room = self._max_stream = max_stream
        self._overflowed = False
        self._eof = False
        self._parts: list[str] = []
        self._half = ""  # the high half of a surrogate pair whose low half has not come
        self._postponed: list[Event] = []  # a handful
        self._ahead: list[Token] = []  # what `ready` was filled with, in order
        self._drained = False  # whether nothing can come before the next bytes
        self._given: str | None = None  # when it was ended from this side: the text of the tokens that were given

    @property
    def over(self) -> bool:
        """Whether no further event can come."""
        return self.state not in NEXT

    @property
    def surplus(self) -> bool:
        """Whether bytes have come that were not looked at, as they followed the last event."""
        return self.over and self._decoder.pending

    @property
    def text(self) -> str:
        """The joined text of the tokens given so far."""
        self._fold()
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def delivery(self) -> Delivery:
        """What the stream tells about the user's message: it is stored before `start` is sent (protocol.md §3.3)."""
        waiting = self.conversation_id is None and self.state is not TurnState.FAILED
        return Delivery.UNKNOWN if waiting else Delivery.ACCEPTED

    def receive_data(self, chunk: bytes) -> None:
        """Take the next bytes; never raises."""
        if len(chunk) > self._room:
            chunk = chunk[: self._room]
            self._overflowed = True
            self._drained = False
        self._room -= len(chunk)
        if self._drained and not self.ready and len(chunk) <= self._max_line and (tokens := decode_tokens(chunk)):
            # Whole lines and nothing before them, as nearly every chunk is: they need not be kept to be cut.
            self._decoder.line_number += len(tokens)
            self._offer(tokens)
            return
        self._drained = False
        self._decoder.receive_data(chunk)

    def receive_eof(self) -> None:
        """Take the end of the bytes."""
        self._decoder.receive_eof()
        self._eof = True
        self._drained = False

    def next_event(self) -> Event | None:
        """Return the next event, or None if more bytes are needed or the turn is over.

        Raises ProtocolError at what breaks the protocol and StreamInterruptedError at an end of the bytes that
        neither `done` nor `error` announced; both carry the partial text, and both end the turn.
        """
        if self.ready or (not self._drained and self._read_ahead()):
            return self.ready.pop()
        if self._drained:
            return None
        while not self.over and (event := self._take()) is not None:
            state = self._next_state(event)
            if type(event) is Token:
                text = self._mend(event.text)
                if not text and event.text:
                    continue  # nothing but half a pair: held until its other half comes
                if text is not event.text:
                    event = Token(text)
                self._parts.append(text)
            elif self._half and type(event) is not Unknown:
                # The other half can no longer come: what was held goes out first.
                self._postponed.insert(0, event)
                event = Token(self._flush())
                state = self.state
            elif type(event) is Start:
                self.conversation_id = event.conversation_id
            self.state = state
            return event
        return None

    def interrupt(self) -> None:
        """End the turn from this side, unless it is over."""
        if not self.over:
            self._given = self.text
            self.ready.clear()
            self._ahead.clear()
            self._drained = False
            self._flush()
            self.state = TurnState.INTERRUPTED

    def complete(self, text: str, conversation_id: str) -> None:
        """Go on, after an end that was no `done`, with the reply as the server stored it.

        The next events are what would have come: `start` if it did not, the rest of the text as a token, unless what
        had come is not its beginning, and `done`.
        """
        self.interrupt()
        given, self._given, self._half = self._given or "", None, ""
        self._parts = [given]
        self._postponed.clear()
        self._drained = False
        self.state = TurnState.STREAMING
        if self.conversation_id is None:
            self.state = TurnState.WAITING
            self._postponed.append(Start(conversation_id))
        if rest := remainder(text, given):
            self._postponed.append(Token(rest))
        self._postponed.append(Done(text, self.conversation_id or conversation_id))

    def withdraw(self) -> None:
        """Leave whoever holds :attr:`ready` an empty list: from now on its tokens are given by :meth:`next_event`."""
        held, self.ready = self.ready, self.ready.copy()
        held.clear()

    def _read_ahead(self) -> bool:
        """Decode the tokens at hand all at once, if there is nothing else to be minded; tell whether there are any."""
        self._fold()
        if self.state is not TurnState.STREAMING or self._half or self._postponed:
            return False
        block = self._decoder.next_block()
        if not block or len(block) > self._max_line:
            return False
        tokens = decode_tokens(block)
        if not tokens:
            # The last line may be `done`.
            block = block[: block.rfind(b"\n", 0, -1) + 1]
            tokens = decode_tokens(block)
        if not tokens:
            return False
        self._decoder.skip_lines(len(block), len(tokens))
        self._offer(tokens)
        self._drained = not (self._decoder.pending or self._overflowed or self._eof)
        return True

    def _offer(self, tokens: list[Token]) -> None:
        """Let tokens be taken from :attr:`ready`, of which all that was in it was given."""
        self._parts += map(_text_of, self._ahead)
        self._ahead = tokens
        self.ready += tokens[::-1]

    def _fold(self) -> None:
        """Note the texts of the tokens that were given from :attr:`ready`."""
        if given := len(self._ahead) - len(self.ready):
            self._parts += map(_text_of, self._ahead[:given])
            del self._ahead[:given]

    def _take(self) -> Event | None:
        if self._postponed:
            return self._postponed.pop(0)
        line = None
        try:
            if (line := self._decoder.next_line()) is not None:
                return decode_event(line)
        except ProtocolError as exc:
            if line is not None and self._decoder.unterminated and line.lstrip().startswith(b"{"):
                # The start of an object and then the end of the bytes: the line was cut, not malformed.
                raise self._cut_off() from None
            raise self._broken(exc) from None
        if self._overflowed:
            raise self._broken(ProtocolError(f"the stream is longer than {self._max_stream} bytes"))
        if self._eof:
            raise self._cut_off()
        return None

    def _next_state(self, event: Event) -> TurnState:
        state = NEXT[self.state].get(type(event))
        if state is None:
            found, now = type(event).__name__.lower(), self.state.value
            raise self._broken(ProtocolError(f"`{found}` event while the turn is {now}"))
        if type(event) is Done and event.conversation_id != self.conversation_id:
            raise self._broken(ProtocolError("`done` names another conversation than `start`"))
        return state

    def _mend(self, text: str) -> str:
        """Return the text in whole characters, with the half held before; hold back a half at its end."""
        if not self._half and text.isascii():
            return text
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return join_surrogates(text)

    def _flush(self) -> str:
        text, self._half = join_surrogates(self._half), ""
        if text:
            self._parts.append(text)
        return text

    def _broken(self, error: ProtocolError) -> ProtocolError:
        delivery = self.delivery
        self.interrupt()
        if error.line is None:
            error = self._decoder.located(error)
        error.delivery = delivery
        error.partial = self.text
        return error

    def _cut_off(self) -> StreamInterruptedError:
        delivery = self.delivery
        self.interrupt()
        message = "the stream ended without `done` or `error`"
        return StreamInterruptedError(message, delivery=delivery, partial=self.text)
