"""The plan of a reply in Slack: whatever Slack does, in the end its messages say what the reply says."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.bridges._slack_calls import (
    Append,
    Delete,
    Post,
    Problem,
    RateLimited,
    Refused,
    Start,
    Step,
    Stop,
    Unclear,
    Update,
)
from aheadless.bridges._slack_plan import SlackPace, SlackPlan, presentable
from tests.bridges.slack_platform import PING

PACE = SlackPace()


@attrs.define
class Model:
    """Slack, as far as a plan can see it."""

    plan: SlackPlan
    now: float = 0.0
    shown: dict[str, str] = attrs.field(factory=dict)
    open: dict[str, float] = attrs.field(factory=dict)
    steps: list[Step] = attrs.field(factory=list)
    seen: list[str] = attrs.field(factory=list)
    count: int = 0

    def apply(self, step: Step) -> tuple[str, Problem | None]:
        """Do what a step says, as Slack does; return the new message's name, or why not."""
        self.open = {ts: since for ts, since in self.open.items() if self.now - since < 300}
        match step:
            case Start(text) | Post(text):
                self.count += 1
                ts = str(self.count)
                self.shown[ts] = text
                self.seen.append(text)
                if isinstance(step, Start):
                    self.open[ts] = self.now
                return ts, None
            case _ if step.ts not in self.shown:
                return "", Refused("message_not_found")
            case Append() | Stop() if step.ts not in self.open:
                return "", Refused("message_not_in_streaming_state")
            case Append(ts, text):
                self.shown[ts] += text
            case Stop(ts, text):
                self.shown[ts] += text
                del self.open[ts]
            case Update(ts, _) if ts in self.open:
                return "", Refused("streaming_state_conflict")
            case Update(ts, text):
                self.shown[ts] = text
            case Delete(ts):
                del self.shown[ts]
        self.seen += self.shown.values()
        return "", None

    def go(self, text: str, *, outcome: str = "fine") -> Step | None:
        """Make one step when it is due, with this outcome."""
        step = self.plan.step(text, self.now)
        if step is None:
            return None
        self.now = max(self.now, self.plan.due(step))
        if (step := self.plan.step(text, self.now)) is None:
            return None
        self.steps.append(step)
        if outcome == "limited":
            self.plan.failed(step, RateLimited(1.0), self.now)
        elif outcome == "not sent":
            self.plan.failed(step, Unclear(), self.now)
        elif outcome == "refused":
            if isinstance(step, Append | Stop):
                self.open.pop(step.ts, None)  # that is what such a refusal means
            self.plan.failed(step, Refused("invalid_arguments"), self.now)
        else:
            ts, problem = self.apply(step)
            if outcome == "answer lost":
                self.plan.failed(step, Unclear(), self.now)
            elif problem is not None:
                self.plan.failed(step, problem, self.now)
            else:
                self.plan.done(step, self.now, ts=ts)
        return step

    def finish(self, text: str) -> list[str]:
        """Go on until the plan is through; return what the messages show."""
        self.plan.finish(self.now, within=90)
        for _ in range(200):
            if self.go(text) is None:
                return [*self.shown.values()]
        raise AssertionError(f"never through: {self.steps[-6:]}")


def grow(model: Model, *texts: str, pause: float = 0.6) -> None:
    for text in texts:
        model.go(text)
        model.now += pause


def ends_in_code(text: str) -> bool:
    code = False
    for line in text.splitlines():
        if line.startswith("```"):
            code = line.strip() != "```" if code else True
    return code


# --- the usual way ----------------------------------------------------------------------------------------------------


def test_first_words():
    """They begin a stream at once, however few they are."""
    plan = SlackPlan(PACE)

    step = plan.step("Hi", 100.0)

    assert step == Start("Hi")
    assert plan.due(step) <= 100.0


def test_words_that_follow():
    """Only they are sent, no sooner than the pace lets them."""
    model = Model(SlackPlan(PACE))
    model.go("Hi")

    step = model.plan.step("Hi there", 0.0)

    assert step == Append("1", " there")
    assert model.plan.due(step) == pytest.approx(0.6)


def test_end():
    """The last words come with the end of the stream, at once: three calls for a reply."""
    model = Model(SlackPlan(PACE))
    grow(model, "Hi", "Hi there")

    assert model.finish("Hi there, you") == ["Hi there, you"]
    assert model.steps == [Start("Hi"), Append("1", " there"), Stop("1", ", you")]


def test_whole_reply_at_once():
    """What is complete before anything was shown is one message, and no stream."""
    model = Model(SlackPlan(PACE))

    assert model.finish("Hi") == ["Hi"]
    assert model.steps == [Post("Hi")]


