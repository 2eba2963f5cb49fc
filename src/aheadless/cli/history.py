"""What was said: on the server, and in a file of sessions."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from aheadless import AheadlessError, AuthenticationError, ConfigurationError, Delivery, NotFoundError
from aheadless.cli.output import ExitCode, one_line, visible, visible_json
from aheadless.cli.process import complain, is_terminal, write
from aheadless.cli.terminal import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence
    from datetime import datetime
    from pathlib import Path

    from aheadless import ChatClient
    from aheadless._exchange import SessionRecord
    from aheadless.admin import AdminClient, Conversation, Message

__all__ = ["conversation", "conversations", "sessions"]

# Nobody's lines are as long; what is read by a program is not folded.
PIPE_WIDTH: Final = 10_000

# Of a table on a terminal: what stands between two columns, and what the last one gets even if the screen is narrow.
CELL_MARGIN: Final = 3
LEAST_ROOM: Final = 10


def conversations(client: Callable[[], ChatClient], *, limit: int, as_json: bool) -> int:
    """Write the server's newest conversations."""

    async def work(admin: AdminClient) -> None:
        page = await admin.conversations(limit=limit)
        if as_json:
            _write_json(
                {"total": page.total, "conversations": [_conversation_as_json(found) for found in page.conversations]}
            )
            return
        rows = [
            (found.id, found.session_id, _moment(found.updated_at), one_line(found.last_message))
            for found in page.conversations
        ]
        _write_table(("Conversation", "Session", "Updated", "Last message"), rows)
        if page.total > len(rows):
            complain(f"aheadless: these are {len(rows)} of {page.total}")

    return _with_admin(client, work)


def conversation(client: Callable[[], ChatClient], conversation_id: str, *, as_json: bool) -> int:
    """Write the messages of one conversation."""

    async def work(admin: AdminClient) -> None:
        thread = await admin.conversation(conversation_id)
        if as_json:
            found = _conversation_as_json(thread.conversation)
            _write_json({**found, "messages": [_message_as_json(message) for message in thread.messages]})
            return
        for message in thread.messages:
            write(f"{message.role}, {_moment(message.created_at)}\n{visible(message.content)}\n\n")

    return _with_admin(client, work)


def sessions(path: Path, *, as_json: bool) -> int:
    """Write the sessions that a SQLite file keeps, the last saved first."""

    async def work() -> int:
        from aheadless.stores import SQLiteStore  # noqa: PLC0415 - loads sqlite3

        with _without_message():
            async with SQLiteStore(path) as store:
                records = [await store.load(session_id, limit=1) for session_id in reversed(await store.list())]
        known = [record for record in records if record is not None]
        if as_json:
            _write_json({"sessions": [_session_as_json(record) for record in known]})
        else:
            _write_table(
                ("Session", "Messages", "Last at", "Status", "Last message"), [_row(record) for record in known]
            )
        return ExitCode.OK

    # Opening would make it.
    if not path.is_file():
        raise ConfigurationError("the file of --store does not exist")
    return run(work())


def _with_admin(client: Callable[[], ChatClient], work: Callable[[AdminClient], Awaitable[None]]) -> int:
    async def ask() -> int:
        async with client() as opened:
            try:
                with _without_message():
                    await work(opened.admin)
            except AuthenticationError:
                complain("aheadless: the admin key is refused; set AHEADLESS_ADMIN_KEY to the server's")
                return ExitCode.AUTHENTICATION
            except NotFoundError as exc:
                complain(f"aheadless: {one_line(exc.detail)}; check the conversation's id, or the URL")
                return ExitCode.REJECTED
        return ExitCode.OK

    return run(ask())


@contextmanager
def _without_message() -> Generator[None]:
    """Let no error say what has become of a message: there was none."""
    try:
        yield
    except AheadlessError as exc:
        exc.delivery = Delivery.NOT_SENT
        raise


# --- forms ------------------------------------------------------------------------------------------------------------


def _write_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table: on a terminal as wide as that is, on a pipe a line for each row."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - slow to load
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    on_terminal = is_terminal(sys.stdout)
    drawn = io.StringIO()
    console = Console(
        file=drawn,
        width=None if on_terminal else PIPE_WIDTH,
        force_terminal=on_terminal,
        no_color=bool(os.environ.get("NO_COLOR")),
    )
    # Not as rich's markup, which brackets could be.
    cells = [[Text(visible(cell)) for cell in row] for row in rows]
    widths = [max([len(head), *(row[number].cell_len for row in cells)]) for number, head in enumerate(heads)]
    # Only the last column, whose texts are the longest, gives way on a narrow screen.
    room = console.width - sum(widths[:-1]) - CELL_MARGIN * len(heads)
    table = Table(box=SIMPLE_HEAD if on_terminal else None, pad_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in cells:
        row[-1].truncate(max(room, LEAST_ROOM), overflow="ellipsis")
        table.add_row(*row)
    console.print(table)
    write("".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines()))


def _write_json(value: object) -> None:
    write(visible_json(json.dumps(value, ensure_ascii=False)) + "\n")


def _conversation_as_json(found: Conversation) -> dict[str, Any]:
    return {
        "conversationId": found.id,
        "sessionId": found.session_id,
        "createdAt": found.created_at.isoformat(),
        "updatedAt": found.updated_at.isoformat(),
        "lastMessage": found.last_message,
    }


def _message_as_json(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, "createdAt": message.created_at.isoformat()}


def _session_as_json(record: SessionRecord) -> dict[str, Any]:
    last = record.messages[-1] if record.messages else None
    return {
        "sessionId": record.session_id,
        "conversationId": record.conversation_id,
        "messages": record.count,
        "lastMessage": None
        if last is None
        else {
            "role": last.role,
            "text": last.text,
            "status": last.status,
            "delivery": last.delivery.value,
            "createdAt": last.created_at.isoformat(),
        },
    }


def _row(record: SessionRecord) -> tuple[str, ...]:
    if not record.messages:
        return (record.session_id, str(record.count), "", "", "")
    last = record.messages[-1]
    return (record.session_id, str(record.count), _moment(last.created_at), last.status, one_line(last.text))


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%SZ")
