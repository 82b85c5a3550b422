"""The list of planted faults is of this code: `python tests/faults.py` plants them, which takes 20 minutes."""

import pytest
from faults import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.old}")
def test_the_text_of_a_fault_occurs_once_in_its_file(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert fault.old != fault.new
