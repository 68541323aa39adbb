"""Measurements behind the numbers this bundle states: `python -m tests.benchmarks.NAME [--quick] [--check]`.

Each prints a table and, as its last line, its figures and bars as JSON. They are no tests: the suite does not run them.
"""
