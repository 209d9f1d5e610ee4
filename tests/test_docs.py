"""What the documents say about the tests is so."""

import re

from conftest import ROOT


def test_every_row_of_the_table_of_faults_names_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| `(test_\w+)` \|$", page, flags=re.MULTILINE)
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
    tests = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.M)}
    assert len(rows) > 25
    assert set(rows) <= tests
