"""Recorded answers (`cookiecutter --replay-file`), which Cookiecutter does not check."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, UV, files, run
from cookiecutter.main import cookiecutter
from test_refusals import BAD, EXAMPLES

Replay = Callable[[dict[str, Any]], Path]

CODE = "open('OWNED', 'w')"
MISSING = object()
NO_TEXTS: list[Any] = [None, 3, 1.5, True, ["Acme"], {"a": "b"}, [], {}]
NO_CHOICES = ["", "gitlab2", "GITHUB", "shared", "../dict", f'"; {CODE}; "', *NO_TEXTS]
SEVERAL_FOLDERS = ["a/b", "a/b/c/d", "../x", "../x/y", "a//b/", "./a/b", "{}/x/y"]
CHANGED_SETTINGS: dict[str, list[Any]] = {
    "__package": ["acme", "", "../../x", "errbot-storage-acme", None, ["errbot_storage_acme"]],
    "__class": ["", "Acme2", f"X:\n    pass\n{CODE}\nclass Y", None, 1],
    "_copy_without_render": [[], ["*"], "tests/contract", ["tests/contract", "src/*"]],
    "_jinja2_env_vars": [{"trim_blocks": True}],
    "_new_lines": ["\r\n"],
}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Cookiecutter's recording of a bake with all defaults."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "config.yaml").write_text(f"replay_dir: {folder}\n")
    config = str(folder / "config.yaml")
    cookiecutter(str(TEMPLATE), no_input=True, output_dir=str(folder), config_file=config)
    recording: dict[str, Any] = json.loads((folder / f"{TEMPLATE.name}.json").read_text())
    return recording


@pytest.fixture
def replay(tmp_path: Path, recorded: dict[str, Any]) -> Replay:
    """Bake from a recording with some answers changed, or MISSING."""

    def replay(changes: dict[str, Any]) -> Path:
        answers = {**recorded["cookiecutter"], **changes}
        answers = {key: value for key, value in answers.items() if value is not MISSING}
        (tmp_path / "replay.json").write_text(json.dumps({"cookiecutter": answers}))
        (tmp_path / "output").mkdir(exist_ok=True)
        recording, output = str(tmp_path / "replay.json"), str(tmp_path / "output")
        return Path(
            cookiecutter(str(TEMPLATE), replay=recording, output_dir=output, default_config=True)
        )

    return replay


def check_refused(
    replay: Replay, tmp_path: Path, capfd: pytest.CaptureFixture[str], **changes: Any
) -> str:
    """Replay, check that this fails and leaves no files anywhere, and return the error."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its type depends on Cookiecutter
        replay(changes)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"output", "replay.json"}, "The failed bake left files behind."
    return capfd.readouterr().err + str(caught.value)


def test_a_recorded_bake_is_repeated_exactly(replay: Replay, default_project: Path) -> None:
    assert files(replay({})) == files(default_project)


def test_answers_to_questions_of_another_template_change_nothing(
    replay: Replay, default_project: Path
) -> None:
    more = {"colour": "blue", "__shade": [1], "_note": None, "": "{{ 1 / 0 }}"}
    assert files(replay(more)) == files(default_project)


@pytest.mark.parametrize(
    ("answer", "given"), [(key, bad) for key in BAD for bad in [*BAD[key], *NO_TEXTS]], ids=ascii
)
def test_a_bad_answer_in_a_recording_is_refused_and_nothing_is_left(
    replay: Replay, tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: str, given: Any
) -> None:
    told = check_refused(replay, tmp_path, capfd, **{answer: given})
    if "No project was created" in told:
        assert f"  {answer} " in told, "The message does not name the answer."
        assert EXAMPLES[answer] in told, "The message gives no example."
    else:
        assert answer == "plugin_slug", "Only the folder's name can fail before the hook runs."


@pytest.mark.parametrize("given", NO_CHOICES, ids=ascii)
@pytest.mark.parametrize("answer", ["database", "license", "ci"])
def test_an_invalid_recorded_choice_is_refused(
    replay: Replay, tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: str, given: Any
) -> None:
    told = check_refused(replay, tmp_path, capfd, **{answer: given})
    choices = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))[answer]
    assert f"  {answer} must be one of {', '.join(choices)}." in told
    assert f"example: {choices[0]!r}" in told


@pytest.mark.parametrize("slug", SEVERAL_FOLDERS)
def test_an_invalid_recorded_slug_leaves_no_folder_anywhere(
    replay: Replay, tmp_path: Path, capfd: pytest.CaptureFixture[str], slug: str
) -> None:
    told = check_refused(replay, tmp_path, capfd, plugin_slug=slug.format(tmp_path))
    assert "  plugin_slug must start with a letter" in told


def test_a_refused_slug_removes_no_folder_with_files(replay: Replay, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    with pytest.raises(Exception):  # noqa: B017, PT011 - as above
        replay({"plugin_slug": "../kept/a/b"})
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]


@pytest.mark.parametrize(
    "slug", ["x/..", "x/../kept", "x/../../output/kept", "x/y/../..", "../x/..", "{}/x/../output"]
)
def test_a_refused_slug_removes_no_existing_folder(
    replay: Replay, tmp_path: Path, slug: str
) -> None:
    kept = tmp_path / "output" / "kept" / "file"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(KeyError, match="plugin_slug must be one folder, not "):
        replay({"plugin_slug": slug.format(tmp_path)})
    assert kept.exists()


@pytest.mark.parametrize(
    ("setting", "given"),
    [(key, value) for key, values in CHANGED_SETTINGS.items() for value in values],
    ids=ascii,
)
def test_changed_settings_in_a_recording_are_refused(
    replay: Replay, tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str, given: Any
) -> None:
    told = check_refused(replay, tmp_path, capfd, **{setting: given})
    assert f"  {setting} is set by the template" in told


@pytest.mark.parametrize("setting", ["__package", "__class"])
def test_a_recording_without_settings_leaves_no_files(
    replay: Replay, tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str
) -> None:
    check_refused(replay, tmp_path, capfd, **{setting: MISSING})


def test_the_command_line_says_why_it_refuses_a_recording(
    tmp_path: Path, recorded: dict[str, Any]
) -> None:
    recorded = {"cookiecutter": {**recorded["cookiecutter"], "ci": f'"); {CODE}; ("'}}
    (tmp_path / "replay.json").write_text(json.dumps(recorded))
    command = [UV.with_name("cookiecutter"), TEMPLATE, "--replay-file", tmp_path / "replay.json"]
    with pytest.raises(AssertionError, match="ci must be one of github, gitlab, none"):
        run(*command, "--default-config", "-o", tmp_path / "output", cwd=tmp_path)
    assert not list(tmp_path.rglob("OWNED"))
