"""Where settings are written about, the page and `.env.example`, each is named with the default of the code."""

import re
from pathlib import Path

import pytest

from app.core.config import AppSettings
from backburner import Settings
from tests.guide import SERVER_AND_CACHE

EXAMPLE = Path(__file__).parent.parent / ".env.example"
SETTINGS = EXAMPLE.parent / "docs" / "settings.md"
ASSIGNMENT = re.compile(r"^# (?=[A-Z][A-Z0-9_]+=)", re.MULTILINE)


@pytest.fixture
def uncommented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example with every assignment in force, and an environment that sets nothing."""
    for name in AppSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    path = tmp_path / ".env"
    path.write_text(ASSIGNMENT.sub("", EXAMPLE.read_text()))
    return path


def named(path: Path) -> list[str]:
    return re.findall(r"^([A-Z0-9_]+)=", path.read_text(), re.MULTILINE)


def test_every_setting_is_named_once_and_nothing_else_is(uncommented: Path) -> None:
    assert sorted(named(uncommented)) == sorted(name.upper() for name in AppSettings.model_fields)


def test_it_shows_the_defaults_of_the_code(uncommented: Path) -> None:
    from_example = AppSettings(_env_file=uncommented)
    from_code = AppSettings(_env_file=None)
    assert from_example.model_dump() == from_code.model_dump()


def test_it_names_the_one_default_that_is_not_the_librarys(uncommented: Path) -> None:
    library = Settings(_env_file=None)
    here = AppSettings(_env_file=uncommented)
    different = {name.upper() for name in Settings.model_fields if getattr(here, name) != getattr(library, name)}
    said = re.search(r"that\W+of the library too, but for (\w+)", EXAMPLE.read_text())
    assert said is not None
    assert different == {said[1]}


def test_the_page_on_settings_has_each_of_the_librarys_with_its_default() -> None:
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| (.+?) \|", SETTINGS.read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(name.upper() for name in Settings.model_fields)
    followers = {"REDIS_URL": "made of the five above", "CACHE_URL": "`REDIS_URL`"}
    followers |= dict.fromkeys(("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"), "`REDIS_URL`")
    for name, said in rows:
        default = Settings.model_fields[name.lower()].default
        shown = "none" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        assert said == followers.get(name, shown), name


def test_copied_as_it_is_it_changes_nothing_and_names_no_server(uncommented: Path) -> None:
    copied = AppSettings(_env_file=EXAMPLE)
    assert copied.model_fields_set == set()
    assert not copied.names_a_server


def test_it_opens_with_the_block_that_the_guide_prints(uncommented: Path) -> None:
    assert SERVER_AND_CACHE in uncommented.read_text()
