"""``python -m bench``: the short set. Each module has a command line of its own, with larger sizes."""

from bench import commit, engine, latency, lineage, plan, report

for benchmark in (commit, plan, report, latency, lineage, engine):
    benchmark.main([])
