"""A reply is shown while it is written, and whole at its end, whatever the platform does meanwhile."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import (
    AheadlessError,
    ConnectError,
    InvalidRequestError,
    RateLimitError,
    Reply,
    ReplyFailedError,
    RequestTimeoutError,
    SessionBusyError,
    StoreError,
    StreamInterruptedError,
    StreamStoppedError,
)
from aheadless.bridges import MessageGone, NotShownError, Pace, PageRefused, RetryLater, Words, write_reply
from aheadless.bridges._delivery import ATTEMPTS
from aheadless.bridges._split import cut
from aheadless.bridges._writer import CANCEL_WITHIN
from tests.bridges.pages import FakePage, told
from tests.virtual import run_virtually

WORDS = Words()


def now() -> float:
    return asyncio.get_running_loop().time()


def texts(page: FakePage, kind: str) -> list[str]:
    return [call.text for call in page.calls if call.kind == kind]


async def fails(writing: Coroutine[Any, Any, Reply], kind: type[AheadlessError]) -> Any:
    with pytest.raises(kind) as caught:
        await writing
    return caught.value


# --- the usual way ----------------------------------------------------------------------------------------------------


def test_a_reply_that_takes_three_seconds():
    """The placeholder is there at once, the first words soon after the first token, then paced edits, then all of it."""

    async def main():
        page = FakePage()
        reply = await write_reply(page, told(*["word "] * 28), pace=Pace(first=0.3, every=1.2))

        assert page.messages == [reply.text] == [("word " * 28).strip()]
        assert (page.calls[0].kind, page.calls[0].text, page.calls[0].began) == ("post", "…", 0)
        edits = [call for call in page.calls if call.kind == "edit"]
        assert edits[0].began == pytest.approx(0.2 + 0.3)  # `start` comes after 0.1 s, the first token after 0.2 s
        assert edits[1].began == pytest.approx(edits[0].ended + 1.2)
        assert [call.began for call in edits[2:]] == [pytest.approx(3.0)]
        assert now() == pytest.approx(3.0 + page.takes)

    run_virtually(main())


def test_slow_edits():
    """A platform that takes a second for an edit delays no token: the end is that of the last edit."""

    async def main():
        page = FakePage(takes=1.0)
        reply = await write_reply(page, told(*["word "] * 60, every=0.05), pace=Pace(first=0.1, every=0.2))

        assert page.messages == [reply.text]
        assert reply.timings.total == pytest.approx(62 * 0.05)
        # The edit that was under way when the reply ended, and the last one.
        assert now() <= reply.timings.total + 2.0
        assert len(page.calls) == 4

    run_virtually(main())


def test_the_last_edit_shows_what_is_there_already():
    """A final text that is shown is not sent again."""

    async def main():
        page = FakePage()
        await write_reply(page, told("all", " of it", "", every=1.0), pace=Pace(first=0.1, every=0.1))

        assert texts(page, "edit") == ["all", "all of it"]

    run_virtually(main())


def test_the_last_message_is_concluded():
    """If asked for, it is written once more when the reply is over: a page can then take a button away."""

    async def main():
        page = FakePage()
        page.faults += [None, None, None, RetryLater(2.0), OSError("down")]
        tokens = ("all", " of it", "")
        await write_reply(page, told(*tokens, every=1.0), pace=Pace(first=0.1, every=0.1), conclude=True)

        assert texts(page, "edit") == ["all", "all of it", *["all of it"] * 3]

    run_virtually(main())


def test_a_long_reply_goes_on_in_new_messages():
    """As it grows over the limit; a message that is full is not touched again."""

    async def main():
        page = FakePage(limit=40)
        words = [f"number {n} and " for n in range(20)]
        reply = await write_reply(page, told(*words), pace=Pace(first=0.1, every=0.2))

        assert "".join(page.seen) == reply.text
        assert page.messages == [part.text for part in cut(reply.text, 40)]
        finished = [
            text for text in page.seen[:-1] if texts(page, "edit").count(text) + texts(page, "post").count(text) > 1
        ]
        assert finished == []

    run_virtually(main())


def test_code_that_is_being_written():
    """A fence is closed in every edit, and on both sides of a cut."""

    async def main():
        page = FakePage(limit=40)
        code = ["Look:\n", "```", "py\n", *(f"line_{n} = {n}\n" for n in range(8)), "```", "\nThat is it."]
        await write_reply(page, told(*code), pace=Pace(first=0.0, every=0.0))

        assert all(call.text.count("```") % 2 == 0 for call in page.calls)
        assert all(text.startswith("```py\n") for text in page.seen[1:-1])

    run_virtually(main())


def test_white_space_around_the_text():
    """The server trims its reply; so are the edits, and no message is blank."""

    async def main():
        page = FakePage()
        await write_reply(page, told("\n", " \n", "Hi", "\n\n", "you", "\n"), pace=Pace(first=0.0, every=0.0))

        assert {call.text for call in page.calls} == {"…", "Hi", "Hi\n\nyou"}

    run_virtually(main())


@pytest.mark.parametrize("tokens", [(), ("\n", " ")])
def test_an_empty_reply(tokens):
    """A kind word takes the placeholder's place."""

    async def main():
        page = FakePage()
        reply = await write_reply(page, told(*tokens, text=""))

        assert reply.text == ""
        assert page.messages == [WORDS.empty]

    run_virtually(main())


