"""Pages that teach by our own code: what they show beside an equation is code of the file that they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["vdm.md", "latent.md"])
def test_the_code_on_the_page_is_that_of_its_file(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    shown = re.findall(r"`([^`]+)`\sin\s\[`([^`]+)`\]\(\.\./([^)]+)\)", page)
    assert [file for _, file, _ in shown] == [link for _, _, link in shown]
    assert {code for code, file, _ in shown if code not in (ROOT / file).read_text()} == set()
    assert len(shown) == page.count("](../") > 20


@pytest.mark.parametrize("name", ["vdm.md", "latent.md"])
def test_the_page_names_pages_that_there_are(name: str) -> None:
    links = re.findall(r"\]\(([\w./]+\.md)\)", (ROOT / "docs" / name).read_text())
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []
