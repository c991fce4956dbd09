"""Paths of the sources and of the reference data."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
REFERENCES = TESTS / "references"
