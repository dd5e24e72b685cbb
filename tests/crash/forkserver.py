"""A process that has genworker imported and runs its command line in forked children, on request.

A run costs tens of milliseconds instead of the half second that the imports take. One JSON object per
line: requests on stdin, ``{"pid": …}`` when a child starts and ``{"pid": …, "status": …}`` when it ends on
stdout.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
from typing import Any

import genworker

LATE = (
    "aiohttp", "crash.faults", "crash.mutants", "encodings.idna", "encodings.utf_8_sig", "jinja2.meta",
    "jinja2.sandbox", "openai", "pwd", "pygments.styles", "rich.console", "rich.progress", "rich.traceback",
    "structlog", "tomllib", "uvloop",
)  # fmt: skip
"""What a run imports only where it needs it."""
UNUSED = ("genworker.__main__", "genworker.cluster", "genworker.providers.anthropic", "genworker.viewer")
"""What no run here imports; some of it is slow to import."""


def main() -> None:
    _import_all()
    children: set[int] = set()
    buffer = b""
    _answer({"ready": os.getpid()})
    while True:
        readable, _, _ = select.select([0], [], [], 0.001 if children else None)
        if readable:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                break
            buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            children.add(_start(json.loads(line)))
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                children.discard(pid)
                _answer({"pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _import_all() -> None:
    """Import what a run imports, so that its children need not."""
    for module in pkgutil.walk_packages(genworker.__path__, "genworker."):
        if not module.name.startswith(UNUSED):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)
    gc.freeze()  # what is shared with the children is not copied because a collection looks at it


def _answer(record: dict[str, Any]) -> None:
    os.write(1, json.dumps(record).encode() + b"\n")


def _start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        _answer({"pid": pid})
        return pid
    code = 70
    try:
        _become(request)
        code = _run(request)
    finally:
        os._exit(code)


def _become(request: dict[str, Any]) -> None:
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.close(out)
    os.close(null)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    if "limits" in request:
        number = request["limits"]["nofile"]
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["genworker", *request["argv"]]


def _run(request: dict[str, Any]) -> int:
    import traceback

    import genworker.cli
    import genworker.run.runner
    from crash import faults, mutants

    genworker.run.runner.COMMIT_RETRY_PAUSES_S = tuple(request.get("pauses", (0.01, 0.02, 0.03)))
    for name in request.get("mutants", ()):
        mutants.ALL[name]()
    recorder = faults.install(request.get("fault") or {}, request["root"])
    try:
        genworker.cli.main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    recorder.save()
    return code


if __name__ == "__main__":
    main()
