"""Suites of questions for task `harness`, as records: where the items are, and how they are asked."""
