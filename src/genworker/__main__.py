"""``python -m genworker``."""

from genworker.cli import main

main()
