"""The configurations of docs/howto/nginx.md, in a real nginx: what they pass on, and what they do not keep back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import expect

from aheadless import ChatClient, RateLimit, Token
from aheadless.bridges.aiohttp import stream_response
from aheadless.bridges.web import to_sse
from aheadless.server import RunningServer, ScriptedEngine, ServerSettings, run_server
from aheadless.testing import Script, ScriptedServer, events, stream_answer
from tests.bridges.page.support import Held, answer, ask, chromium, environment, open_page, visitor
from tests.bridges.page.support import serve as serve_page
from tests.support import KEY
from tests.test_docs import DOCS, code_blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sockets,
    pytest.mark.skipif(sys.platform != "linux", reason="clients have several addresses of loopback"),
]

PAGE: Final = DOCS / "howto" / "nginx.md"
FILES: Final = {
    re.findall(r"upstream (\w+)", code)[0]: code for language, code in code_blocks(PAGE) if language == "nginx"
}

LISTENS: Final = re.compile(r"(?<=^    listen )\d+", re.MULTILINE)

# Nothing is written outside of the test's folder.
AROUND: Final = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr warn;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {site}
}}
"""


# It ends with whoever started it, however that ends: a shell waits for a line, or the end of its input.
UNTIL_THE_END: Final = '"$@" & read -r _; kill $!; wait $!'


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def site(name: str, upstream: str, ports: Sequence[int], folder: Path, authority: trustme.CA) -> str:
    """Return a file of the page with the ports, the certificate and the upstream of a test, and nothing else changed."""
    names = ("127.0.0.1", *re.findall(r"server_name (\S+);", FILES[name]))
    authority.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    text, certificates = re.subn(r"/etc/ssl/[\w.]+", str(folder / "both.pem"), FILES[name])
    text, upstreams = re.subn(
        r"server 127\.0\.0\.1:\d+;", f"server {upstream.removeprefix('http://').rstrip('/')};", text
    )
    free = iter(ports)
    text, listening = LISTENS.subn(lambda _: f"127.0.0.1:{next(free)}", text)
    assert (certificates, upstreams, listening) == (2, 1, len(ports))
    return text


@asynccontextmanager
async def nginx(name: str, upstream: str, folder: Path, authority: trustme.CA, **changes: str) -> AsyncIterator[str]:
    """Run nginx with a file of the page, in which directives are changed, and give the URL of its https."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "there is no nginx: run scripts/install_services.sh, which installs it or says how"
    # Sockets that listen already: nginx takes them over, and nobody has to look when it has started.
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in LISTENS.findall(FILES[name])]
    for sock in sockets:
        sock.setblocking(False)  # noqa: FBT003 - socket's signature
    text = site(name, upstream, [sock.getsockname()[1] for sock in sockets], folder, authority)
    for directive, arguments in changes.items():
        text, changed = re.subn(rf"\b{directive} [^;]+;", f"{directive} {arguments};", text)
        assert changed == 1, directive
    config = folder / "nginx.conf"
    config.write_text(AROUND.format(folder=folder, site=text), "utf-8")
    running = await asyncio.create_subprocess_exec(
        *("sh", "-c", UNTIL_THE_END, "sh", program, "-e", "stderr", "-p", folder, "-c", config),
        env={"NGINX": "".join(f"{sock.fileno()};" for sock in sockets)},
        pass_fds=[sock.fileno() for sock in sockets],
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    port = sockets[-1].getsockname()[1]
    for sock in sockets:
        sock.close()
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        _, said = await running.communicate(b"\n")
        assert b"[emerg]" not in said, said.decode()  # also when that is why the test has failed


def serve_api(**settings: Any) -> AbstractAsyncContextManager[RunningServer]:
    """Run the API server with some settings."""
    return run_server(ServerSettings(**{"port": 0, "api_key": KEY, "engine": "echo", "rate_limit": None, **settings}))


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def hold(count: int) -> tuple[ScriptedEngine, list[asyncio.Event]]:
    """Return a model that says a word for each event that is set, and the events."""
    gates = [asyncio.Event() for _ in range(count)]
    steps = [step for number, gate in enumerate(gates) for step in (gate, f"{number} ")]
    return ScriptedEngine(steps), gates


def from_address(address: str, trusting: ssl.SSLContext) -> aiohttp.ClientSession:
    """Return what asks from an address of loopback."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(address, 0), ssl=trusting))


async def ask_from(address: str, url: str, trusting: ssl.SSLContext, **headers: str) -> int:
    """Ask from an address of loopback, and return the status."""
    async with from_address(address, trusting) as http:
        body = {"sessionId": "s", "message": "Hi"}
        async with http.post(f"{url}/v1/chat", json=body, headers={"x-api-key": KEY, **headers}) as answer:
            return answer.status


