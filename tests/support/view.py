"""``genworker view`` as a process, asked over its socket."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from .project import Project, clean_environment


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True, slots=True)
class View:
    """A view that runs."""

    address: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    @property
    def root(self) -> str:
        return urlsplit(self.address).path

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        form: Mapping[str, str] | list[tuple[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        absolute: bool = False,
    ) -> Answer:
        """One request, with a browser's headers unless others are given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        sent = {"Host": f"127.0.0.1:{self.port}"}
        body = None
        if form is not None:
            method, body = "POST", urlencode(form)
            sent |= {
                "Content-Type": "application/x-www-form-urlencoded",
                "Origin": f"http://127.0.0.1:{self.port}",
            }
        sent |= headers or {}
        connection.putrequest(method, path if absolute else self.root + path, skip_host=True)
        for name, value in sent.items():
            if value:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() if body is not None else None)
        response = connection.getresponse()
        try:
            text = response.read().decode("utf-8", "replace")
        finally:
            connection.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)

    def settled(self, path: str, word: str, within_s: float = 20.0) -> Answer:
        """Ask until the page has a word: the index is built beside the first answers."""
        until = time.monotonic() + within_s
        while True:
            answer = self.ask(path)
            if word in answer.text or time.monotonic() > until:
                return answer
            time.sleep(0.1)


@contextmanager
def start_view(command: list[str], cwd: Path) -> Iterator[View]:
    """Serve while the block lasts."""
    process = subprocess.Popen(
        command, cwd=cwd, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read() if process.stderr else address
        view = View(address, process)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                view.ask("")
                break
            except OSError:
                time.sleep(0.05)
        yield view
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def view_of(project: Project, *arguments: str) -> list[str]:
    """The command that shows a project."""
    return project.command("view", "--no-open", *arguments)
