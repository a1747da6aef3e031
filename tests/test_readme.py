"""The README's tables are the ones its own data give."""

from lib.workbook import readme


def test_the_tables_of_the_readme_are_current():
    text = readme.README.read_text()
    assert readme.current(text) == text