# --- the API server ---------------------------------------------------------------------------------------------------


async def test_tokens_of_the_api_come_one_by_one(authority, trusting, tmp_path):
    """Each is there before the model has said the next."""
    engine, gates = hold(3)
    async with (
        serve_api(engine=engine, trusted_proxies=1) as server,
        nginx("api", server.url, tmp_path, authority) as url,
        ChatClient(url, api_key=KEY, ssl=trusting) as client,
    ):
        gates[0].set()
        seen = []
        async for event in client.chat("s").stream("Hi"):
            if isinstance(event, Token):
                seen.append(event.text)
                if len(seen) < len(gates):
                    gates[len(seen)].set()

    assert seen == ["0 ", "1 ", "2 "]


@pytest.mark.parametrize(
    ("buffering", "seen"), [("off", "Hel"), ("on; proxy_ignore_headers X-Accel-Buffering", "")], ids=["off", "on"]
)
async def test_buffering_makes_a_lump_of_a_reply(buffering: str, seen: str, authority, trusting, tmp_path):
    """With the file as it is a token is there at once; with buffering nothing is seen before the end."""
    held = Held("Hel", "lo")
    async with (
        ScriptedServer(held.script) as server,
        nginx("api", server.url, tmp_path, authority, proxy_buffering=buffering) as url,
        ChatClient(url, api_key=KEY, ssl=trusting) as client,
        from_address("127.0.0.1", trusting) as beside,
    ):
        stream = client.chat("s").stream("Hi")
        reading = asyncio.create_task(stream.reply())
        await server.arrived(1)
        held.let_go()
        for _ in range(3):  # nginx, whose worker is one process, has seen the token before it answers the last of these
            async with beside.get(url):
                pass
        before = stream.snapshot
        held.finish()
        reply = await reading

    assert (before, reply.text) == (seen, "Hello")


async def test_the_address_that_counts_is_the_clients(authority, trusting, tmp_path):
    """Who asks too much is refused, whatever he puts into the header, and nobody else is."""
    async with (
        serve_api(rate_limit=RateLimit(2, per=60), trusted_proxies=1) as server,
        nginx("api", server.url, tmp_path, authority) as url,
    ):
        eager = [await ask_from("127.0.0.2", url, trusting) for _ in range(3)]
        forged = await ask_from("127.0.0.2", url, trusting, **{"X-Forwarded-For": "192.0.2.1"})
        another = await ask_from("127.0.0.3", url, trusting)

    assert (eager, forged, another) == ([200, 200, 429], 429, 200)


