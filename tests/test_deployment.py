"""What runs elsewhere, checked here: the image, the compose file and the pinned requirements.

Nothing is built or started. What these files name must exist: commands, modules, settings, files, versions.
"""

import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from app.core.config import AppSettings
from tests.pages.commands import check
from tests.processes import ROOT

REQUIREMENTS = ["dev", "run", "build"]
FROM_OUR_IMAGE = ["migrate", "api", "worker", "beat", "flower"]


@cache
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return parsed


@cache
def dockerfile() -> list[tuple[str, list[str]]]:
    """Each instruction with its words; continued lines joined, comments dropped."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, json.loads(rest) if rest.startswith("[") else rest.split()) for name, rest in lines]


def instructions(name: str) -> list[list[str]]:
    return [words for instruction, words in dockerfile() if instruction == name]


@pytest.mark.parametrize("name", FROM_OUR_IMAGE)
def test_a_service_runs_a_command_that_exists(name: str) -> None:
    check(shlex.split(compose()["services"][name]["command"]), ROOT)


@pytest.mark.parametrize("name", FROM_OUR_IMAGE)
def test_a_service_sets_only_variables_that_are_settings(name: str) -> None:
    known = {field.upper() for field in AppSettings.model_fields}
    assert set(compose()["services"][name]["environment"]) <= known


def test_the_settings_of_the_services_are_accepted_as_they_are() -> None:
    given = compose()["services"]["api"]["environment"]
    defaults: dict[str, Any] = {
        name.lower(): re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in given.items()
    }
    settings = AppSettings(_env_file=None, **defaults)
    assert settings.celery_broker_url == "redis://valkey:6379/0"
    assert "valkey" in compose()["services"]
    assert "@postgres/" in settings.database_url
    assert "postgres" in compose()["services"]


def test_a_service_waits_for_those_it_needs_until_they_are_healthy() -> None:
    services = compose()["services"]
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[needed]["restart"] == "no"


def test_ports_are_open_to_this_machine_only() -> None:
    ports = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert set(ports) == {"api", "flower", "mail"}
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)


def test_the_worker_is_asked_at_the_port_where_it_answers() -> None:
    worker = compose()["services"]["worker"]
    port = re.search(r"--health-port (\d+)", worker["command"])[1]
    assert f"http://127.0.0.1:{port}/health" in worker["healthcheck"]["test"][-1]


def test_uploads_are_where_both_the_api_and_the_worker_look() -> None:
    api, worker = compose()["services"]["api"], compose()["services"]["worker"]
    assert api["volumes"] == worker["volumes"]
    (volume,) = api["volumes"]
    folder = volume.partition(":")[2]
    assert any(f"UPLOAD_DIR={folder}" in words for words in instructions("ENV"))


def test_what_is_due_is_remembered_when_beat_is_replaced() -> None:
    beat = compose()["services"]["beat"]
    folder = re.search(r"--schedule (\S+)/", beat["command"])[1]
    assert [volume.partition(":")[2] for volume in beat["volumes"]] == [folder]


def test_a_volume_belongs_to_the_user_of_the_image() -> None:
    made = {word for words in instructions("RUN") if "--owner=bookstore" in words for word in words}
    mounted = {
        volume.partition(":")[2] for name in FROM_OUR_IMAGE for volume in compose()["services"][name].get("volumes", [])
    }
    assert mounted <= made


def test_a_stream_does_not_keep_the_api_until_it_is_killed() -> None:
    api = compose()["services"]["api"]
    seconds = re.search(r"--timeout-graceful-shutdown (\d+)", api["command"])[1]
    assert int(seconds) < int(api.get("stop_grace_period", "10s").removesuffix("s"))


def test_volumes_are_declared_and_images_have_a_version() -> None:
    services = compose()["services"].values()
    used = {volume.partition(":")[0] for service in services for volume in service.get("volumes", [])}
    assert used == set(compose()["volumes"])
    foreign = [service["image"] for service in services if "build" not in service]
    assert all(re.search(r":v?\d", image) for image in foreign)


def test_the_queue_is_kept_on_disk_and_never_evicted() -> None:
    command = compose()["services"]["valkey"]["command"]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_compose_file_is_accepted_by_docker() -> None:
    try:
        version = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("docker is not installed")
    if version.returncode:
        pytest.skip("this docker client has no compose plugin")
    command = ["docker", "compose", "config", "--quiet"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    for words in instructions("COPY"):
        if words[0].startswith("--from="):
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists()
            assert source.partition("/")[0] in sent


def test_the_image_installs_by_hash_only() -> None:
    installs = [line for words in instructions("RUN") for line in " ".join(words).split("&&") if " install " in line]
    pip = [line for line in installs if "pip" in line]
    assert len(pip) == 3
    for line in pip:
        assert "--require-hashes" in line or "--no-index" in line


def test_the_image_does_not_run_as_root_and_says_how_it_is() -> None:
    (user,) = instructions("USER")
    assert user != ["root"]
    last = [name for name, _ in dockerfile()][-5:]
    assert last.index("USER") < last.index("CMD")
    assert "HEALTHCHECK" in last
    (command,) = instructions("CMD")
    check(command, ROOT)
    assert shlex.split(compose()["services"]["api"]["command"]) == command


@cache
def pins(name: str) -> dict[str, list[Requirement]]:
    """The pinned requirements of a file, by package; a package may be pinned once for each environment."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", "").splitlines()
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line.partition("--hash")[0])
            found.setdefault(normal(requirement.name), []).append(requirement)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(project: dict[str, Any], extras: set[str], groups: set[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for, with extras of our own and included groups followed."""
    yield from map(Requirement, project["project"]["dependencies"])
    for extra in extras:
        for line in project["project"]["optional-dependencies"][extra]:
            requirement = Requirement(line)
            if requirement.name == "backburner":
                yield from wanted(project, requirement.extras, set())
            else:
                yield requirement
    for group in groups:
        for line in project["dependency-groups"][group]:
            if isinstance(line, dict):
                yield from wanted(project, set(), {line["include-group"]})
            else:
                yield Requirement(line)


@pytest.mark.parametrize(
    ("name", "extras", "groups"),
    [("dev", {"all"}, {"work"}), ("run", {"celery", "fastapi"}, {"deploy"}), ("build", set(), {"build"})],
)
def test_the_pins_are_what_pyproject_asks_for(name: str, extras: set[str], groups: set[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if name == "build":
        project["project"]["dependencies"] = []
    for requirement in wanted(project, extras, groups):
        for pin in pins(name)[normal(requirement.name)]:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(Version(specifier.version), prereleases=True), (
                f"{pin} is not {requirement}: run `make pins`"
            )


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_pin_is_exact_has_hashes_and_names_no_index(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.sub(r"\\\n", "", text).splitlines()
    entries = [entry for entry in entries if entry and not entry.lstrip().startswith("#")]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9.-]*(\[[a-z0-9,-]+\])?==[^ ]+ ", entry)
        assert "--hash=sha256:" in entry
    assert not re.search(r"https?:|file:|index-url|find-links|trusted-host", text)


@pytest.mark.slow
def test_the_image_has_every_package_that_its_programs_import() -> None:
    """With whatever else is installed here hidden: a package may be there only because a test tool needs it."""
    installed = {normal(name) for names in packages_distributions().values() for name in names}
    program = f"""
        import sys
        from importlib.metadata import packages_distributions

        hidden = {installed - set(pins("run")) - {"backburner", "pip", "setuptools"}!r}
        normal = lambda name: name.replace("_", "-").replace(".", "-").lower()
        modules = {{
            module for module, names in packages_distributions().items() if {{*map(normal, names)}} <= hidden
        }}

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name in modules:
                    raise ModuleNotFoundError(f"requirements/run.txt lacks {{name}}", name=name)

        sys.meta_path.insert(0, Hidden())
        import alembic.command, flower.command, kombu.transport.redis, psycopg, uvicorn.main
        import app.main, app.workers.tasks
        from app.core.celery_app import celery_app

        celery_app.connection_for_write().transport, celery_app.backend
        celery_app.Worker, celery_app.Beat
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", ["run", "build"])
def test_the_image_gets_the_versions_that_were_tested(name: str) -> None:
    for package, requirements in pins(name).items():
        assert {str(pin.specifier) for pin in requirements} <= {str(pin.specifier) for pin in pins("dev")[package]}