def test_nothing_new():
    """There is no step for a text that is shown."""
    model = Model(SlackPlan(PACE))
    model.go("Hi")

    assert model.plan.step("Hi", 5.0) is None


def test_code_block_that_grows():
    """It is not closed while it grows, and is at the end."""
    model = Model(SlackPlan(PACE))
    grow(model, "```py\na", "```py\na = 1\nb")

    assert model.shown == {"1": "```py\na = 1\nb"}
    assert model.finish("```py\na = 1\nb = 2\n```") == ["```py\na = 1\nb = 2\n```"]


def test_message_before_there_is_text():
    """In a hurry a stream begins empty; where there are none, with the placeholder, which the text replaces."""
    assert SlackPlan(PACE).step("", 0.0, hurry=True) == Start("")
    model = Model(SlackPlan(PACE, native=False))
    post = model.plan.step("", 0.0, hurry=True)
    assert post == Post("…")

    model.plan.done(post, 0.0, ts=model.apply(post)[0])

    assert model.plan.step("", 9.0, hurry=True) is None
    assert model.finish("Hi") == ["Hi"]


def test_message_that_stays_without_text():
    """Its stream is closed in time as well; the text that comes at last is an edit."""
    model = Model(SlackPlan(PACE))
    begin = model.plan.step("", 0.0, hurry=True)
    assert begin is not None
    model.plan.done(begin, 0.0, ts=model.apply(begin)[0])
    assert model.plan.step("", 229.0, hurry=True) is None

    close = model.plan.step("", 230.0, hurry=True)
    assert close == Stop("1", "")
    model.plan.done(close, 230.0, ts=model.apply(close)[0])

    assert model.plan.closes_at() is None
    assert model.plan.step("", 999.0, hurry=True) is None
    assert model.plan.step("Hi", 999.0, hurry=True) == Update("1", "Hi")


# --- length -----------------------------------------------------------------------------------------------------------


def test_text_over_the_limit_while_it_grows():
    """A message that is full is closed, and the next one begun; nothing is lost or said twice."""
    words = [f"word{number}" for number in range(60)]
    model = Model(SlackPlan(PACE, limit=100))

    grow(model, *(" ".join(words[:end]) for end in range(1, 61)))
    shown = model.finish(" ".join(words))

    assert len(shown) > 4
    assert max(map(len, shown)) <= 100
    assert " ".join(shown).split() == words


def test_long_text_at_once():
    """It is posted in parts."""
    words = [f"word{number}" for number in range(60)]
    model = Model(SlackPlan(PACE, limit=100))

    shown = model.finish(" ".join(words))

    assert {type(step) for step in model.steps} == {Post}
    assert " ".join(shown).split() == words


def test_code_block_over_the_limit():
    """It is closed in the one message and opened again, with its language, in the next."""
    lines = [f"line_{number} = {number}" for number in range(30)]
    text = "```py\n" + "\n".join(lines) + "\n```"
    model = Model(SlackPlan(PACE, limit=100))

    grow(model, *(text[:end] for end in range(5, len(text), 7)))
    shown = model.finish(text)

    assert all(message.startswith("```py\n") and message.endswith("\n```") for message in shown)
    assert [line for message in shown for line in message.splitlines() if not line.startswith("```")] == lines


def test_much_white_space():
    """No message is blank: Slack takes none."""
    model = Model(SlackPlan(PACE, limit=100))

    assert [message.strip() for message in model.finish("One" + "\n" * 500 + "two")] == ["One", "two"]


# --- age --------------------------------------------------------------------------------------------------------------


def test_stream_that_grows_old():
    """At the next line its message is complete, and a new stream goes on."""
    model = Model(SlackPlan(PACE))
    grow(model, "One", pause=201)

    grow(model, "One line", "One line.\n\nTwo", "One line.\n\nTwo lines")

    assert model.shown == {"1": "One line.", "2": "Two lines"}
    assert [*model.open] == ["2"]
    assert model.finish("One line.\n\nTwo lines.") == ["One line.", "Two lines."]


def test_stream_that_grows_old_in_a_code_block():
    """It is not rolled over there: it is closed in time, and goes on as edits of the same message."""
    model = Model(SlackPlan(PACE))
    grow(model, "```\na", pause=201)
    grow(model, "```\na\nb", pause=30)

    grow(model, "```\na\nb\nc", "```\na\nb\nc\nd")

    assert model.shown == {"1": "```\na\nb\nc\nd\n```"}
    assert model.finish("```\na\nb\nc\nd\n```\nend") == ["```\na\nb\nc\nd\n```\nend"]
    assert {type(step) for step in model.steps} == {Start, Append, Stop, Update}


