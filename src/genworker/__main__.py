"""``python -m genworker`` and the console script: hears signals first, then imports the rest."""

import gc
import io
import os
import sys

from genworker import signals


class Out(io.FileIO):
    """An output that goes on when nothing more can be written, as on a full disk: the work is paid for.

    Attributes:
        fault: why not all was written; ``None`` while all was.
    """

    def __init__(self, number: int, *, may_break: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.fault: str | None = None
        self._may_break = may_break
        self._is_terminal = os.isatty(number)

    def write(self, data: object) -> int:
        """Write, or note why that cannot be; a reader that has left is the commands' affair."""
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError as error:
            if self._may_break and isinstance(error, BrokenPipeError):
                raise
            if not self._is_terminal:  # one that has vanished took its reader along
                self.fault = error.strerror or type(error).__name__
            return memoryview(data).nbytes  # type: ignore[arg-type]


def open_streams() -> Out:
    """Give the standard streams that were closed a place to go, else a journal would become number 2.

    Returns:
        What stdout is written into.
    """
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
    data = Out(1, may_break=True)
    sys.stdout = _text(data, sys.stdout)
    sys.stderr = _text(Out(2, may_break=False), sys.stderr)
    return data


def _text(out: Out, like: object) -> io.TextIOWrapper:
    """A text stream into an output, with the encoding and buffering of the one that it takes the place of."""
    return io.TextIOWrapper(
        io.BufferedWriter(out),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors=getattr(like, "errors", None),
        line_buffering=bool(getattr(like, "line_buffering", False)),
        write_through=bool(getattr(like, "write_through", False)),
    )


def main() -> None:
    """The command line."""
    # Modules, and a million rows, live as long as the command: walking them again and again finds nothing.
    gc.set_threshold(100_000, 50, 100)
    try:
        data = open_streams()
        signals.listen()
        from genworker.cli import main as command_line

        try:
            command_line()
        except SystemExit as ended:
            if ended.code in (None, 0):
                _refuse_half(data)
            raise
    except signals.Stopped as stopped:  # before any command has begun
        raise SystemExit(128 + stopped.number) from None
    except Exception:
        # Python 3.11 makes a RuntimeError of what is raised while a class is made, as loading modules does.
        number = signals.take_request()
        if number is None:
            raise
        raise SystemExit(128 + number) from None


def _refuse_half(data: Out) -> None:
    """End with exit code 1 when not all of the data on stdout was written: the work was done all the same."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if data.fault is not None:
        sys.stderr.write(f"error: the output could not be written: {data.fault}\n")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