def test_the_reply_is_another_than_its_tokens():
    """What the server stored is what is shown at the end; what is no longer part of it is said to be so."""

    async def main():
        page = FakePage(limit=60)
        await write_reply(page, told("word " * 10, "word " * 10, "", every=1.0, text="Another."), pace=Pace(every=0.1))

        assert len(page.messages) == 2
        assert page.messages == ["Another.", WORDS.surplus]

    run_virtually(main())


# --- a turn without a reply -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (StreamInterruptedError("x"), WORDS.interrupted),
        (RequestTimeoutError(phase="idle"), WORDS.timed_out),
        (ReplyFailedError("x", reason="y"), WORDS.failed),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_turn_that_fails(error, word):
    """The text so far stays, a kind word follows, and the error is raised."""

    async def main():
        page = FakePage()
        await fails(write_reply(page, told("Half a ", "sentence", error=error)), type(error))

        assert page.messages == [f"Half a sentence\n\n{word}"]

    run_virtually(main())


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (SessionBusyError("x"), WORDS.busy),
        (RateLimitError("x", status=429), WORDS.rate_limited),
        (ConnectError("x"), WORDS.unreachable),
        (InvalidRequestError("x"), WORDS.refused),
        (AheadlessError("http://key@host"), WORDS.failed),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_turn_that_does_not_begin(error, word):
    """Nothing but the kind word is shown, in the placeholder's place."""

    async def main():
        page = FakePage()
        stream = told()
        stream.fail(error)
        await fails(write_reply(page, stream), type(error))

        assert page.messages == [word]

    run_virtually(main())


def test_a_turn_that_fails_within_code():
    """The word about it stands below the code, not in it."""

    async def main():
        page = FakePage()
        await fails(write_reply(page, told("```py\n", "x = 1", error=StreamInterruptedError("x"))), AheadlessError)

        assert page.messages == [f"```py\nx = 1\n```\n\n{WORDS.interrupted}"]

    run_virtually(main())


def test_a_turn_that_is_stopped():
    """The Stop button ends it at once: the text so far stays, and what was stopped is said to be so."""

    async def main():
        page = FakePage()
        stream = told(*["word "] * 1000)
        asyncio.get_running_loop().call_later(3.05, stream.stop)
        stopped = await fails(write_reply(page, stream), StreamStoppedError)

        assert page.messages == [f"{stopped.partial.strip()}\n\n{WORDS.stopped}"]
        assert now() < 3.5

    run_virtually(main())


