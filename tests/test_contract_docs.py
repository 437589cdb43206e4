"""docs/contract.md names every test of the contract, and none that is gone."""

import re

from conftest import TEMPLATE, contract_tests


def test_every_promise_is_written_down() -> None:
    tests = contract_tests()
    assert len(tests) > 40
    text = (TEMPLATE / "docs" / "contract.md").read_text(encoding="utf-8")
    promised, _, found = text.partition("## That the tests catch")
    named = set(re.findall(r"`(test_\w+)", promised))
    assert named == tests
    assert set(re.findall(r"`(test_\w+?)[`\[]", found)) <= tests
