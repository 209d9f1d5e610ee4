"""Speed and memory compared with other libraries: `python -m benchmarks`.

Needs the extra `benchmarks`.
"""