def test_a_reply_that_could_not_be_saved():
    """It is complete, so all of it is shown; the error that carries it is raised."""

    async def main():
        page = FakePage()
        error = await fails(write_reply(page, told("Hel", "lo", unsaved=StoreError("disk full"))), StoreError)

        assert page.messages == [error.reply.text] == ["Hello"]

    run_virtually(main())


def test_a_turn_that_was_complete_before():
    """A reply that was read already is shown at once."""

    async def main():
        page = FakePage()
        stream = told("Hel", "lo")
        reply = await stream
        assert await write_reply(page, stream) is reply

        assert page.messages == ["Hello"]

    run_virtually(main())


def test_an_error_of_the_caller():
    """What a callback raises comes out, after people were told that something went wrong."""

    async def main():
        page = FakePage()
        stream = told("Hel", "lo")

        class OfTheirsError(Exception):
            pass

        def on_token(text):
            raise OfTheirsError

        stream._callbacks = msgspec.structs.replace(stream._callbacks, on_token=(on_token,))
        with pytest.raises(OfTheirsError):
            await write_reply(page, stream)

        assert page.messages == [f"Hel\n\n{WORDS.failed}"]

    run_virtually(main())


def test_words_of_ones_own():
    """Each can be replaced."""

    async def main():
        page = FakePage()
        words = Words(failed="Das hat nicht geklappt.")
        failing = told(error=ReplyFailedError("x", reason="y"))
        await fails(write_reply(page, failing, words=words, placeholder="Moment …"), ReplyFailedError)

        assert [call.text for call in page.calls] == ["Moment …", "Das hat nicht geklappt."]

    run_virtually(main())


# --- a platform that fails --------------------------------------------------------------------------------------------


def test_too_many_requests():
    """The platform is left alone for as long as it says; then the latest text is shown, and the final one is."""

    async def main():
        page = FakePage()
        page.faults += [None, RetryLater(5.0)]
        reply = await write_reply(page, told(*["word "] * 100), pace=Pace(first=0.1, every=0.5))

        assert page.messages == [reply.text]
        assert page.calls[2].began == pytest.approx(page.calls[1].ended + 5.0)

    run_virtually(main())


def test_too_many_requests_at_the_end():
    """The final text waits for the platform, and comes."""

    async def main():
        page = FakePage()
        page.faults += [None, RetryLater(30.0), RetryLater(20.0)]
        reply = await write_reply(page, told("Hel", "lo"))

        assert page.messages == [reply.text]
        assert now() == pytest.approx(50, abs=1)

    run_virtually(main())


def test_the_final_text_is_tried_again():
    """A platform that fails for some seconds delays the final text, no more."""

    async def main():
        page = FakePage()
        page.faults += [None, *[OSError("down")] * 6]
        reply = await write_reply(page, told("Hel", "lo"))

        assert page.messages == [reply.text]
        assert now() < 30

    run_virtually(main())


@pytest.mark.parametrize("fault", [OSError("down"), RetryLater(7.0), 10_000.0, RetryLater(float("inf"))], ids=repr)
def test_a_platform_that_is_down(fault):
    """The reply travels along with the error, after a limited time; its cause is what the platform said last."""

    async def main():
        page = FakePage()
        page.faults += [fault] * 100
        error = await fails(write_reply(page, told("Hel", "lo")), NotShownError)

        assert error.reply.text == "Hello"
        assert await error.recover() is error.reply
        assert error.session_id == "s"
        assert error.__cause__ is fault or isinstance(error.__cause__, TimeoutError)
        assert now() < 130

    run_virtually(main())


def test_the_error_of_a_reply_that_was_not_shown_can_be_copied():
    """It travels between processes, reply included."""

    async def main():
        page = FakePage()
        page.faults.append(PageRefused("no"))
        return await fails(write_reply(page, told("Hello")), NotShownError)

    error = run_virtually(main())
    copy = pickle.loads(pickle.dumps(error))

    assert (copy.reply, str(copy), copy.delivery) == (error.reply, str(error), error.delivery)


