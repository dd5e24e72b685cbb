"""The way to an endpoint, with real parts: a private authority over TLS, proxies, names, kept connections."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from genworker.core.completion import CompletionRequest, Sampling
from genworker.providers.openai import OpenAIProvider
from support.project import COHORT, Project, make_project, membership_rows, write

PRICE = "price = { input = 1, output = 2 }\nmax_tokens = 1000"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, membership_rows(essays=("rewrite",), models=("alpha",)))


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where each connection is given to ``serve``, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def read_request(connection: socket.socket) -> bytes:
    """A request's head and body, or nothing when the other side has left."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (chunk := connection.recv(65536)):
            return b""
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0].split(b":")[1]) - len(body) if lengths else 0
    while missing > 0 and (chunk := connection.recv(65536)):
        received, missing = received + chunk, missing - len(chunk)
    return received


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@contextmanager
def tls_server(directory: Path) -> Iterator[int]:
    """An endpoint over TLS whose certificate an authority of our own, ``ca.pem``, has signed."""
    usual = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        directory, "req", "-x509", *usual, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
        "-subj", "/CN=House authority",
    )  # fmt: skip
    openssl(directory, "req", *usual, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    write(directory / "names", "subjectAltName=DNS:localhost\n")
    openssl(
        directory, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.pem",
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")

    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                while read_request(secure):
                    secure.sendall(answer())
        except OSError:
            pass  # the client does not trust us, or leaves

    with listening(serve) as port:
        yield port


def answer() -> bytes:
    body = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "A text.\nSCORE: 7"},
                }
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_a_private_authority(project: Project, tmp_path: Path) -> None:
    with tls_server(tmp_path) as port:
        url = f"https://localhost:{port}/v1"
        project.use_server(url, extra=PRICE)
        refused = project.run("run", COHORT, "-q", "--limit", "3")
        said = " ".join((refused.stdout + refused.stderr).split())
        assert refused.returncode == 1, said
        assert "is not trusted" in said
        assert "ca_file" in said
        assert "SSL_CERT_FILE" in said
        assert not list(project.paths.gens_root.glob("*/*/raw.txt"))

        project.use_server(url, extra=f'{PRICE}\nca_file = "{tmp_path / "ca.pem"}"\nmax_concurrency = 1')
        trusted = project.run("run", COHORT, "-q", "--limit", "1")
        assert trusted.returncode == 0, trusted.stdout + trusted.stderr
        project.use_server(url, extra=f"{PRICE}\nmax_concurrency = 1")
        variable = project.run("run", COHORT, "-q", "--limit", "1", SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        assert variable.returncode == 0, variable.stdout + variable.stderr
        assert len(list(project.paths.gens_root.glob("*/*/raw.txt"))) == 2


def test_a_proxy_that_wants_a_password(project: Project) -> None:
    asked: list[bytes] = []

    def refuse(connection: socket.socket) -> None:
        asked.append(read_request(connection))
        connection.sendall(
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n"
            b"Content-Length: 0\r\nConnection: close\r\n\r\n"
        )

    with listening(refuse) as port:
        project.use_server("https://llm.house.example/v1", extra=f"{PRICE}\nuse_env_proxy = true")
        run = project.run("run", COHORT, "-q", HTTPS_PROXY=f"http://127.0.0.1:{port}", NO_PROXY="")
    said = " ".join((run.stdout + run.stderr).split())
    assert run.returncode == 1, said
    assert "HTTP 407" in said
    assert "http://NAME:PASSWORD@HOST:PORT" in said
    assert asked[0].startswith(b"CONNECT llm.house.example:443")
    assert len(asked) <= 5


def test_a_proxy_without_a_scheme(project: Project) -> None:
    project.use_server("https://llm.house.example/v1", extra=f"{PRICE}\nuse_env_proxy = true")
    run = project.run("run", COHORT, "-q", HTTPS_PROXY="me:hidden-word@127.0.0.1:9", NO_PROXY="")
    said = " ".join((run.stdout + run.stderr).split())
    assert run.returncode in (1, 2), said
    assert "http://HOST:PORT" in said
    assert "hidden-word" not in said


def test_a_name_that_does_not_resolve(project: Project) -> None:
    project.use_server("https://llm.house.invalid/v1", extra=PRICE)
    run = project.run("run", COHORT, "-q")
    said = " ".join((run.stdout + run.stderr).split())
    assert run.returncode == 1, said
    assert "llm.house.invalid does not resolve" in said
    assert "base_url" in said


def test_a_kept_connection_that_was_closed_is_no_try(project: Project) -> None:
    """The server promises to keep the connection, and closes it after each answer."""
    served: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        if request := read_request(connection):
            served.append(request)
            connection.sendall(answer())

    with listening(serve) as port:
        project.use_server(f"http://127.0.0.1:{port}/v1", extra=f"{PRICE}\nmax_concurrency = 1")
        run = project.run("run", COHORT, "-q")
        assert run.returncode == 0, run.stdout + run.stderr
    rows = len(project.rows())
    assert len(served) == rows
    kept = list(project.paths.gens_root.glob("*/*/metadata.json"))
    assert len(kept) == rows
    assert {json.loads(path.read_text(encoding="utf-8"))["attempts"] for path in kept} == {1}


def test_a_connection_that_was_closed_while_the_loop_stood_still_is_not_used() -> None:
    """Its end lies in the socket unread: a request that is written into it would count as billed."""
    closed = threading.Event()

    def serve(connection: socket.socket) -> None:
        if read_request(connection):
            connection.sendall(answer())
        connection.close()
        closed.set()

    async def ask_twice(port: int) -> None:
        provider = OpenAIProvider(f"http://127.0.0.1:{port}/v1")
        request = CompletionRequest("m", "a prompt", Sampling(), timeout_s=5.0)
        await provider.open()
        try:
            for _ in range(3):
                assert (await provider.complete(request)).text
                assert closed.wait(5.0)  # nothing of the loop runs meanwhile
                closed.clear()
        finally:
            await provider.aclose()

    with listening(serve) as port:
        asyncio.run(ask_twice(port))


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_an_answer_without_a_length_ends_with_its_connection(version: str) -> None:
    def serve(connection: socket.socket) -> None:
        if read_request(connection):
            body = answer().partition(b"\r\n\r\n")[2]
            connection.sendall(f"{version} 200 OK\r\nConnection: close\r\n\r\n".encode() + body)

    async def ask_twice(port: int) -> list[str]:
        provider = OpenAIProvider(f"http://127.0.0.1:{port}/v1")
        request = CompletionRequest("m", "a prompt", Sampling(), timeout_s=5.0)
        await provider.open()
        try:
            return [(await provider.complete(request)).text for _ in range(2)]
        finally:
            await provider.aclose()

    with listening(serve) as port:
        assert asyncio.run(ask_twice(port)) == ["A text.\nSCORE: 7"] * 2
