"""Where the tests find the sources, and what they compare with."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
REFERENCES = TESTS / "references"