def test_a_page_that_refuses():
    """No further call is made, and the reply is read to its end."""

    async def main():
        page = FakePage()
        page.faults += [None, PageRefused("forbidden")]
        stream = told(*["word "] * 30)
        error = await fails(write_reply(page, stream), NotShownError)

        assert len(page.calls) == 2
        assert error.reply.text == stream.snapshot.strip()
        assert isinstance(error.__cause__, PageRefused)

    run_virtually(main())


def test_a_turn_that_fails_on_a_page_that_refuses():
    """What ended the turn matters more."""

    async def main():
        page = FakePage()
        page.faults += [PageRefused("forbidden")]
        await fails(write_reply(page, told("a", error=StreamInterruptedError("x"))), StreamInterruptedError)

    run_virtually(main())


def test_a_message_that_is_deleted():
    """It is written anew, with all of its text, and edited from then on."""

    async def main():
        page = FakePage()
        stream = told(*["word "] * 30)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write_reply(page, stream, pace=Pace(first=0.1, every=0.5)))
            await page.has(1)
            page.messages[0] = None

        assert page.seen == [writing.result().text]
        assert len(texts(page, "post")) == 2

    run_virtually(main())


def test_a_message_that_is_deleted_of_several():
    """Only its own part is written anew."""

    async def main():
        page = FakePage(limit=40)
        stream = told(*["word "] * 30)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write_reply(page, stream, pace=Pace(first=0.1, every=0.2)))
            await page.has(2)
            page.messages[1] = None

        assert sorted(page.seen) == sorted(part.text for part in cut(writing.result().text, 40))

    run_virtually(main())


def test_messages_that_are_deleted_again_and_again():
    """Whoever does that does not want the reply here."""

    async def main():
        page = FakePage()
        page.faults += [None, *[MessageGone(), None] * 10]
        error = await fails(write_reply(page, told(*["word "] * 300), pace=Pace(every=0.5)), NotShownError)

        assert isinstance(error.__cause__, PageRefused)
        assert len(texts(page, "post")) == 4

    run_virtually(main())


def test_a_call_that_hangs():
    """It is given up, and the final text is shown."""

    async def main():
        page = FakePage()
        page.faults += [None, 10_000.0]
        reply = await write_reply(page, told(*["word "] * 30), pace=Pace(first=0.1))

        assert page.messages == [reply.text]
        assert now() < 25

    run_virtually(main())


def test_a_call_that_is_cancelled_inside_of_the_library():
    """A CancelledError that nobody asked for is a failure like others."""

    async def main():
        page = FakePage()
        page.faults += [None, asyncio.CancelledError()]
        reply = await write_reply(page, told("Hel", "lo"))

        assert page.messages == [reply.text]

    run_virtually(main())


def test_a_page_with_a_bug():
    """Its error is the cause, and the reply is not lost."""

    async def main():
        page = FakePage()
        page.limit = 0
        error = await fails(write_reply(page, told("Hello")), NotShownError)

        assert error.reply.text == "Hello"
        assert "limit" in str(error.__cause__)

    run_virtually(main())


# --- cancelling -------------------------------------------------------------------------------------------------------


@given(at=st.floats(0.0, 8.0), takes=st.sampled_from([0.0, 0.1, 1.0, 5.0]))
def test_cancelled_at_any_moment(at, takes):
    """The turn ends, the text so far is shown if the platform is quick enough, and the cancel goes on, within 2 s."""

    async def main():
        page = FakePage(takes=takes)
        stream = told(*["word "] * 50)
        writing = asyncio.create_task(write_reply(page, stream, pace=Pace(every=0.5)))
        await asyncio.wait([writing], timeout=at)
        if writing.done():
            assert page.messages == [(await writing).text]
            return
        writing.cancel()
        cancelled_at = now()
        with pytest.raises(asyncio.CancelledError):
            await writing

        assert now() <= cancelled_at + CANCEL_WITHIN + 0.001
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        if takes < 1:
            assert len(page.messages) == 1
            text = stream.snapshot.strip()
            whole = stream.state.name == "DONE"
            assert page.messages[0] == (text if whole else f"{text}\n\n{WORDS.stopped}" if text else WORDS.stopped)

    run_virtually(main())


