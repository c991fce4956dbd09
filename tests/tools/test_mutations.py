"""The mutations of `python -m tests.mutations` fit the sources of today."""

from __future__ import annotations

import builtins
import keyword
import re
import shlex

import pytest

from tests.support.mutation_list import MUTATIONS, Mutation
from tests.support.paths import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_mutation_replaces_a_text_that_its_file_has_once(mutation: Mutation) -> None:
    text = (ROOT / "attnarray" / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
    assert mutation.new != mutation.old
    names = set(re.findall(r"[A-Za-z_]\w*", mutation.new))
    assert names <= {*re.findall(r"[A-Za-z_]\w*", text), *keyword.kwlist, *vars(builtins)}  # else any test finds it
    files = [word for word in shlex.split(mutation.tests) if word.endswith(".py")]
    assert files
    assert all((ROOT / "tests" / file).is_file() for file in files)
