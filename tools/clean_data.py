"""``make clean-data``: removes what was generated below a data root, after asking, and never during a run."""

from __future__ import annotations

import shutil
import sys

from genworker.core.stages import STAGES
from genworker.paths import Paths
from genworker.store.lock import FileLock

KEPT = "cohort.toml"
"""What a user has written into a cohort's directory."""


def main(data_root: str) -> int:
    """Ask, and remove. Returns the exit code: 0 done or nothing to do, 1 refused."""
    paths = Paths.from_str(data_root)
    locks = [*paths.private_dir.glob("locks/*.lock"), *paths.runs_dir.glob("*.lock")]
    held = [FileLock(path) for path in locks if path.name != paths.claims_path.name]
    for lock in held:
        if not lock.acquire():
            print(f"refused: somebody works here ({lock.path}); nothing was removed", file=sys.stderr)
            return 1
    generations = sum(
        1 for stage in STAGES for path in paths.stage_dir(stage).glob("*") if not path.name.startswith(".")
    )
    cohorts = sorted(path for path in paths.cohorts_dir.glob("*") if path.is_dir())
    if not generations and not cohorts and not paths.private_dir.exists():
        print("There is nothing to remove.")
        return 0
    print(
        f"This removes {generations} generations with every answer that was paid for, the memberships and\n"
        f"reports of {len(cohorts)} cohorts, all journals and all that was kept aside below {data_root}.\n"
        f"The catalogue and each {KEPT} stay. Nothing brings the rest back.\n"
        f"Type the number of generations to go on: ",
        end="",
        flush=True,
    )
    if sys.stdin.readline().strip() != str(generations):
        print("\nNothing was removed.")
        return 1
    for cohort in cohorts:
        for path in cohort.iterdir():
            if path.name != KEPT:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not any(cohort.iterdir()):
            cohort.rmdir()
    for path in (paths.gens_root, paths.private_dir, paths.cross_experiment_dir):
        shutil.rmtree(path, ignore_errors=True)
    paths.combo_mappings_csv.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
