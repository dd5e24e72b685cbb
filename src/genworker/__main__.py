"""``python -m genworker`` and the console script: hears signals first, then imports the rest."""

import gc
import os
import sys

from genworker import signals


def open_streams() -> None:
    """Give the standard streams that were closed a place to go: else a journal would become number 2."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            fd = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)  # the lowest free number
            if fd != number:
                os.dup2(fd, number, inheritable=True)
                os.close(fd)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def main() -> None:
    """The command line."""
    # Modules, and a million rows, live as long as the command: walking them again and again finds nothing.
    gc.set_threshold(100_000, 50, 100)
    try:
        open_streams()
        signals.listen()
        from genworker.cli import main as command_line

        command_line()
    except signals.Stopped as stopped:  # before any command has begun
        raise SystemExit(128 + stopped.number) from None


if __name__ == "__main__":
    main()
