"""genworker: an async batch worker for LLM generations that build on each other.

The names below are the public ones; everything else may change without notice.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genworker.api import findings, iter_generations, money, scores, to_pandas
    from genworker.core.generation import Failure, FailureKind, Generation
    from genworker.core.stages import STAGES, Stage
    from genworker.errors import GenworkerError, StoreError
    from genworker.paths import Paths
    from genworker.reports.export import GenerationRow
    from genworker.reports.scores import ScoreRow
    from genworker.store.reading import load_generation, read_generation

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
    "to_pandas",
]

_LATE = {
    "Failure": "genworker.core.generation",
    "FailureKind": "genworker.core.generation",
    "Generation": "genworker.core.generation",
    "STAGES": "genworker.core.stages",
    "Stage": "genworker.core.stages",
    "GenworkerError": "genworker.errors",
    "StoreError": "genworker.errors",
    "Paths": "genworker.paths",
    "load_generation": "genworker.store.reading",
    "read_generation": "genworker.store.reading",
    "GenerationRow": "genworker.reports.export",
    "ScoreRow": "genworker.reports.scores",
    "findings": "genworker.api",
    "iter_generations": "genworker.api",
    "money": "genworker.api",
    "scores": "genworker.api",
    "to_pandas": "genworker.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for.

    Every command imports this package before it can hear a signal, so nothing is loaded along with it.
    """
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    """Also the names that are imported late."""
    return sorted({*globals(), *_LATE})
