"""docker/: what images, compose files and manifests say is what the programs take. `docker/test` builds and runs them."""

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import sign_in_elsewhere
import yaml
from certificates import make_certificate

from companion_push.cli import make_parser as make_push_parser
from relying_party.cli import make_parser as make_party_parser
from tests.test_documentation import leaves

ROOT: Final = Path(__file__).parent.parent
DOCKER: Final = ROOT / "docker"
COMPOSE: Final = ("compose.yaml", "compose.production.yaml")
PREFIXES: Final = {
    "COMPANION_PUSH_RELAY_": "relay",
    "COMPANION_PUSH_TUNNEL_SERVICE_": "tunnel-service",
    "COMPANION_PUSH_COMPANION_PAGE_": "page",
    "RELYING_PARTY_": "serve",
}
OURS: Final = ("relay", "tunnel-service", "relying-party")


def stages() -> dict[str, list[str]]:
    """The instructions of the Dockerfile by stage, continued lines joined."""
    found: dict[str, list[str]] = {}
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    for line in lines:
        if line.startswith("FROM "):
            current = found.setdefault(line.rsplit(" AS ", 1)[1], [])
        elif not line.startswith("ARG ") or found:
            current.append(line)
    return found


STAGES: Final = stages()
IMAGES: Final = ("relay", "tunnel-service", "relying-party", "companion", "demo")


def of(stage: str, instruction: str) -> list[str]:
    return [line.partition(" ")[2].strip() for line in STAGES[stage] if line.partition(" ")[0] == instruction]


def compose(name: str) -> Any:
    """A compose file. yaml.safe_load resolves what is merged into its services."""
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


def services() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for file in COMPOSE:
        for name, service in compose(file)["services"].items():
            yield file, name, service


