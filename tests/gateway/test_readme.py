"""The unit file, the manifest and the config file of the gateway's page, read by parsers."""

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

import vllm_bridge.gateway
from vllm_bridge.config import file as config_file
from vllm_bridge.gateway.settings import SETTINGS, read

README = Path(vllm_bridge.gateway.__file__).with_name("README.md").read_text("utf-8")
ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> List[str]:
    return re.findall(r"(?s)```%s\n(.*?)```" % language, README)


def test_the_unit_file(tmp_path: Path) -> None:
    (text,) = blocks("ini")
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    assert set(parser.sections()) == {"Unit", "Service", "Install"}
    assert " serve " in parser["Service"]["ExecStart"]
    if shutil.which("systemd-analyze"):
        path = tmp_path / "vllm-bridge.service"
        path.write_text(text)
        found = subprocess.run(["systemd-analyze", "verify", str(path)], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, universal_newlines=True)
        assert "vllm-bridge.service:" not in found.stdout, found.stdout


def test_the_manifest() -> None:
    yaml = pytest.importorskip("yaml")
    headless, text = blocks("yaml")
    assert yaml.safe_load(headless)["spec"]["clusterIP"] == "None"
    deployment, service = yaml.safe_load_all(text)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    assert deployment["spec"]["template"]["spec"]["enableServiceLinks"] is False
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    compile(container["readinessProbe"]["exec"]["command"][-1], "readiness", "exec")
    ports = [port["name"] for port in container["ports"]]
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert container["livenessProbe"]["httpGet"]["port"] in ports
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    mounts = [mount["name"] for mount in container["volumeMounts"]]
    assert mounts == [volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]]


def test_the_image() -> None:
    """The image starts what the manifest's arguments go to, and its check of health is Python."""
    from vllm_bridge.cli.parser import _parse

    text = (ROOT / "scripts" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    said = dict(re.findall(r"^(ENTRYPOINT|CMD|HEALTHCHECK|USER) (.+)$", text, re.M))
    assert json.loads(said["ENTRYPOINT"]) == ["vllm-bridge"] and not said["USER"].startswith(("0", "root"))
    compile(json.loads(said["HEALTHCHECK"].partition("CMD ")[2])[-1], "health", "exec")
    _parse(json.loads(said["CMD"]))
    manifest = re.search(r"args: \[(.+)\]", README)
    assert manifest is not None
    _parse(manifest.group(1).split(", "))


def test_the_config_file(tmp_path: Path) -> None:
    (text,) = blocks("json")
    environ = {"GATEWAY_KEY": "sk-g", "GPU_KEY": "sk-v"}
    assert len(config_file.loads(text, environ=environ).provider.keys) == 2
    path = tmp_path / "config.json"
    path.write_text(text)
    settings = read({"config": str(path)}, environ)
    assert settings.api_keys == ("sk-g",)
    assert json.loads(text)["client"]["port"] == settings.port


def test_every_flag_is_in_the_table() -> None:
    for setting in SETTINGS:
        assert "`--%s`" % setting.name.replace("_", "-") in README, setting.name
