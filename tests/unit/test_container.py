"""`Dockerfile` and `compose.yaml` against the package: an image is too slow to build in a test."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hdlm.cli import main
from hdlm.serve.options import ServeOptions
from tests.serving import HTTP, serving, small_model


@pytest.fixture(scope="module")
def lines(repository: Path) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments."""
    text = (repository / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    rows = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, rest in rows]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def arguments(lines: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in lines if instruction == name]


def test_image_installs_extras_that_exist_on_a_supported_python(lines: Any, project: dict[str, Any]) -> None:
    (extras,) = (found[1] for run in arguments(lines, "RUN") if (found := re.search(r'"\.\[(.+)\]"', run)))
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    least, most = map(int, re.findall(r"3\.(\d+)", project["project"]["requires-python"]))
    for base in arguments(lines, "FROM"):
        assert least <= int(re.match(r"python:3\.(\d+)-slim", base)[1]) < most


def test_image_gets_every_file_that_the_package_is_built_from(
    lines: Any, project: dict[str, Any], repository: Path
) -> None:
    copied = {
        source
        for files in arguments(lines, "COPY")
        if not files.startswith("--from")
        for source in files.split()[:-1]
    }
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", project["project"]["readme"]}
    needed |= set(project["project"]["license-files"])
    assert {path.split("/")[0] for path in needed} <= copied
    ignored = (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert copied <= {line[1:] for line in ignored if line.startswith("!")}
    assert all((repository / path).exists() for path in copied)


@pytest.mark.slow
def test_health_check_asks_an_open_route_of_the_port(lines: Any) -> None:
    (check,) = arguments(lines, "HEALTHCHECK")
    _, _, code = json.loads(check.partition("CMD ")[2])
    address = urlsplit(re.search(r"http://[^']+", code)[0])
    assert [str(address.port)] == arguments(lines, "EXPOSE") == [str(ServeOptions().port)]
    with serving([small_model()], ServeOptions(api_key="sesame")) as server:
        exec(code.replace(f"http://{address.netloc}", server))
        assert HTTP.get(f"{server}{address.path}").status_code == 200
    with pytest.raises(OSError, match="refused"):
        exec(code.replace(f"http://{address.netloc}", server))


def test_server_of_the_image_has_no_rights_and_needs_a_key(
    lines: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = re.search(r"--uid (\d+) (\w+)", " ".join(arguments(lines, "RUN")))
    assert arguments(lines, "USER") == [made[2]]
    assert int(made[1]) >= 1000
    assert [name for name, _ in lines].index("USER") < [name for name, _ in lines].index("ENTRYPOINT")
    command, *start = json.loads(arguments(lines, "ENTRYPOINT")[0])
    assert command == "hdlm"
    monkeypatch.delenv("HDLM_API_KEY", raising=False)
    assert main(start) == 2
    assert "set `api_key`" in capsys.readouterr().err


def test_compose_publishes_the_port_on_this_machine_and_asks_for_the_key(repository: Path) -> None:
    text = (repository / "compose.yaml").read_text(encoding="utf-8")
    assert f'"127.0.0.1:{ServeOptions().port}:{ServeOptions().port}"' in text
    assert "HDLM_API_KEY: ${HDLM_API_KEY:?" in text
    for line in ("read_only: true", "cap_drop: [ALL]", "no-new-privileges:true"):
        assert line in text
