"""Pictures over HTTP: one engine, a thread a request, nothing but the standard library.

Run it, and ask:

    python examples/http_service.py --port 8000
    curl -s -o pets.png -d '{"prompt": "a cat and a dog", "seed": 7}' localhost:8000/generate
    curl -s localhost:8000/health

Whoever asks at the same time is drawn in the same steps, and a seed is the same picture however busy the service is. A
fault of the request is answered with 4xx and says what was expected; a full queue with 503, to be asked again; somebody
who hangs up is not drawn to the end. To close the sending half only is to hang up, too: TCP does not tell one from the
other. It listens on this machine only and checks nobody's name: put it behind a server that does.
"""

import argparse
import json
import select
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from simplear_engine import Engine, SimplearError

OPTIONS = ("seed", "negative_prompt", "height", "width", "guidance_scale", "temperature", "top_k", "top_p")
MAX_BODY = 64 << 10
SECONDS_TO_SEND = 30
STATUS = {"invalid_request": 400, "capacity": 413, "queue_full": 503, "cancelled": 503}


class HungUp(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    engine: Engine
    timeout = SECONDS_TO_SEND

    def do_GET(self):
        if self.path != "/health":
            return self._answer_json(404, {"error": "not_found", "message": "expected /health"})
        stats = self.engine.stats()
        self._answer_json(200, {name: stats[name] for name in ("num_running", "num_waiting", "num_free_blocks")})

    def do_POST(self):
        if self.path != "/generate":
            return self._answer_json(404, {"error": "not_found", "message": "expected /generate"})
        try:
            body = self._body()
        except (ValueError, RecursionError) as error:  # the latter: brackets in brackets in brackets
            return self._answer_json(400, {"error": "invalid_request", "message": str(error)})
        try:
            self._answer(200, "image/png", self._draw(body))
        except (HungUp, ConnectionError):
            self.close_connection = True
        except SimplearError as error:
            self._answer_json(STATUS.get(error.kind, 500), {"error": error.kind, "message": str(error)})

    def _body(self) -> dict:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MAX_BODY:
            raise ValueError(f"expected a body of 1 to {MAX_BODY} bytes, got {length}")
        body = json.loads(self.rfile.read(length))
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
            raise ValueError('expected an object with a "prompt" of text')
        unknown = sorted(set(body) - {"prompt", *OPTIONS})
        if unknown:
            raise ValueError(f"expected prompt, {', '.join(OPTIONS)}; got {', '.join(unknown)}")
        return body

    def _draw(self, body: dict) -> bytes:
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)  # errors are told in any case

        def stop_if_hung_up(done: int, total: int) -> None:
            if poll.poll(0):
                raise HungUp

        (image,) = self.engine.generate(body.pop("prompt"), on_progress=stop_if_hung_up, **body)
        return image.png()

    def _answer_json(self, status: int, body: dict) -> None:
        self._answer(status, "application/json", json.dumps(body).encode() + b"\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = False  # closing it waits for the pictures that are being drawn
    request_queue_size = 128  # who finds it full knocks again after a second


def serve(engine: Engine, host: str, port: int) -> Server:
    """A server that is bound and not yet running."""
    return Server((host, port), type("EngineHandler", (Handler,), {"engine": engine}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help='"default", a checkpoint folder or a hub id')
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    with Engine.from_pretrained(options.model) as engine, serve(engine, options.host, options.port) as server:
        print(f"http://{options.host}:{server.server_port}/generate")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("closing")


if __name__ == "__main__":
    main()