def test_stream_that_grows_old_in_a_long_code_block():
    """What goes on in a second message is code there from its first line on: that is no place for a third one."""
    lines = [f"line {number}" for number in range(30)]
    text = "```\n" + "\n".join(lines)
    model = Model(SlackPlan(PACE, limit=150))
    grow(model, text[:160], text[:160], text[:160])
    assert len(model.shown) == 2
    model.now += 201

    grow(model, text[:180], text[:200], text[:220], text[:220])

    assert len(model.shown) == 2
    assert not any(ends_in_code(message) for message in model.finish(f"{text}\n```"))


def test_stream_that_grows_old_in_silence():
    """It is closed in time although nothing comes."""
    model = Model(SlackPlan(PACE))
    model.go("One")

    assert model.plan.closes_at() == pytest.approx(230)
    assert model.plan.step("One", 229.0) is None
    assert model.plan.step("One", 230.0) == Stop("1", "")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_stream_that_slack_closed():
    """The message goes on by edits, at their slower pace."""
    model = Model(SlackPlan(PACE))
    model.go("One")
    model.open.clear()
    model.go("One two")

    step = model.plan.step("One two", model.now)

    assert step == Update("1", "One two")
    assert model.plan.due(step) >= model.now + 1.2 - 1e-6
    assert model.finish("One two three") == ["One two three"]


def test_append_whose_answer_was_lost():
    """Nothing is appended to a text that nobody knows: the stream is closed, the message gets the whole text."""
    model = Model(SlackPlan(PACE))
    model.go("One")
    model.go("One two", outcome="answer lost")

    assert model.finish("One two three") == ["One two three"]
    assert model.steps[2:] == [Stop("1", ""), Update("1", "One two three")]


def test_no_streams():
    """Where Slack refuses to begin one, the message is posted and edited."""
    model = Model(SlackPlan(PACE))
    model.go("One", outcome="refused")
    grow(model, "One", "One two", pause=2)

    assert model.finish("One two three") == ["One two three"]
    assert [type(step) for step in model.steps] == [Start, Post, Update, Update]


def test_no_messages_at_all():
    """Where Slack refuses to post, nothing is left to do, and it is told why."""
    model = Model(SlackPlan(PACE, native=False))
    model.go("One", outcome="refused")

    assert model.plan.refused == "invalid_arguments"
    model.plan.finish(99.0, within=90)
    assert model.plan.step("One two", 99.0) is None


def test_rate_limit():
    """A 429 is waited out, the newest text goes then, and later steps come at half the pace."""
    model = Model(SlackPlan(PACE))
    model.go("One")
    model.now = 0.6
    model.go("One two", outcome="limited")

    step = model.plan.step("One two three", model.now)
    assert step == Append("1", " two three")
    assert model.plan.due(step) == pytest.approx(0.6 + 1.2)
    assert model.finish("One two three") == ["One two three"]
    assert model.now == pytest.approx(1.6)


def test_message_that_was_deleted():
    """What it said is said anew."""
    model = Model(SlackPlan(PACE))
    model.go("One")
    del model.shown["1"]
    grow(model, "One two", "One two")

    assert model.finish("One two three") == ["One two three"]


def test_message_that_cannot_be_edited():
    """The final text comes in a message of its own, and no unfinished one before it."""
    model = Model(SlackPlan(PACE, native=False))
    model.go("One")
    model.go("One two", outcome="refused")

    assert model.plan.step("One two", 99.0) is None
    assert model.finish("One two three") == ["One", "One two three"]


def test_reply_that_differs_from_its_tokens():
    """A reply that was read back from the server replaces what was shown."""
    model = Model(SlackPlan(PACE, limit=20))
    grow(
        model,
        "One two",
        "One two three four five six",
        "One two three four five six",
        "One two three four five six seven",
    )

    assert model.finish("Another one") == ["Another one"]


def test_reply_that_differs_after_a_roll_over():
    """The messages before it are corrected as well, and what is too many taken away."""
    model = Model(SlackPlan(PACE))
    grow(model, "One", pause=201)
    grow(model, "One.\nTwo", "One.\nTwo", "One.\nTwo three")
    assert model.shown == {"1": "One.", "2": "Two three"}

    assert model.finish("Another one") == ["Another one"]


