import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from tests.mutants import Mutant, check, measure, read_mutants  # noqa: E402
