"""What became of a turn whose end was not seen, read from the server's history. No I/O, no clock.

The text alone does not tell: people say "yes" twice, and others may write in the same conversation. What is certain is
which messages of this side the server had before the question was sent, and which ones it got later. From these follow
the first and the last place that the question can have among the stored messages with its text. It was not stored only
if no place is left, so a message that was stored is never taken for one that was not, and sent twice. The other mistake
remains possible where somebody else sent the very same text at the same time.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import attrs

from aheadless.exceptions import Delivery
from aheadless.protocol.codec import remainder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from aheadless._session import Message, Role, Session

__all__ = [
    "Finding",
    "LostTurn",
    "NotStored",
    "Preceding",
    "Stored",
    "StoredMessage",
    "find",
    "lost_turn",
    "preceding",
]

# What a token that ends in half of a surrogate pair leaves behind when its other half does not come (protocol.md §3.8).
_LONE_HALF: Final = "\ufffd"


class StoredMessage(Protocol):
    """A message as the server's history has it; `aheadless.admin.Message` is one."""

    @property
    def id(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def content(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


@attrs.frozen
class Preceding:
    """What is known before a question."""

    messages: tuple[Message, ...] = ()
    """The session's messages that precede it; with a baseline, only those that are younger than that."""
    baseline: frozenset[str] | None = None
    """The ids of the newest messages that were stored before the question was sent, if somebody looked."""


@attrs.frozen
class LostTurn:
    """A turn whose end was not seen, and what is known around it."""

    question: Message
    partial: str = ""
    before: tuple[Message, ...] = ()
    """As in :class:`Preceding`."""
    after: tuple[Message, ...] = ()
    """The messages that follow."""
    baseline: frozenset[str] | None = None
    """As in :class:`Preceding`."""


@attrs.frozen
class NotStored:
    """The server does not have the question."""


@attrs.frozen
class Stored:
    """The server has the question."""

    reply: str | None
    """The text of its reply; None if there is none, or not yet."""
    certain: bool = True
    """Whether the reply begins with what had come of it."""


Finding: TypeAlias = NotStored | Stored


def preceding(session: Session, index: int | None = None) -> Preceding:
    """Return what is known before the message with this index, or before the next one."""
    messages = session.messages
    index = len(messages) if index is None else index
    oldest = session.count - len(messages)
    baseline = session.baseline
    # One that was taken later says nothing of the message: it may hold it.
    if baseline is None or baseline.count > oldest + index:
        return Preceding(messages[:index])
    return Preceding(messages[max(baseline.count - oldest, 0) : index], baseline.ids)


def lost_turn(session: Session, question: Message, *, remembered: Preceding | None = None) -> LostTurn:
    """Return a question of the session with what the session knows around it.

    `remembered` is what preceded the question when it was sent, for one that the session does not keep any more.
    """
    index = session.index(question)
    if index is None:
        known = remembered or Preceding()
        return LostTurn(question, before=known.messages, baseline=known.baseline)
    messages, known = session.messages, preceding(session, index)
    first_after, partial = index + 1, ""
    if first_after < len(messages) and _is_part(messages[first_after]):
        partial = messages[first_after].text
        first_after += 1
    return LostTurn(messages[index], partial, known.messages, messages[first_after:], known.baseline)


def find(thread: Sequence[StoredMessage], turn: LostTurn, *, not_before: datetime | None = None) -> Finding:
    """Return what a conversation (the oldest message first) tells of a turn.

    `not_before` is the server's time before which the question cannot have been stored.
    """
    thread = _since(thread, turn.baseline)
    text = turn.question.text
    places = [place for place, message in enumerate(thread) if (message.role, message.content) == ("user", text)]
    first, last = _bounds(thread, turn, places)
    if not_before is not None:
        first = max(first, _count_while(thread[place].created_at < not_before for place in places))
    if first > last:
        return NotStored()
    # Questions of this side with the same text, of which nobody knows, may stand before it.
    unknown = sum(_is_own(message, text, Delivery.UNKNOWN) for message in _after_answers(turn))
    return _with_reply(thread, places[min(first + unknown, last)], turn)


def _since(thread: Sequence[StoredMessage], baseline: frozenset[str] | None) -> Sequence[StoredMessage]:
    """Drop what was stored when the baseline was taken; it names the newest messages, and all before them is older."""
    if not baseline:
        return thread
    begin = next((place for place, message in enumerate(thread) if message.id in baseline), 0)
    return [message for message in thread[begin:] if message.id not in baseline]


def _bounds(thread: Sequence[StoredMessage], turn: LostTurn, places: Sequence[int]) -> tuple[int, int]:
    """Return the first and the last of the places that the question can have; the first is greater if it has none."""
    text = turn.question.text
    earlier = sum(_is_own(message, text, Delivery.ACCEPTED) for message in turn.before)
    later = sum(_is_own(message, text, Delivery.ACCEPTED) for message in turn.after)
    cut = _end_of_answered(thread, turn)
    if cut is None or earlier + later > len(places):
        # The history is not the one that this side knows: messages are gone. Then only what is there counts.
        return 0, len(places) - 1
    return max(earlier, _count_while(place < cut for place in places)), len(places) - 1 - later


def _end_of_answered(thread: Sequence[StoredMessage], turn: LostTurn) -> int | None:
    """Return a place before which the question cannot stand, or None if what must be there is missing.

    Whatever was answered before the question was sent stands before it. In which order is not asked: the reply of a
    turn that was left early may be stored after the question that followed.
    """
    needed: Counter[tuple[Role, str]] = Counter()
    for index, message in enumerate(turn.before):
        if _is_answer(message, turn):
            needed[message.role, message.text] += 1
            if index and turn.before[index - 1].role == "user":
                needed["user", turn.before[index - 1].text] += 1
    cut = 0
    for place, stored in enumerate(thread):
        key = (stored.role, stored.content)
        if needed[key]:
            needed[key] -= 1
            if not needed[key]:
                cut = place + 1
    return None if any(needed.values()) else cut


def _after_answers(turn: LostTurn) -> Sequence[Message]:
    """Return what precedes the question and follows the last answer."""
    answers = [index for index, message in enumerate(turn.before) if _is_answer(message, turn)]
    return turn.before[answers[-1] + 1 :] if answers else turn.before


def _with_reply(thread: Sequence[StoredMessage], place: int, turn: LostTurn) -> Stored:
    # Replies that are known to belong to other turns.
    taken = _replies(turn.before)
    taken -= Counter(message.content for message in thread[:place] if message.role == "assistant")
    taken += _replies(turn.after)
    replies: list[str] = []
    for message in thread[place + 1 :]:
        if message.role == "assistant":
            if taken[message.content]:
                taken[message.content] -= 1
            else:
                replies.append(message.content)
    begun = turn.partial.removesuffix(_LONE_HALF)
    for reply in replies:
        if remainder(reply, begun) is not None:
            return Stored(reply)
    return Stored(replies[0], certain=False) if replies else Stored(None)


def _replies(messages: Iterable[Message]) -> Counter[str]:
    return Counter(message.text for message in messages if message.role == "assistant" and message.status == "complete")


def _is_answer(message: Message, turn: LostTurn) -> bool:
    """Whether this is a whole reply that this side had before it sent the question."""
    whole = message.role == "assistant" and message.status == "complete"
    return whole and message.created_at < turn.question.created_at


def _is_part(message: Message) -> bool:
    return message.role == "assistant" and message.status != "complete"


def _is_own(message: Message, text: str, delivery: Delivery) -> bool:
    return message.role == "user" and message.text == text and message.delivery is delivery


def _count_while(conditions: Iterable[bool]) -> int:
    """Return how many conditions are true before the first that is not."""
    count = 0
    for condition in conditions:
        if not condition:
            break
        count += 1
    return count