def test_slack_that_contradicts_itself():
    """A message that is in no stream and cannot be edited because of its stream: that is not tried for ever."""
    plan = SlackPlan(PACE)
    start = plan.step("One", 0.0)
    assert start is not None
    plan.done(start, 0.0, ts="1")
    plan.finish(0.0, within=90)

    steps = 0
    now = 0.0
    while not plan.exhausted and (step := plan.step("One two", now)) is not None:
        now = max(now, plan.due(step))
        code = "message_not_in_streaming_state" if isinstance(step, Stop) else "streaming_state_conflict"
        plan.failed(step, Refused(code), now)
        steps += 1

    assert plan.exhausted
    assert steps < 20


def test_failures_that_do_not_end():
    """A whole text is tried seven times; what failed before it was whole does not count."""
    model = Model(SlackPlan(PACE))
    for _ in range(9):
        model.go("One", outcome="not sent")
    assert not model.plan.exhausted
    model.plan.finish(model.now, within=90)

    for _ in range(7):
        assert not model.plan.exhausted
        model.go("One", outcome="not sent")

    assert model.plan.exhausted


def test_messages_that_are_deleted_again_and_again():
    """After the fourth one nothing is shown before the text is whole."""
    model = Model(SlackPlan(PACE))
    for end in range(1, 30):
        model.go("word " * end)
        model.shown.clear()

    begun = model.count
    assert begun == 4
    assert model.finish("Words") == ["Words"]


def test_message_that_is_too_long_for_slack():
    """Whatever Slack counts: shorter ones are tried."""
    model = Model(SlackPlan(PACE, native=False, limit=4000))
    text = "word " * 700
    step = model.plan.step(text, 0.0)
    assert step is not None

    model.plan.failed(step, Refused("msg_too_long"), 0.0)

    shown = model.finish(text)
    assert [len(message) <= 2000 for message in shown] == [True, True]
    assert " ".join(shown).split() == text.split()


# --- mentions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mention", ["<!channel>", "<!here|here>", "<!everyone>", "<!subteam^S0123>", "<@U0123>", "<@W0123|name>"]
)
def test_mention(mention: str):
    """It is read as it was written, and notifies nobody."""
    shown = presentable(f"Hey {mention}!", final=True)

    assert not PING.search(shown)
    assert shown.replace("\u2060", "") == f"Hey {mention}!"


@pytest.mark.parametrize(
    "text", ["<https://example.org|a link>", "List<@NonNull String>", "<!-- a comment -->", "a < b", "<!doctype html>"]
)
def test_other_angle_brackets(text: str):
    """They stay as they are."""
    assert presentable(text, final=True) == text


@given(st.text(st.sampled_from("<@!Uchanelr 9a")), st.integers(0, 40))
def test_mention_in_pieces(text: str, end: int):
    """However a text is cut, what is shown first begins what is shown last."""
    assert presentable(text, final=True).startswith(presentable(text[:end], final=False))


# --- properties -------------------------------------------------------------------------------------------------------

LINE = st.sampled_from(
    ["Some words", "```py", "```", "- an item", "", "a", "some more words here", "<!channel> <@U123>"]
)
TEXT = st.lists(LINE, max_size=30).map("\n".join).map(str.strip).filter(bool)
OUTCOME = st.sampled_from(["fine", "fine", "fine", "limited", "not sent", "answer lost", "refused"])


def words(text: str) -> list[str]:
    """Return the words that are not marks of a code block."""
    return [word for word in text.split() if not word.startswith("```")]


@given(text=TEXT, data=st.data(), native=st.booleans(), limit=st.integers(30, 120))
def test_any_failures_on_the_way(text: str, data: st.DataObject, native: bool, limit: int):
    """Once Slack works again, each word is there once, in order, in messages within the limit and with whole code blocks."""
    model = Model(SlackPlan(PACE, native=native, limit=limit))
    ends = sorted(data.draw(st.lists(st.integers(1, len(text)), max_size=12)))
    for end in ends:
        shown = text[:end].strip()
        if not shown:
            continue
        outcome = data.draw(OUTCOME)
        step = model.plan.step(shown, model.now)
        if isinstance(step, Start | Post) and outcome == "answer lost":
            outcome = "fine"  # nobody could know of that message: it has a test of its own
        if isinstance(step, Post) and outcome == "refused":
            outcome = "limited"
        if isinstance(step, Update) and outcome == "refused":
            outcome = "not sent"
        model.go(shown, outcome=outcome)
        model.now += data.draw(st.sampled_from([0.1, 1.0, 60.0, 150.0, 400.0]))

    messages = model.finish(text)

    assert words("\n".join(messages).replace("\u2060", "")) == words(text)
    assert not any(PING.search(message) for message in model.seen)
    assert max(map(len, messages)) <= limit
    assert not model.open
    assert not any(ends_in_code(message) for message in messages)