def test_cancelled_twice():
    """The second one does not wait for the platform."""

    async def main():
        page = FakePage(takes=1.5)
        writing = asyncio.create_task(write_reply(page, told(*["word "] * 50)))
        await asyncio.sleep(3.0)
        writing.cancel()
        await asyncio.sleep(0.01)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

        assert now() == pytest.approx(3.01)

    run_virtually(main())


def test_the_event_loop_shuts_down():
    """It cancels all tasks at once, the one that edits included; the text so far is shown all the same."""
    page = FakePage()
    stream = told(*["word "] * 50)

    async def main():
        writing.append(asyncio.create_task(write_reply(page, stream)))
        await asyncio.sleep(3.0)

    writing: list[asyncio.Task[Reply]] = []
    run_virtually(main())

    assert writing[0].cancelled()
    assert page.messages == [f"{stream.snapshot.strip()}\n\n{WORDS.stopped}"]


def test_a_deleted_message_of_text_that_is_no_longer_part_of_the_reply():
    """Nothing is written in its place."""

    async def main():
        page = FakePage(limit=60)
        page.faults += [None, None, None, None, None, MessageGone()]
        await write_reply(page, told("word " * 10, "word " * 10, "", every=1.0, text="Another."), pace=Pace(every=0.1))

        assert page.messages[0] == "Another."
        assert [call.text for call in page.calls[-2:]] == ["Another.", WORDS.surplus]

    run_virtually(main())


def test_the_editing_task_is_cancelled_by_somebody():
    """The reply is not taken for one that is shown."""

    async def main():
        page = FakePage()
        writing = asyncio.create_task(write_reply(page, told(*["word "] * 10)))
        await asyncio.sleep(0.5)
        [editing] = asyncio.all_tasks() - {writing, asyncio.current_task()}
        editing.cancel()
        with pytest.raises(NotShownError):
            await writing

    run_virtually(main())


def test_a_time_limit_around_it():
    """`asyncio.timeout` works as around anything else."""

    async def main():
        page = FakePage()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.0):
                await write_reply(page, told(*["word "] * 50))

        assert page.seen[0].endswith(WORDS.stopped)

    run_virtually(main())


# --- all at once ------------------------------------------------------------------------------------------------------

FAULTS = st.one_of(
    st.none(),
    st.sampled_from([0.0, 0.5, 3.0, 100.0]),
    st.builds(RetryLater, st.sampled_from([0.0, 1.0, 4.0, -1.0, float("nan")])),
    st.builds(OSError),
    st.builds(MessageGone),
)


@given(
    tokens=st.lists(st.sampled_from(["word ", "\n\n", "```py\n", "\n```\n", "x" * 30, "- item\n", "é"]), max_size=60),
    faults=st.lists(FAULTS, max_size=12),
    limit=st.integers(30, 100),
    takes=st.sampled_from([0.0, 0.1, 1.0]),
    every=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_any_reply_on_a_platform_with_any_faults(tokens, faults, limit, takes, every):
    """The reply is whole on the page, in the parts of the splitter, or travels along with the error."""

    async def main():
        page = FakePage(limit=limit, takes=takes)
        page.faults += faults
        stream = told(*tokens, every=every)
        [outcome] = await asyncio.gather(
            write_reply(page, stream, pace=Pace(first=0.2, every=0.7)), return_exceptions=True
        )

        reply = await stream
        gone = sum(isinstance(fault, MessageGone) for fault in faults)
        if isinstance(outcome, NotShownError):
            assert gone > 3 or len(faults) >= ATTEMPTS
            assert outcome.reply is reply
        else:
            assert outcome is reply
            parts = [part.text for part in cut(reply.text, limit) if part.text.strip()] or [WORDS.empty]
            # A message that was said to be gone, but is there, stays beside the one that took its place.
            assert len(page.messages) <= len(parts) + gone
            assert {*parts} <= {*page.messages}
        assert now() < 300

    run_virtually(main())
