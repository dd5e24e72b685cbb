"""genworker: an async batch worker for LLM generations that build on each other.

The names below are the public ones; everything else may change without notice.
"""

from typing import TYPE_CHECKING, Any

from genworker.core.generation import Failure, FailureKind, Generation
from genworker.core.stages import STAGES, Stage
from genworker.errors import GenworkerError, StoreError
from genworker.paths import Paths
from genworker.store.reading import load_generation, read_generation

if TYPE_CHECKING:
    from genworker.api import findings, iter_generations, money, scores
    from genworker.reports.export import GenerationRow
    from genworker.reports.scores import ScoreRow

__version__ = "0.1.0"

__all__ = [
    "STAGES",
    "Failure",
    "FailureKind",
    "Generation",
    "GenerationRow",
    "GenworkerError",
    "Paths",
    "ScoreRow",
    "Stage",
    "StoreError",
    "__version__",
    "findings",
    "iter_generations",
    "load_generation",
    "money",
    "read_generation",
    "scores",
]

_LATE = {
    "GenerationRow": "genworker.reports.export",
    "ScoreRow": "genworker.reports.scores",
    "findings": "genworker.api",
    "iter_generations": "genworker.api",
    "money": "genworker.api",
    "scores": "genworker.api",
}


def __getattr__(name: str) -> Any:
    """Import what only notebooks need when it is asked for: every command imports this package."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    """Also the names that are imported late."""
    return sorted({*globals(), *_LATE})
