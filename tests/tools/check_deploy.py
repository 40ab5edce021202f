"""Checks deploy/ as far as that goes without a cluster and without a container engine.

Renders every kustomization, validates what comes out strictly against the Kubernetes schema, and
holds the Dockerfile, compose.yaml and the manifests against each other and against the program:
FIELDPOST_BIN names the `fieldpost` whose options they set.
"""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# Environment only, so the list of options does not show it.
UNLISTED_VARIABLES = {"FIELDPOST_MASTER_KEY"}
SCHEMA = kubernetes_validate.latest_version()


def main() -> None:
    problems = []
    for kustomization in sorted(DEPLOY.glob("kubernetes/**/kustomization.yaml")):
        name = kustomization.parent.relative_to(ROOT)
        documents = render(kustomization.parent)
        problems += [f"{name}: {problem}" for problem in check_manifests(documents)]
        print(f"{name}: {len(documents)} documents rendered, checked against Kubernetes {SCHEMA}")
    problems += check_image()
    problems += check_compose()
    problems += check_variables()
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


def render(folder: Path) -> list[dict]:
    command = ["kubectl", "kustomize", str(folder)]
    rendered = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60, text=True)
    return [document for document in yaml.safe_load_all(rendered.stdout) if document]


def check_manifests(documents: list[dict]):
    kinds = {document["kind"] for document in documents}
    for kind in {"Deployment", "Service", "Job"} - kinds:
        yield f"there is no {kind}"
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if error := schema_error(document):
            yield f"{name}: {error}"
        if not schema_error(misspelt(document)):
            yield f"{name}: the validator accepts a field that does not exist"
        if document["kind"] in ("Deployment", "Job"):
            for problem in check_pod(document["spec"]["template"]["spec"]):
                yield f"{name}: {problem}"
        if document["kind"] == "Deployment":
            for problem in check_stopping(document["spec"]["template"]["spec"]):
                yield f"{name}: {problem}"


def schema_error(document: dict) -> str | None:
    try:
        kubernetes_validate.validate(document, SCHEMA, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


def misspelt(document: dict) -> dict:
    wrong = copy.deepcopy(document)
    wrong["spec"]["misspelt"] = 1
    return wrong


def check_pod(pod: dict):
    if pod["securityContext"].get("runAsNonRoot") is not True:
        yield "the pod may run as root"
    if pod["securityContext"].get("runAsUser") != image_user():
        yield f"runAsUser is not the image's user, {image_user()}"
    for container in pod["containers"]:
        rights = container["securityContext"]
        if not rights.get("readOnlyRootFilesystem") or rights.get("allowPrivilegeEscalation", True):
            yield f"{container['name']} may write to its image or gain rights"
        if "limits" not in container["resources"]:
            yield f"{container['name']} has no limits"
        for variable in container["env"]:
            secret = re.search("PASSWORD|KEY$|TOKEN|DATABASE_URL", variable["name"])
            if secret and "value" in variable:
                yield f"{variable['name']} is written out instead of taken from a secret"


def check_stopping(pod: dict):
    (gateway,) = (entry for entry in pod["containers"] if entry["name"] == "gateway")
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    if ports != {"http": 8000, "admin": 9090}:
        yield f"the ports are {ports}"
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        asked = gateway[probe]["httpGet"]
        if (asked["path"], asked["port"]) != (path, "admin"):
            yield f"{probe} asks for {asked}"
    variables = {entry["name"]: entry.get("value") for entry in gateway["env"]}
    drain = int(variables["FIELDPOST_DRAIN"].removesuffix("s"))
    pause = gateway["lifecycle"]["preStop"]["sleep"]["seconds"]
    if pod["terminationGracePeriodSeconds"] < pause + drain + 10:
        yield "the grace period is shorter than the pause, the drain and 10 s"


def image_user() -> int:
    return int(re.search(r"^USER (\d+):", dockerfile(), re.MULTILINE).group(1))


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text()


def check_image():
    built_with = re.search(r"^FROM rust:([\d.]+)-", dockerfile(), re.MULTILINE).group(1)
    channel = re.search(r'channel = "(.+)"', (ROOT / "rust-toolchain.toml").read_text()).group(1)
    if built_with != channel:
        yield f"the Dockerfile builds with Rust {built_with}, rust-toolchain.toml says {channel}"
    if image_user() < 10000:
        yield f"the image runs as user {image_user()}, who may be somebody on the host"
    # What the build reads must pass .dockerignore, which begins by excluding all.
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for needed in (
        ".sqlx",
        "Cargo.lock",
        "Cargo.toml",
        "migrations",
        "openapi",
        "service",
        "tests",
    ):
        if f"!{needed}" not in ignore:
            yield f"the image's build does not see {needed}"


def check_compose():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    gateway, postgres = compose["services"]["gateway"], compose["services"]["postgres"]
    if gateway["depends_on"]["postgres"]["condition"] != "service_healthy":
        yield "compose.yaml: the gateway does not wait for Postgres"
    if "healthcheck" not in postgres:
        yield "compose.yaml: Postgres has no health check"
    for port in gateway["ports"]:
        if not port.startswith("127.0.0.1:"):
            yield f"compose.yaml: {port} is published beyond this machine, without TLS"
    if "ports" in postgres:
        yield "compose.yaml: Postgres is published"
    for secret in gateway["secrets"]:
        if secret not in compose["secrets"]:
            yield f"compose.yaml: the secret {secret} is not declared"
        if f"/run/secrets/{secret}" not in gateway["environment"].values():
            yield f"compose.yaml: nothing reads the secret {secret}"
    for name, service in compose["services"].items():
        for volume in service["volumes"]:
            if volume.split(":")[0] not in compose["volumes"]:
                yield f"compose.yaml: the volume {volume} of {name} is not declared"


def check_variables():
    command = [os.environ["FIELDPOST_BIN"], "serve", "--help"]
    help_text = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60, text=True)
    known = set(re.findall(r"\[env: (FIELDPOST_[A-Z_]+)", help_text.stdout)) | UNLISTED_VARIABLES
    for file in sorted(path for path in DEPLOY.rglob("*") if path.is_file()):
        for name in sorted(set(re.findall(r"FIELDPOST_[A-Z_]+\b", file.read_text())) - known):
            yield f"{file.relative_to(ROOT)}: {name} is no option of fieldpost"


if __name__ == "__main__":
    main()
