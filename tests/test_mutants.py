"""The list of faults for `make mutants` fits the code."""

import ast

from tests.mutants import ROOT, mutants


def test_every_fault_still_fits_the_code() -> None:
    listed = list(mutants())
    assert len({(m.file, m.old, m.new) for m in listed}) == len(listed)
    assert sum(not m.equivalent for m in listed) >= 150
    for mutant in listed:
        ast.parse(mutant.apply((ROOT / mutant.file).read_text()))
        files = [word for word in mutant.tests if word.endswith(".py")]
        assert files
        assert all((ROOT / file).exists() for file in files), mutant
