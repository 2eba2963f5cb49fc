"""Kill workers at random while users talk: four processes share their sessions and one rate limit by way of Redis.

At the end the server's history must have each question once, in order, with its own answer, and no request may have
been answered with 429. The exit code says whether it is so. It needs `redis-server` and the extra `redis`; it starts
everything else by itself, and ends it.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from aiohttp import web

from aheadless import AheadlessError, Chat, ChatClient, Delivery, Message, RateLimit
from aheadless.server import EchoEngine, ServerSettings, create_app
from aheadless.stores import RedisStore

USERS = 8
LEASE = 5.0  # seconds after which the session of a worker that was killed is free
DRAIN = 200.0  # seconds for the questions that are still open at the end: up to three windows of the rate limit

# --- a worker: reads questions from its standard input, writes what became of them ------------------------------------


async def work(redis: str, limit: int) -> None:
    store = RedisStore(redis, lease_seconds=LEASE)
    async with (
        ChatClient(  # address and keys are in the environment
            store=store, rate_limit=RateLimit(limit, per=60), max_wait=DRAIN, recovery="auto"
        ) as client,
        asyncio.TaskGroup() as questions,
    ):
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            questions.create_task(answer(client.chat(json.loads(line)["session"]), **json.loads(line)))


async def answer(chat: Chat, *, session: str, text: str, again: bool) -> None:
    try:
        asked = await last_asked(chat, text) if again else None
        if asked is None or asked.delivery is Delivery.REJECTED:
            fate, reply = "asked", (await chat.stream(text)).text
        elif asked.status == "complete":
            fate, reply = "found", chat.messages[chat.messages.index(asked) + 1].text
        else:
            fate, reply = f"unknown: {asked.status}, {asked.delivery.value}", ""  # so it must not be sent again
    except AheadlessError as error:
        fate, reply = f"failed: {error} ({error.delivery.value})", ""
    print(json.dumps({"session": session, "text": text, "fate": fate, "reply": reply}), flush=True)


async def last_asked(chat: Chat, text: str) -> Message | None:
    """Return what has become of a question that was given to a worker which is dead; None if that never began."""
    while True:
        for turn in await chat.pending():
            await turn.recover()  # reads the server's history until it is certain
        asked = [message for message in chat.messages if (message.role, message.text) == ("user", text)]
        if not asked or asked[-1].status != "pending":
            return asked[-1] if asked else None
        await asyncio.sleep(LEASE / 10)  # the dead worker's lease has not run out


# --- the parent: the server, Redis, the users, and the one who kills --------------------------------------------------


class SlowEcho(EchoEngine):
    """Let an answer take a second, so that workers are killed in the middle of it."""

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        async for word in super().reply(history):
            await asyncio.sleep(0.2)
            yield word


@asynccontextmanager
async def run_api(limit: int, answers: Counter[int]) -> AsyncIterator[dict[str, str]]:
    """Run the API, count its answers to questions by their status, and yield what a client has to know."""
    keys = {"AHEADLESS_API_KEY": secrets.token_urlsafe(), "AHEADLESS_ADMIN_KEY": secrets.token_urlsafe()}

    async def count(request: web.Request, response: web.StreamResponse) -> None:
        answers[response.status] += request.method == "POST"

    app = create_app(
        ServerSettings(
            api_key=keys["AHEADLESS_API_KEY"],
            admin_key=keys["AHEADLESS_ADMIN_KEY"],
            engine=SlowEcho(),
            database=":memory:",
            rate_limit=RateLimit(limit, per=60),
        )
    )
    app.on_response_prepare.append(count)
    runner = web.AppRunner(app, keepalive_timeout=6)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield {"AHEADLESS_BASE_URL": "http://127.0.0.1:{1}".format(*runner.addresses[0]), **keys}
    finally:
        await runner.cleanup()


@asynccontextmanager
async def run_redis() -> AsyncIterator[str]:
    """Run a Redis server of our own, which keeps nothing, and yield its URL."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("redis-server is not installed: `apt-get install redis-server` or `brew install redis`")
    with TemporaryDirectory() as folder:
        path = Path(folder, "redis.sock")
        options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", folder)
        server = await asyncio.create_subprocess_exec(program, *options, stdout=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(30):
                while not path.is_socket():  # noqa: ASYNC240 - it is a temporary folder, not a network's
                    if server.returncode is not None:
                        sys.exit("redis-server ended at once")
                    await asyncio.sleep(0.05)
            yield f"unix://{path}"
        finally:
            if server.returncode is None:
                server.kill()
            await server.wait()


class Crowd:
    """The workers, and the users whom they serve."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], options: argparse.Namespace) -> None:
        self.command = command
        self.environment = environment
        self.options = options
        self.random = random.Random(options.seed)
        self.closing = asyncio.Event()
        self.asked: dict[str, list[str]] = {f"user-{number}": [] for number in range(1, USERS + 1)}
        self.counts: Counter[str] = Counter()
        self.workers: list[asyncio.subprocess.Process] = []
        self.open: dict[str, tuple[asyncio.subprocess.Process, asyncio.Future[dict[str, str] | None]]] = {}

    async def talk(self) -> None:
        """Return when all that was asked in `--seconds` is answered."""
        async with asyncio.TaskGroup() as tasks:
            keeping = [tasks.create_task(self.keep_worker()) for _ in range(self.options.workers)]
            while len(self.workers) < self.options.workers:
                await asyncio.sleep(0.05)
            killing = tasks.create_task(self.kill())
            progress = tasks.create_task(self.show_progress())
            async with asyncio.timeout(self.options.seconds + DRAIN), asyncio.TaskGroup() as users:
                for session in self.asked:
                    users.create_task(self.ask(session))
                await asyncio.sleep(self.options.seconds)
                self.closing.set()
                killing.cancel()
            for task in (*keeping, progress):
                task.cancel()

    async def ask(self, session: str) -> None:
        """Be a user: think, ask, wait for the answer; all together are faster than the limit allows."""
        while not await self.thought():
            text = f"{session} asks question {len(self.asked[session]) + 1}"
            self.asked[session].append(text)
            told = await self.give(session, text, again=False)
            if told is None:  # its worker was killed
                self.counts["cut"] += 1
                while told is None:
                    told = await self.give(session, text, again=True)
                self.counts[f"cut, then {told['fate']}"] += 1
            if told["fate"] not in {"asked", "found"}:
                print(f"{text}: {told['fate']}")
            self.counts["answered"] += told["reply"] == text

    async def thought(self) -> bool:
        """Think for a while, and return whether it is time to go."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.expovariate(self.options.limit / 120)):
                await self.closing.wait()
        return self.closing.is_set()

    async def give(self, session: str, text: str, *, again: bool) -> dict[str, str] | None:
        """Give a question to a worker and return what it tells; None if it dies before."""
        while not self.workers:
            await asyncio.sleep(0.05)
        worker = self.random.choice(self.workers)
        told: asyncio.Future[dict[str, str] | None] = asyncio.get_running_loop().create_future()
        self.open[text] = worker, told
        assert worker.stdin is not None
        worker.stdin.write(json.dumps({"session": session, "text": text, "again": again}).encode() + b"\n")
        return await told

    async def keep_worker(self) -> None:
        """Start a worker, and the next one whenever it is killed."""
        pipe = asyncio.subprocess.PIPE
        while True:
            worker = await asyncio.create_subprocess_exec(*self.command, stdin=pipe, stdout=pipe, env=self.environment)
            try:
                await self.listen(worker)
            finally:
                kill(worker)
                await worker.wait()

    async def listen(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None
        if not await worker.stdout.readline():
            sys.exit("a worker does not start")
        self.workers.append(worker)
        async for line in worker.stdout:
            if line.endswith(b"\n"):  # or it was killed in the middle of it
                told = json.loads(line)
                self.open.pop(told["text"])[1].set_result(told)
        if worker in self.workers:
            self.workers.remove(worker)
        for text, (its, told) in [*self.open.items()]:
            if its is worker:
                del self.open[text]
                told.set_result(None)

    async def kill(self) -> None:
        """Kill a worker at random, now and then."""
        fate = random.Random(self.options.seed)  # its own, so that the same seed kills at the same times
        while True:
            await asyncio.sleep(fate.expovariate(1 / self.options.kill_every))
            if self.workers:
                worker = fate.choice(self.workers)
                self.workers.remove(worker)
                kill(worker)
                self.counts["killed"] += 1

    async def show_progress(self) -> None:
        begun = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(5)
            seconds = asyncio.get_running_loop().time() - begun
            asked = sum(map(len, self.asked.values()))
            doing = "waiting for the last answers" if self.closing.is_set() else "talking"
            counts = f"{asked} asked, {self.counts['answered']} answered, {self.counts['killed']} workers killed"
            print(f"{seconds:4.0f} s  {doing}: {counts}", flush=True)


def kill(worker: asyncio.subprocess.Process) -> None:
    # Not its own kill(): that takes the exit status away from asyncio if the process has just ended.
    if worker.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


async def report(crowd: Crowd, answers: Counter[int], client: ChatClient) -> bool:
    """Compare the server's history with what was asked, and print both."""
    page = await client.admin.conversations(limit=200)
    ids = {conversation.session_id: conversation.id for conversation in page.conversations}
    all_well = len(ids) == page.total
    print(f"\n{'session':9} {'asked':>5} {'stored':>6}  each once, in order, with its own answer")
    for session, asked in crowd.asked.items():
        thread = (await client.admin.conversation(ids[session])).messages if session in ids else ()
        stored = [(message.role, message.content) for message in thread]
        well = stored == [(role, text) for text in asked for role in ("user", "assistant")]
        all_well &= well
        count = sum(role == "user" for role, _ in stored)
        print(f"{session:9} {len(asked):5} {count:6}  {'yes' if well else f'NO: {stored}'}")
    counts = crowd.counts
    print(f"{counts['killed']} workers killed, in whose hands were {counts['cut']} questions: of these")
    print(f"  {counts['cut, then found']} were on the server, and their answers were read back,")
    print(f"  {counts['cut, then asked']} had not got there, and were asked again")
    print(
        "answers by status:", ", ".join(f"{status}: {count}" for status, count in sorted({429: 0, **answers}.items()))
    )
    total = sum(map(len, crowd.asked.values()))
    return all_well and counts["answered"] == total > 0 and not answers[429]


async def main(options: argparse.Namespace) -> bool:
    print(f"seed {options.seed}: {options.workers} workers, {USERS} users, {options.limit} questions a minute")
    answers: Counter[int] = Counter()
    async with run_redis() as redis, run_api(options.limit, answers) as known:
        command = sys.executable, __file__, "--worker", redis, "--limit", str(options.limit)
        crowd = Crowd(command, {**os.environ, **known}, options)
        await crowd.talk()
        async with ChatClient(known["AHEADLESS_BASE_URL"], admin_key=known["AHEADLESS_ADMIN_KEY"]) as client:
            return await report(crowd, answers, client)


parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
parser.add_argument("--seconds", type=float, default=60, help="for how long users talk and workers are killed")
parser.add_argument("--workers", type=int, default=4)
parser.add_argument("--kill-every", type=float, default=2, metavar="SECONDS", help="on the average")
parser.add_argument("--limit", type=int, default=30, help="how many questions a minute the server takes")
parser.add_argument("--seed", type=int, default=random.randrange(1000))
parser.add_argument("--worker", metavar="REDIS", help=argparse.SUPPRESS)
arguments = parser.parse_args()
if arguments.worker:
    asyncio.run(work(arguments.worker, arguments.limit))
else:
    sys.exit(0 if asyncio.run(main(arguments)) else 1)
