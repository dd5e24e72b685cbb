"""``python -m genworker`` and the console script: hears signals first, then imports the rest."""

from genworker import signals


def main() -> None:
    """The command line."""
    try:
        signals.listen()
        from genworker.cli import main as command_line

        command_line()
    except signals.Stopped as stopped:  # before any command has begun
        raise SystemExit(128 + stopped.number) from None


if __name__ == "__main__":
    main()
