"""genworker: an async batch worker for LLM generations that build on each other.

The names below are the public ones; everything else may change without notice.
"""

from genworker.core.generation import Failure, FailureKind, Generation
from genworker.core.stages import STAGES, Stage
from genworker.errors import GenworkerError, StoreError
from genworker.paths import Paths
from genworker.store.reading import load_generation, read_generation

__version__ = "0.1.0"

__all__ = [
    "STAGES",
    "Failure",
    "FailureKind",
    "Generation",
    "GenworkerError",
    "Paths",
    "Stage",
    "StoreError",
    "__version__",
    "load_generation",
    "read_generation",
]
