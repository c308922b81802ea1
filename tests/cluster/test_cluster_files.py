"""The cluster files: Ray accepts them, they stop no other user's Ray, nobody gets in, and their pages are right."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.workplace import PROJECT, wait_for

CLUSTERS = PROJECT / "clusters"
FILES = {"local": PROJECT / "cluster.yaml", "aws": CLUSTERS / "aws.yaml", "gcp": CLUSTERS / "gcp.yaml"}
CLOUDS = ("aws", "gcp")
PAGES = [PROJECT / "docs" / "clusters.md", CLUSTERS / "README.md"]
PAGE = "".join(page.read_text() for page in PAGES)


@cache
def cluster(name: str) -> dict[str, Any]:
    return yaml.safe_load(FILES[name].read_text())


def start_commands(name: str) -> list[list[str]]:
    return [cluster(name)[f"{kind}_start_ray_commands"] for kind in ("head", "worker")]


def settings(name: str) -> dict[str, str]:
    """The settings that the file passes to clusters/setup.sh."""
    (command,) = cluster(name)["setup_commands"]
    (text,) = re.findall(r"<<'settings'\n(.*)^settings$", command, re.M | re.S)
    return {key: str(value) for key, value in yaml.safe_load(text).items()}


# --- Ray's own schema -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster(name))
    validate_config(prepared)
    assert prepared["head_start_ray_commands"] == cluster(name)["head_start_ray_commands"]  # not replaced by Ray's own


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_would_be_refused(name: str) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError):
        validate_config(prepare_config(cluster(name)) | {"storage": "/somewhere"})


@pytest.mark.parametrize("name", FILES)
def test_the_machines_get_the_whole_project(name: str) -> None:
    mounts = cluster(name)["file_mounts"]
    assert all((PROJECT / local).exists() for local in mounts.values())
    needed = {"tuner", "data", "models", "clusters", "tune.py", "experiments.yaml", "pyproject.toml"}
    assert needed <= set(mounts.values())
    assert all(remote == f"~/video-tuner/{local}" for remote, local in mounts.items())


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_begins_without_gpus_and_its_command_asks_for_one(name: str) -> None:
    types = cluster(name)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu"]["min_workers"] == 0 and types["gpu"]["resources"]["GPU"] == 1
    assert re.search(r"ray submit clusters/\w+\.yaml tune\.py -- .*--set resources\.gpu=1", FILES[name].read_text())


def test_the_gpus_of_the_clouds_are_spot_machines() -> None:
    aws, gcp = (cluster(name)["available_node_types"]["gpu"]["node_config"] for name in CLOUDS)
    assert aws["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert {"preemptible": True} in gcp["scheduling"]


# --- somebody else's Ray ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_no_command_stops_a_ray_without_checking_whose_it_is(name: str) -> None:
    assert "ray stop" not in yaml.safe_dump(cluster(name))
    for commands in start_commands(name):
        (start,) = [command for command in commands if "ray start" in command]
        assert "bash ~/video-tuner/clusters/start.sh ray start" in start


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[Any]:
    """Starts processes that are named like Ray's, with or without a mark."""
    program = tmp_path / "raylet"
    shutil.copy(shutil.which("sleep") or "", program)
    started = []

    def start(mark: str | None) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "TUNER_RAY"}
        process = subprocess.Popen([program, "600"], env=environment | ({"TUNER_RAY": mark} if mark else {}))
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "raylet\n", 10)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_only_our_own_ray_is_stopped_and_another_one_is_reported(raylet: Any, tmp_path: Path) -> None:
    project = tmp_path / "video-tuner"
    shutil.copytree(CLUSTERS, project / "clusters")
    own, another, nobodys = raylet(str(project)), raylet(f"{project}-of-another"), raylet(None)
    ran = subprocess.run(
        ["bash", project / "clusters" / "release.sh"], capture_output=True, text=True, timeout=60, check=False
    )
    assert own.wait(10) == -15
    assert another.poll() is None and nobodys.poll() is None
    assert ran.returncode == 1
    assert re.fullmatch(
        r"\S+: a Ray that this cluster did not start runs here \(.*\); stop it, or take .*\n", ran.stderr
    )


