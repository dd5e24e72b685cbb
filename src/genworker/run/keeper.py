"""Runs a command for as long as its standard input stays open: when the parent dies, however, so does it.

Started as a file, with no more of Python than this needs. The command has a session of its own, so that what
it starts is found by its group. Its end is this process's end, with its exit code.
"""

import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 10.0
"""Seconds between asking the command to end and ending it."""
LOOK_S = 0.1


def keep(command: list[str]) -> int:
    """Run the command; returns its exit code."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        return 127
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # wakes `select`; the parent says the rest by closing the pipe
    while process.poll() is None:
        ready, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            end(process)
    # What it has started goes with it.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        time.sleep(LOOK_S)
    return process.returncode


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the group to end, then end it."""
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return
        try:
            process.wait(wait_s)
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]) & 0xFF)
