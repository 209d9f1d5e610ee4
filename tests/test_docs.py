"""What the documents say about the tests is so."""

import re

import jax
import jax.numpy as jnp
from conftest import ROOT

from charrnn_jax.models.cells import CELLS
from charrnn_jax.workdir.resume import _MAY_CHANGE, _MAY_NOT_CHANGE


def test_every_row_of_the_table_of_faults_names_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| `(test_\w+)` \|$", page, flags=re.MULTILINE)
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
    tests = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.M)}
    assert len(rows) > 25
    assert set(rows) <= tests


def test_table_of_cells_has_every_cell_with_its_forms_size_and_carry() -> None:
    page = (ROOT / "docs" / "cells.md").read_text(encoding="utf-8")
    size, rows = 8, {}
    for name, *row in re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE):
        forms, count, carry = row
        square, linear = re.fullmatch(r"(\d+) H² \+ (?:(\d+) )?H", count).groups()
        rows[name] = forms, int(square) * size**2 + int(linear or 1) * size, carry
    expected = {}
    for name in CELLS:
        cell = CELLS[name]
        init = cell.module(features=size, parent=None).init
        carry, inputs = cell.initialize_carry(1, size), jnp.zeros((1, size))
        params = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0), carry, inputs))
        forms = [form for form in ("parallel", "fused") if getattr(cell, form)] + ["scan"]
        expected[name] = ", ".join(forms), sum(leaf.size for leaf in params), cell.carry
    assert rows == expected


def test_page_names_every_field_that_a_resumed_run_may_or_may_not_change() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for name in (*_MAY_CHANGE, *_MAY_NOT_CHANGE):
        assert re.search(rf"`{re.escape(name)}[`*]", page), name