def manifests() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in sorted((DOCKER / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            yield file.name, document


def pods() -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]:
    """Each workload, its pod and the one container in it."""
    for _, document in manifests():
        if document["kind"] in ("Deployment", "StatefulSet"):
            pod = document["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield document, pod, container


def environments() -> Iterator[tuple[str, str, str]]:
    """Every variable that is set anywhere: where, name, value."""
    for stage in STAGES:
        for line in of(stage, "ENV"):
            yield from (("Dockerfile", *pair) for pair in re.findall(r"(\w+)=(\S+)", line))
    for file, _, service in services():
        yield from ((file, name, str(value)) for name, value in service.get("environment", {}).items())
    for file, document in manifests():
        if document["kind"] == "ConfigMap":
            yield from ((file, name, value) for name, value in document["data"].items())
    for document, _, container in pods():
        for each in container.get("env", []):
            yield document["metadata"]["name"], each["name"], each.get("value", "")


def actions(program: str) -> dict[str, argparse.Action]:
    """The options of a program by the ends of their variables' names."""
    parser = (
        make_party_parser()
        if program == "serve"
        else make_push_parser("companion" if program == "page" else program)
    )
    (leaf,) = (leaf for leaf in leaves(parser) if leaf.prog.split()[-1] == program)
    return {
        option.removeprefix("--").upper().replace("-", "_"): action
        for action in leaf._actions
        for option in action.option_strings
    }


# the programs take what is set


def test_every_variable_that_is_set_is_an_option_that_takes_the_value() -> None:
    seen = set()
    for where, name, value in environments():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            continue
        action = actions(PREFIXES[prefix]).get(name.removeprefix(prefix))
        assert action is not None, f"{where}: {name}"
        if callable(action.type) and value and "$" not in value:
            action.type(value)
        seen.add(prefix)
    assert seen == set(PREFIXES)


@pytest.mark.threat("T11")
def test_no_secret_is_in_a_variable_a_command_or_a_manifest() -> None:
    for where, name, value in environments():
        if re.search("PASSWORD|SECRET|KEY|PASSFILE|AUTH", name) and name != "POSTGRES_INITDB_ARGS":
            assert not value or value.startswith("/"), f"{where}: {name}"
        assert not re.search("://[^/]*:[^/]*@", value), f"{where}: {name}"
    for _, name, service in services():
        for word in [*service.get("entrypoint", []), *service.get("command", [])]:
            assert not re.search(r"(?i)pass(word)?=|requirepass", word), name
    assert not any(document["kind"] == "Secret" for _, document in manifests())


def test_the_demo_is_given_what_its_program_takes() -> None:
    taken = sign_in_elsewhere.make_parser().parse_args(compose("compose.yaml")["services"]["demo"]["command"])
    relay = compose("compose.yaml")["services"]["relay"]["environment"]
    assert (taken.relay, taken.store) == (
        relay["COMPANION_PUSH_RELAY_PUBLIC_URL"],
        relay["COMPANION_PUSH_RELAY_STORE"],
    )


# images


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_starts_its_program_without_a_shell_and_as_nobody(image: str) -> None:
    assert of("image", "USER") == ["10001:10001"]
    assert not of(image, "USER") + of(image, "RUN") + of("image", "RUN")  # a base without a shell will do
    (entrypoint,), (command,) = of(image, "ENTRYPOINT"), of(image, "CMD")
    assert json.loads(entrypoint)[0] in ("companion-push", "relying-party", "python")
    assert isinstance(json.loads(command), list)
    assert "org.opencontainers.image.title" in of(image, "LABEL")[0]


@pytest.mark.parametrize("image", [*OURS, "companion"])
def test_a_server_is_checked_where_it_listens(image: str) -> None:
    (port,) = of(image, "EXPOSE")
    assert f"_LISTEN=0.0.0.0:{port}" in of(image, "ENV")[0]
    (check,) = of(image, "HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    assert words == ["python", "/opt/headless-passkey/healthy.py", f"http://127.0.0.1:{port}/readyz"]


def test_images_hold_the_versions_that_are_tested() -> None:
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+(?:\[[^]]*\])?)==(\S+)", path.read_text(), re.MULTILINE))

    tested = pins(ROOT / "requirements/check.txt")
    for path in sorted((ROOT / "requirements/images").glob("*.txt")):
        ours = pins(path)
        assert ours, path
        assert ours.items() <= tested.items(), path
        assert f"requirements/images/{path.name}" in (DOCKER / "Dockerfile").read_text(), path


def test_no_image_is_the_latest() -> None:
    images = [service["image"] for *_, service in services()]
    images += [container["image"] for *_, container in pods()]
    images += [
        line for line in (DOCKER / "Dockerfile").read_text().splitlines() if line.startswith("ARG BASE=")
    ]
    for image in images:
        name = image.partition(":-")[2].rstrip("}") if image.startswith("${") else image
        tag = name.rpartition(":")[2].removeprefix("-").rstrip("}")
        assert re.search(r"\d", tag) or name.startswith("headless-passkey/"), image
        assert "latest" not in image


def test_what_is_tried_is_what_the_files_name() -> None:
    test = (DOCKER / "test").read_text(encoding="utf-8")
    named = set(re.findall(r"_IMAGE:-([^}]+)\}", "".join((DOCKER / file).read_text() for file in COMPOSE)))
    named |= set(re.findall(r"^ARG BASE=(\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))
    assert named
    for image in named:
        assert f'"{image}"' in test
    for _, _, container in pods():
        assert (
            container["image"].startswith("registry.example.com/headless-passkey/")
            or container["image"] in named
        )


# compose


@pytest.mark.threat("T13")
def test_every_service_may_do_little() -> None:
    for file, name, service in services():
        assert service["read_only"] is True, (file, name)
        assert service["cap_drop"] == ["ALL"], (file, name)
        assert service["security_opt"] == ["no-new-privileges"], (file, name)
        assert "privileged" not in service


def test_both_files_have_the_same_stores() -> None:
    both = [compose(file)["services"] for file in COMPOSE]
    for name in ("secrets", "database", "states"):
        first, second = ({k: v for k, v in each[name].items() if k != "networks"} for each in both)
        assert first == second


def test_each_image_is_built_by_one_service_of_a_file_and_by_its_target() -> None:
    for file in COMPOSE:
        built = [
            (each["image"], each["build"]["target"])
            for each in compose(file)["services"].values()
            if "build" in each
        ]
        used = {each["image"] for each in compose(file)["services"].values()}
        ours = {image for image in used if image.startswith("headless-passkey/")}
        assert sorted(built) == sorted((image, image.split("/")[1].split(":")[0]) for image in ours)


def test_every_volume_that_is_used_is_there() -> None:
    for file in COMPOSE:
        used = {
            mount.partition(":")[0]
            for service in compose(file)["services"].values()
            for mount in service.get("volumes", [])
            if mount[0] not in "./$"
        }
        assert used == set(compose(file)["volumes"]), file


def test_production_has_three_relays_and_two_nodes_behind_one_front() -> None:
    found = compose("compose.production.yaml")["services"]
    relays = [found[f"relay-{number}"] for number in (1, 2, 3)]
    assert {**relays[0], "build": None} == {**relays[1], "build": None} == {**relays[2], "build": None}
    nodes = [
        found[f"tunnel-service-{number}"]["environment"]["COMPANION_PUSH_TUNNEL_SERVICE_NODE"]
        for number in (1, 2)
    ]
    assert nodes == ["1", "2"]
    assert [name for name, service in found.items() if "ports" in service] == ["front"]
    for service in (*relays, found["relying-party-1"], found["tunnel-service-1"], found["tunnel-service-2"]):
        (trusted,) = (
            value for name, value in service["environment"].items() if name.endswith("_TRUSTED_PROXY")
        )
        assert (
            trusted == compose("compose.production.yaml")["networks"]["inside"]["ipam"]["config"][0]["subnet"]
        )


def test_who_drains_is_given_the_time() -> None:
    node = compose("compose.production.yaml")["services"]["tunnel-service-1"]
    drain = int(node["environment"]["COMPANION_PUSH_TUNNEL_SERVICE_DRAIN"])
    assert int(node["stop_grace_period"].rstrip("s")) >= drain + 10
    for document, pod, _ in pods():
        if document["metadata"]["name"] == "tunnel-service":
            assert pod["terminationGracePeriodSeconds"] >= drain + 10


def test_the_front_takes_its_configuration(tmp_path: Path) -> None:
    program = shutil.which("haproxy", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    assert program is not None, "haproxy is missing: make system-packages"
    made = make_certificate(tmp_path)
    (tmp_path / "tls.crt").write_bytes(made.cert.read_bytes())
    (tmp_path / "tls.key").write_bytes(made.key.read_bytes())
    given = compose("compose.production.yaml")["services"]["front"]
    (mount,) = (each for each in given["volumes"] if each.endswith("/secrets/front:ro"))
    assert mount.startswith("${CERTIFICATE:?")
    file = tmp_path / "haproxy.cfg"
    text = (DOCKER / "haproxy.cfg").read_text(encoding="utf-8")
    assert set(re.findall(r'"\$(\w+)"', text)) == set(given["environment"])
    assert "http-request del-header X-Forwarded-For" in text
    file.write_text(text.replace("/secrets/front/", f"{tmp_path}/"), encoding="utf-8")
    checked = subprocess.run(
        [program, "-c", "-f", file],
        env={**os.environ, **given["environment"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


# Kubernetes


@pytest.mark.threat("T13")
def test_every_pod_may_do_little() -> None:
    names = set()
    for document, pod, container in pods():
        names.add(document["metadata"]["name"])
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert names == {*OURS, "front"}


def test_every_pod_is_asked_whether_it_lives_and_is_ready() -> None:
    for document, _, container in pods():
        name = document["metadata"]["name"]
        paths = ("/healthy", "/healthy") if name == "front" else ("/livez", "/readyz")
        probes = container["livenessProbe"]["httpGet"], container["readinessProbe"]["httpGet"]
        assert tuple(probe["path"] for probe in probes) == paths
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert all(probe["port"] in ports for probe in probes)
        if name in OURS:
            assert of(name, "EXPOSE") == [str(ports["http"])]


def test_not_all_pods_of_a_kind_go_at_once() -> None:
    budgets = {
        document["metadata"]["name"]
        for _, document in manifests()
        if document["kind"] == "PodDisruptionBudget"
    }
    assert budgets == {*OURS, "front"}


def test_what_the_pods_refer_to_is_there_or_named_on_the_page() -> None:
    page = (ROOT / "docs/how-to/containers.md").read_text(encoding="utf-8")
    settings = {
        document["metadata"]["name"] for _, document in manifests() if document["kind"] == "ConfigMap"
    }
    for _, pod, container in pods():
        for each in container.get("envFrom", []):
            assert each["configMapRef"]["name"] in settings
        secrets = [
            each["valueFrom"]["secretKeyRef"]["name"]
            for each in container.get("env", [])
            if "secretKeyRef" in each.get("valueFrom", {})
        ]
        for volume in pod.get("volumes", []):
            secrets += [volume["secret"]["secretName"]] if "secret" in volume else []
        for name in secrets:
            assert re.search(rf"create secret \w+ {name}\b", page), name


# what compose starts first


def test_secrets_are_made_once_and_read_by_those_alone_who_need_them(tmp_path: Path) -> None:
    for name in ("database", "relay", "relying-party", "states"):
        (tmp_path / name).mkdir()
    program = ("python3", DOCKER / "make_secrets.py", tmp_path)
    for said in ("the secrets are made\n", "the secrets are there\n"):
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert done.stdout == said
        now = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
        if said.endswith("made\n"):
            before = now
    assert now == before
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in now}
    assert modes == {
        "database/roles.sql": 0o640,
        "database/superuser": 0o640,
        "relay/pgpass": 0o600,
        "relay/states": 0o600,
        "relying-party/pgpass": 0o600,
        "states/users.acl": 0o640,
    }
    passwords = [
        (tmp_path / "relay/pgpass").read_text().strip().rpartition(":")[2],
        (tmp_path / "relay/states").read_text(),
    ]
    elsewhere = (tmp_path / "database/roles.sql").read_text() + (tmp_path / "states/users.acl").read_text()
    assert not any(password in elsewhere for password in passwords)


def test_valkey_gives_the_relay_the_rights_that_the_page_names() -> None:
    page = (ROOT / "docs/how-to/operate-a-relay.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"user companion-push on >PASSWORD (.*)", page)
    made = (DOCKER / "make_secrets.py").read_text(encoding="utf-8")
    rights = re.sub(r'"\s*\n\s*"', "", made)
    assert line in rights
