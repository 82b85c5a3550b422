"""docs/vdm.md: the code that it shows beside an equation is code of the file that it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_code_on_the_page_is_that_of_its_file() -> None:
    page = (ROOT / "docs" / "vdm.md").read_text()
    shown = re.findall(r"`([^`]+)`\sin\s\[`([^`]+)`\]\(\.\./([^)]+)\)", page)
    assert [name for _, name, _ in shown] == [link for _, _, link in shown]
    assert {code for code, name, _ in shown if code not in (ROOT / name).read_text()} == set()
    assert len(shown) == page.count("](../") > 20
