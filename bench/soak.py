"""Memory over a long run: the worker's resident size while it makes generations, and the slope of it.

Flat means that a generation that is done leaves nothing behind. The rows themselves are read at the start.
The default takes some minutes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time

from bench.common import COHORT, drafts_only, genworker, publish, server, workplace, write_project


def resident_mb(pid: int) -> float:
    """A process's resident size in megabytes of 10⁶ bytes; 0 when it is gone."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(found.stdout.strip() or 0) * 1024 / 1e6


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=256)
    options = parser.parse_args(arguments)
    root = workplace("soak")
    samples: list[tuple[int, float]] = []
    with server("--no-records") as remote:
        write_project(root, drafts_only(options.count), remote.openai_url, in_flight=options.in_flight)
        began = time.perf_counter()
        with subprocess.Popen(
            genworker("run", COHORT, "--quiet"),
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None:
                size = resident_mb(process.pid)
                if size:
                    samples.append((int(remote.stats()["paid"]), size))
                time.sleep(0.5)
        seconds = time.perf_counter() - began
        assert process.returncode == 0, f"exit code {process.returncode}"
    # From a tenth of the way on: pools, caches and the allocator's arenas have reached their sizes.
    settled = [(done, size) for done, size in samples if options.count / 10 <= done]
    done, sizes = zip(*settled, strict=True)
    slope = 1e6 * statistics.linear_regression(done, sizes).slope
    rows = []
    for tenth in range(1, 11):
        reached = [size for at, size in settled if at <= options.count * tenth / 10]
        if reached:
            rows.append([f"{options.count * tenth // 10:,} done", f"{reached[-1]:.1f}"])
    rows.append(["each generation done", f"{slope:.0f} bytes"])
    publish(
        "soak",
        f"Soak: {options.count:,} generations in {seconds:.0f} s, {options.count / seconds:.0f} a second",
        ["", "resident MB"],
        rows,
        {"samples": samples, "bytes_per_generation_done": slope, "wall_s": seconds},
    )


if __name__ == "__main__":
    main()
