"""docs/contract.md names every test of the contract, and none that is gone."""

import re

from conftest import TEMPLATE

CONTRACT = TEMPLATE / "{{cookiecutter.plugin_slug}}" / "tests" / "contract"


def test_every_promise_is_written_down() -> None:
    tests = {
        name
        for file in CONTRACT.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(tests) > 40
    text = (TEMPLATE / "docs" / "contract.md").read_text(encoding="utf-8")
    promised, _, found = text.partition("## That the tests catch")
    named = set(re.findall(r"`(test_\w+)", promised))
    assert named == tests
    assert set(re.findall(r"`(test_\w+?)[`\[]", found)) <= tests
