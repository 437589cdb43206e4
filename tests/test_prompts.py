"""The template's questions."""

import json
from pathlib import Path

import pytest
from conftest import TEMPLATE, UV, Bake, files, run

QUESTIONS = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
ANSWERS = [key for key in QUESTIONS if not key.startswith("_")]
CHOICES = [
    (key, choice)
    for key in ANSWERS
    if isinstance(QUESTIONS[key], list)
    for choice in QUESTIONS[key]
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_prompt_is_a_sentence(answer: str) -> None:
    prompt = QUESTIONS["__prompts__"][answer]
    question = prompt["__prompt__"] if isinstance(prompt, dict) else prompt
    assert len(question.split()) > 3
    assert answer not in question


@pytest.mark.parametrize(("answer", "choice"), CHOICES)
def test_every_choice_is_explained_in_words(answer: str, choice: str) -> None:
    assert len(QUESTIONS["__prompts__"][answer][choice]) > len(choice)


@pytest.mark.parametrize(("answer", "choice"), CHOICES)
def test_every_choice_bakes(bake: Bake, answer: str, choice: str) -> None:
    project = bake(**{answer: choice})
    assert (project / "pyproject.toml").is_file()


def test_every_answer_is_explained_in_the_readme() -> None:
    readme = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    assert [answer for answer in ANSWERS if f"| `{answer}` |" not in readme] == []
    missing = [choice for _, choice in CHOICES if f"`{choice}`" not in readme]
    assert missing == []


def test_pressing_enter_bakes_the_default_project(tmp_path: Path, default_project: Path) -> None:
    command = [UV.with_name("cookiecutter"), TEMPLATE, "--default-config", "-o", tmp_path]
    printed = run(*command, cwd=tmp_path, input="\n" * len(ANSWERS))
    assert "[9/9]" in printed, "A prompt was not shown."
    assert files(tmp_path / default_project.name) == files(default_project)


def test_typed_answers_are_used(tmp_path: Path) -> None:
    typed = ["Company DB", "company-errbot", "1", "What it is {{ for }}.", "A. Person"]
    typed += ["a@example.org", "https://example.org/x", "3", "2"]
    command = [UV.with_name("cookiecutter"), TEMPLATE, "--default-config", "-o", tmp_path]
    run(*command, cwd=tmp_path, input="\n".join(typed) + "\n")
    project = files(tmp_path / "company-errbot")
    assert b"Name = Company DB\n" in project["src/company_errbot/storage.plug"]
    assert b"Description = What it is {{ for }}.\n" in project["src/company_errbot/storage.plug"]
    assert b"class CompanyDBStorage(" in project["src/company_errbot/storage.py"]
    assert b"Apache License" in project["LICENSE"]
    assert ".gitlab-ci.yml" in project


def test_a_bake_prints_the_next_commands(tmp_path: Path) -> None:
    command = [UV.with_name("cookiecutter"), TEMPLATE, "--no-input", "--default-config"]
    printed = run(*command, "-o", tmp_path, cwd=tmp_path)
    assert "cd errbot-storage-acme\n" in printed
    assert "-m pytest\n" in printed