def test_a_start_that_fails_is_tried_again_with_our_mark(tmp_path: Path) -> None:
    project = tmp_path / "video-tuner"
    shutil.copytree(CLUSTERS, project / "clusters")
    (project / "clusters" / "release.sh").write_text("echo released\n")  # the machine of the tests may have other Rays
    command = (
        f"echo $TUNER_RAY threads $OMP_NUM_THREADS; [ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; false; }}"
    )
    ran = subprocess.run(
        ["bash", project / "clusters" / "start.sh", "bash", "-c", command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == ["released", f"{project} threads"] * 2


# --- nobody gets in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_dashboard_and_mlflow_listen_on_loopback(name: str) -> None:
    assert "--dashboard-host=127.0.0.1" in start_commands(name)[0][0]
    assert settings(name)["mlflow"] == "127.0.0.1:5000"


@pytest.mark.parametrize("name", FILES)
def test_the_token_reaches_the_workers_as_a_file(name: str) -> None:
    assert cluster(name)["cluster_synced_files"] == ["~/.video-tuner/auth_token"]
    assert "token" not in str(start_commands(name))


def set_up(home: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run clusters/setup.sh of a project in `home`, which has a Python with the project in it."""
    if not (home / "video-tuner").exists():
        shutil.copytree(CLUSTERS, home / "video-tuner" / "clusters")
    return subprocess.run(
        ["bash", home / "video-tuner" / "clusters" / "setup.sh"],
        input=text,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_machine_is_set_up_once_and_its_shells_have_the_settings(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("return  # as many of these files do in a shell that is not interactive\n")
    text = f"storage: s3://bucket/searches  # a comment\npython: {sys.executable}\n"
    assert (ran := set_up(tmp_path, text)).returncode == 0, ran.stderr
    own = tmp_path / ".video-tuner"
    token = (own / "auth_token").read_text()
    assert len(token) == 64 and stat.S_IMODE((own / "auth_token").stat().st_mode) == 0o600
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert set_up(tmp_path, text).returncode == 0
    assert (own / "auth_token").read_text() == token
    assert (tmp_path / ".bashrc").read_text() == (
        ". ~/.video-tuner/environment\nreturn  # as many of these files do in a shell that is not interactive\n"
    )
    # As the launcher runs a command.
    shell = subprocess.run(
        ["bash", "--norc", "-c", "source ~/.bashrc; env; command -v python"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shell[-1] == str(Path(sys.executable).parent / "python")
    assert {
        "TUNER_STORAGE=s3://bucket/searches",
        "MLFLOW_TRACKING_URI=http://127.0.0.1:5000",
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN_PATH={own}/auth_token",
        f"PYTHONPATH={tmp_path}/video-tuner",
    } <= set(shell)


def test_settings_without_a_storage_are_refused(tmp_path: Path) -> None:
    ran = set_up(tmp_path, f"python: {sys.executable}\n")
    assert ran.returncode != 0 and "the settings lack storage" in ran.stderr


@pytest.mark.parametrize("name", FILES)
def test_every_setting_is_one_of_the_script(name: str) -> None:
    known = set(re.findall(r"settings\[(\w+)\]", (CLUSTERS / "setup.sh").read_text()))
    assert set(settings(name)) == known


# --- Kubernetes -------------------------------------------------------------------------------------------------------

# The fields of ray.io/v1 that clusters/kuberay.yaml may use, from KubeRay's API reference
# (https://ray-project.github.io/kuberay/reference/api/, read 2026-11-21). A pod's are those of Kubernetes.
KUBERAY = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata",
        "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId",
        "submissionMode", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
        "shutdownAfterJobFinishes", "suspend",
    },
    "RayClusterSpec": {
        "suspend", "managedBy", "authOptions", "autoscalerOptions", "headServiceAnnotations",
        "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs",
    },
    "AutoscalerOptions": {
        "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version",
        "env", "envFrom", "volumeMounts",
    },
    "AuthOptions": {"mode"},
    "HeadGroupSpec": {"template", "headService", "enableIngress", "rayStartParams", "serviceType"},
    "WorkerGroupSpec": {
        "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams",
        "template", "scaleStrategy", "numOfHosts",
    },
}  # fmt: skip


def test_kuberay_knows_every_field() -> None:
    job = yaml.safe_load((CLUSTERS / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert set(job) <= KUBERAY["RayJob"]
    assert set(spec) <= KUBERAY["RayJobSpec"]
    assert set(cluster) <= KUBERAY["RayClusterSpec"]
    assert set(cluster["autoscalerOptions"]) <= KUBERAY["AutoscalerOptions"]
    assert set(cluster["headGroupSpec"]) <= KUBERAY["HeadGroupSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert set(group["template"]) <= {"metadata", "spec"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= KUBERAY["WorkerGroupSpec"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


def test_kuberay_scales_gpus_from_zero_with_a_token() -> None:
    spec = yaml.safe_load((CLUSTERS / "kuberay.yaml").read_text())["spec"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert spec["entrypoint"].endswith("--set resources.gpu=1")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] and group["minReplicas"] == group["replicas"] == 0
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


# --- the page ---------------------------------------------------------------------------------------------------------


def ray_commands() -> list[str]:
    """Every `ray ...` that the pages and the files show, on its line."""
    text = PAGE + "".join(file.read_text() for file in FILES.values())
    shown = re.findall(r"(?:^|`|# +)(ray [a-z][^\n`#]*)", text, re.M)
    return sorted({*shown, *(line for command in shown for line in re.findall(r"'(ray .*)'", command))})


@pytest.mark.parametrize("line", ray_commands())
def test_every_ray_command_that_is_shown_exists(line: str) -> None:
    from ray.scripts.scripts import cli

    words = shlex.split(line.split(" -- ")[0])[1:]
    command: Any = cli
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"ray {name}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options


def test_the_readme_leads_to_both_pages() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert "](docs/clusters.md)" in readme and "](clusters/README.md)" in readme


def test_every_script_that_is_named_exists() -> None:
    named = re.findall(r"\w+\.sh\b", PAGE + "".join(file.read_text() for file in FILES.values()))
    assert named and all((CLUSTERS / name).exists() for name in named)
