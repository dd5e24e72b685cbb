"""``python -m bench``: the short set. Each module has a command line of its own, with larger sizes."""

from bench import commit, engine, latency, lineage, plan

for benchmark in (commit, plan, latency, lineage, engine):
    benchmark.main([])
