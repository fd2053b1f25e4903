"""The example of a service: what answers over HTTP is what the engine draws, and faults are answered as what they are."""

import http.client
import json
import os
import resource
import runpy
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from simplear_engine import Engine, QueueFullError

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "http_service.py"))


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained("default", threads=1) as engine:
        yield engine


@contextmanager
def running(engine):
    with EXAMPLE["serve"](engine, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(engine):
    with running(engine) as server:
        yield server


def ask(server, body, path="/generate", method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body if isinstance(body, (bytes, type(None))) else json.dumps(body))
    answer = connection.getresponse()
    return answer, answer.read()


def test_picture_is_the_engines(engine, server):
    answer, png = ask(server, {"prompt": "a red apple", "seed": 3, "top_k": 5})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    assert png == engine.generate("a red apple", seed=3, top_k=5)[0].png()
    answer, health = ask(server, None, "/health", "GET")
    assert answer.status == 200 and json.loads(health)["num_running"] == 0


@pytest.mark.parametrize(
    "body, message",
    [
        ({"prompt": "a cat", "height": 100}, "height: expected a multiple of 16, got 100"),
        ({"prompt": "a cat", "colour": "red"}, "got colour"),
        ({"prompt": 3}, "prompt"),
        ([], "prompt"),
        (b"{", "Expecting"),
        (b"[" * 60000, "recursion"),
        (b"", "1 to 65536 bytes, got 0"),
        (b" " * 70000, "1 to 65536 bytes, got 70000"),
    ],
)
def test_faults_are_the_callers(server, body, message):
    answer, told = ask(server, body)
    assert answer.status == 400
    assert json.loads(told)["error"] == "invalid_request" and message in json.loads(told)["message"]
    assert ask(server, {"prompt": "a cat", "seed": 1})[0].status == 200


def test_unknown_paths_are_not_found(server):
    assert ask(server, {}, "/draw")[0].status == 404 and ask(server, None, "/", "GET")[0].status == 404


class StuckEngine:
    """Draws for ever, until somebody stops it."""

    def __init__(self):
        self.drawing, self.stopped = threading.Event(), threading.Event()

    def generate(self, prompt, on_progress, **options):
        if self.drawing.is_set():
            raise QueueFullError("the queue is full (1 requests wait): try again later")
        self.drawing.set()
        try:
            while True:
                on_progress(1, 64)
                time.sleep(0.001)
        finally:
            self.stopped.set()


@pytest.mark.parametrize("behind", [b"", b"\r\n"], ids=["body", "more_than_the_body"])
def test_full_queue_is_answered_at_once_and_hanging_up_stops_the_picture(behind):
    engine = StuckEngine()
    with running(engine) as server:
        body = json.dumps({"prompt": "a cat"}).encode()
        with socket.create_connection(("127.0.0.1", server.server_port)) as caller:
            caller.sendall(b"POST /generate HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body + behind)
            assert engine.drawing.wait(60)
            answer, told = ask(server, {"prompt": "a dog"})
            assert answer.status == 503 and json.loads(told)["error"] == "queue_full"
            assert answer.headers["Retry-After"] == "1" and not engine.stopped.is_set()
        assert engine.stopped.wait(60)


def test_many_open_files_do_not_make_good_requests_bad(server):
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 2048:
        pytest.skip("may not open more than 1,024 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, most))
    files = [open(os.devnull) for _ in range(1100)]
    try:
        assert ask(server, {"prompt": "a cat", "seed": 1})[0].status == 200
    finally:
        for file in files:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
