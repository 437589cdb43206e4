"""docs/contract.md names every test of the contract, and no others."""

import ast
import re

from conftest import CONTRACT, TEMPLATE, contract_tests


def test_every_promise_is_documented() -> None:
    tests = contract_tests()
    assert len(tests) > 40
    text = (TEMPLATE / "docs" / "contract.md").read_text(encoding="utf-8")
    promised, _, found = text.partition("## That the tests catch")
    named = set(re.findall(r"`(test_\w+)", promised))
    assert named == tests
    assert set(re.findall(r"`(test_\w+?)[`\[]", found)) <= tests


def test_the_readmes_give_the_sizes_that_the_contract_requires() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in CONTRACT.glob("test_*.py"))
    sizes = re.findall(r"^MANY = many\(([\d_]+),", text, re.MULTILINE)
    sizes += re.findall(r"([\d_]+)\]\)\ndef test_a_value_of_any_size_comes_back", text)
    assert len(sizes) == 3
    for readme in [TEMPLATE, TEMPLATE / "{{cookiecutter.plugin_slug}}"]:
        words = (readme / "README.md").read_text(encoding="utf-8")
        missing = [f"{int(size):,}" for size in sizes if f"{int(size):,}" not in words]
        assert not missing, f"{readme.name}/README.md does not name {missing}."


def test_every_test_states_its_promise_for_the_report() -> None:
    promises: dict[str, str] = {}
    for file in CONTRACT.glob("test_*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                promises[node.name] = ast.get_docstring(node) or ""
    assert promises.keys() == contract_tests()
    assert [name for name, words in promises.items() if not re.fullmatch(r".+\.", words)] == []
    assert len(set(promises.values())) == len(promises), "Two tests have the same promise."
