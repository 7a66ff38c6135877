"""An HTTP server that speaks OpenAI's protocol from a script, and engines that call it: for tests of what they do with
its answers."""

import json
import random
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from augment.engine.base import Completion, Request
from augment.engine.config import OpenAIConfig
from augment.engine.openai import OpenAIEngine


@dataclass(frozen=True)
class Reply:
    """What the server does with one call: it answers, drops the connection, or never answers (`hold`)."""

    status: int = 200
    body: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    hold: bool = False
    delay_s: float = 0.0


def answer(text: str, finish_reason: str = "stop", tokens: tuple[int, int] | None = (7, 3)) -> Reply:
    """A chat answer in OpenAI's form."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    body: dict[str, object] = {"object": "chat.completion", "choices": [choice]}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Reply(body=body)


def error(status: int, message: str, code: object = None, headers: Mapping[str, str] | None = None) -> Reply:
    """An error in OpenAI's form."""
    return Reply(status, {"error": {"message": message, "type": "error", "code": code}}, headers or {})


Script = Callable[[str, int], Reply]
"""From a prompt and how often it was asked before to what the server does."""


def upper(prompt: str, _asked: int) -> Reply:
    """The script that gives every prompt back in capitals."""
    return answer(prompt.upper())


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Silent about clients that went away, which is what some tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ScriptedServer:
    """`calls` has a row per call in order of arrival: time, path, headers, body. `open` counts those without a reply,
    `most_at_once` the most there were, `abandoned` those held calls whose client went away."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[tuple[float, str, dict[str, str], dict[str, Any]]] = []
        self.asked: Counter[str] = Counter()
        self.most_at_once = self.abandoned = 0
        self.open = 0
        self._lock = Lock()
        self._http: _Http | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [prompt_of(body) for _, _, _, body in self.calls]

    def start(self) -> None:
        """Listen, at the same port as before if there was one."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body go out in two writes; the second would wait for the first to be acknowledged.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = server._arrived(self.path, dict(self.headers), body)
                try:
                    self._reply(reply)
                finally:
                    server._left()

            def _reply(self, reply: Reply) -> None:
                if reply.hold:
                    select.select([self.connection], [], [], 30)
                    server._lost()
                    self.close_connection = True
                    return
                time.sleep(reply.delay_s)
                if reply.drop:
                    self.close_connection = True
                    return
                content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: object) -> None:
                """Nothing: the calls are kept."""

        self._http = _Http(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        if self._http is not None:
            self._http.shutdown()
            self._http.socket.close()
            self._http = None

    def _arrived(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        prompt = prompt_of(body)
        with self._lock:
            self.calls.append((time.monotonic(), path, headers, body))
            before = self.asked[prompt]
            self.asked[prompt] += 1
            self.open += 1
            self.most_at_once = max(self.most_at_once, self.open)
        return self.script(prompt, before)

    def _left(self) -> None:
        with self._lock:
            self.open -= 1

    def _lost(self) -> None:
        with self._lock:
            self.abandoned += 1


def prompt_of(body: Mapping[str, Any]) -> str:
    """The prompt in the body of a call, chat or not."""
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


@contextmanager
def scripted(script: Script = upper) -> Iterator[ScriptedServer]:
    """A server that runs for the block."""
    server = ScriptedServer(script)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def config_of(server: ScriptedServer, **options: object) -> OpenAIConfig:
    """Up to 4 calls at once, hardly a wait between attempts, and up to 9 tokens."""
    quick = {"first_retry_s": 0.01, "longest_retry_s": 0.05, "give_up_after_s": 20.0, "max_concurrent": 4}
    return OpenAIConfig.model_validate(
        {"backend": "openai", "base_url": server.url, "model": "pocket", "max_new_tokens": 9, **quick, **options}
    )


def engine_of(server: ScriptedServer, **options: object) -> OpenAIEngine:
    """An engine of `config_of`, with the same waits in every run."""
    return OpenAIEngine(config_of(server, **options), jitter=random.Random(0))


def requests(n: int) -> list[Request]:
    """Requests key-0, key-1, ... for the prompts "prompt 0", "prompt 1", ..."""
    return [Request(f"key-{i}", f"prompt {i}") for i in range(n)]


def texts(completions: Iterator[Completion]) -> dict[str, str]:
    """By key the text; every key once."""
    found = [(c.request_key, c.text) for c in completions]
    assert len(dict(found)) == len(found)
    return dict(found)


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true: the server's threads see what the client does a little later."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


# What `upper` makes of twelve requests.
EXPECTED = {f"key-{i}": f"PROMPT {i}" for i in range(12)}


def first_fails(reply: Reply) -> Script:
    """The script in which every prompt meets `reply` once, and then goes well."""
    return lambda prompt, asked: reply if asked == 0 else answer(prompt.upper())
