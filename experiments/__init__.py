"""Programs that write docs/: the demo's data and report, the proof, the frontier, the lessons, figures, the benchmark.

The package does not need them, and they are not installed with it.
"""