async def test_the_command_that_shows_whether_it_works(authority, tmp_path):
    """The page's own line, word by word; only where its host is, curl is told by the test."""
    [command] = [code for language, code in code_blocks(PAGE) if language == "bash"]
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")

    async with (
        serve_api(trusted_proxies=1) as server,
        nginx("api", server.url, tmp_path, authority) as url,
    ):
        options = (
            f"connect-to = api.example.org:443:{url.removeprefix('https://')}\ncacert = {tmp_path}/authority.pem\n"
        )
        (tmp_path / ".curlrc").write_text(options, "utf-8")
        curl = await asyncio.create_subprocess_exec(
            *("bash", "-euc", command),
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AHEADLESS_API_KEY": KEY},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await curl.communicate()

    assert curl.returncode == 0, err.decode()
    assert [json.loads(line)["type"] for line in out.splitlines()] == ["start", *["token"] * 4, "done"]


async def test_without_trust_nginx_is_the_only_client(authority, trusting, tmp_path):
    """That is the mistake which the page warns of."""
    async with (
        serve_api(rate_limit=RateLimit(2, per=60)) as server,
        nginx("api", server.url, tmp_path, authority) as url,
    ):
        statuses = [await ask_from(f"127.0.0.{number}", url, trusting) for number in (2, 3, 4)]

    assert statuses == [200, 200, 429]


async def test_a_question_is_not_sent_again(authority, trusting, tmp_path):
    """A server that goes away without an answer gets it once, also where a connection was used before."""
    async with (
        ScriptedServer(Script(stream_answer(events("Hi"))), Script(end="rst")) as server,
        nginx("api", server.url, tmp_path, authority) as url,
        ChatClient(url, api_key=KEY, ssl=trusting) as client,
    ):
        await client.chat("s").stream("One")
        with pytest.raises(Exception, match="502"):
            await client.chat("s").stream("Two")

    assert [json.loads(request.body)["message"] for request in server.stored] == ["One", "Two"]


@pytest.mark.parametrize("answer", [Script(stream_answer(events("Hel", "lo"))).cut(260, "stall"), Script(end="stall")])
async def test_who_leaves_is_noticed_behind_nginx(answer: Script, authority, trusting, tmp_path):
    """The connection to the server ends with the client's at once, in the middle of a reply and before it."""
    async with (
        ScriptedServer(answer) as server,
        nginx("api", server.url, tmp_path, authority) as url,
        ChatClient(url, api_key=KEY, ssl=trusting) as client,
    ):
        stream = client.chat("s").stream("Hi")
        reading = asyncio.create_task(anext(aiter(stream.text())))
        request = await server.arrived(1)
        if answer.data:
            await reading
        left_at = asyncio.get_running_loop().time()
        reading.cancel()
        await stream.aclose()
        async with asyncio.timeout(5):  # far below the 30 seconds for which asyncio waits for a farewell of TLS
            await request.left.wait()

    assert request.left_at is not None
    assert request.left_at >= left_at


# --- the page ---------------------------------------------------------------------------------------------------------


async def test_the_page_behind_nginx(authority, tmp_path):
    """In a browser, with its safe cookie: words one by one, and Stop ends the turn at the API."""
    held = Held("Hello ", "there")
    async with (
        ScriptedServer(held.script) as api,
        serve_page(environment(api.url, tmp_path)) as behind,
        nginx("page", behind, tmp_path, authority) as url,
        chromium() as browser,
        visitor(browser, ignore_https_errors=True) as context,
    ):
        page = await open_page(context, url)
        await ask(page, "Hi")
        held.let_go()
        await expect(answer(page)).to_have_text("Hello")
        await page.keyboard.press("Escape")
        async with asyncio.timeout(10):
            await (await api.arrived(1)).left.wait()
        await expect(answer(page)).to_have_text("Hello")
        [cookie] = await context.cookies()

    assert (cookie["name"], cookie["secure"]) == ("__Host-visitor", True)


async def test_heartbeats_pass_nginx(authority, trusting, tmp_path):
    """While the model thinks, a browser hears of it; and then of the token, before the next one is there."""
    held = Held("Hel", "lo")

    async def answer(request: web.Request) -> web.StreamResponse:
        return await stream_response(request, to_sse(client.chat("s").stream("Hi"), heartbeat=0.02))

    app = web.Application()
    app.add_routes([web.post("/", answer)])
    async with (
        ScriptedServer(held.script) as api,
        ChatClient(api.url, api_key=KEY) as client,
        TestServer(app) as behind,
        nginx("page", str(behind.make_url("")), tmp_path, authority) as url,
        from_address("127.0.0.1", trusting) as browser,
        browser.post(f"{url}/") as answered,
    ):
        await until(answered, b": ")
        held.let_go()
        await until(answered, b'"token":"Hel"')
        held.finish()
        await until(answered, b"event: done")


async def until(answered: aiohttp.ClientResponse, text: bytes) -> None:
    """Read lines until a text was in one."""
    async with asyncio.timeout(20):
        while text not in (line := await answered.content.readline()):
            assert line, f"it ended before {text!r}"


async def test_an_address_that_asks_too_much(authority, trusting, tmp_path):
    """nginx refuses its questions and tells it to wait; pages, and everybody else's questions, pass."""
    question = {"message": "Hi"}
    async with (
        ScriptedServer() as api,
        serve_page(environment(api.url, tmp_path)) as behind,
        nginx("page", behind, tmp_path, authority) as url,
        from_address("127.0.0.2", trusting) as eager,
        from_address("127.0.0.3", trusting) as calm,
    ):
        wait = None
        while wait is None:  # some eleven pass at once
            async with eager.post(f"{url}/chat", json=question) as answered:
                await answered.read()
                wait = answered.headers.get("Retry-After")
        async with eager.get(f"{url}/") as page, calm.post(f"{url}/chat", json=question) as other:
            passed = page.status, other.status

    assert (answered.status, wait, passed) == (429, "10", (200, 200))


async def test_plain_http_leads_to_https(authority, tmp_path):
    """No page is shown, and no cookie is set, without TLS."""
    async with (
        ScriptedServer() as api,
        nginx("page", api.url, tmp_path, authority) as _,
        aiohttp.ClientSession() as http,
    ):
        [port] = re.findall(r"listen 127\.0\.0\.1:(\d+);", (tmp_path / "nginx.conf").read_text("utf-8"))
        async with http.get(
            f"http://127.0.0.1:{port}/", headers={"Host": "chat.example.org"}, allow_redirects=False
        ) as at:
            assert (at.status, at.headers["Location"]) == (301, "https://chat.example.org/")
    assert api.requests == []
