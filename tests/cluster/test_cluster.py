"""A cluster as a user starts it: `ray up` and `ray submit` over ssh, on three hosts made of namespaces
(tests/support/hosts.py)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.support.hosts as hosts
from tests.support.hosts import HOME, SHARED
from tests.support.launched import Launched
from tests.support.workplace import wait_for

# All tests of this file look at one cluster: pytest-xdist runs them in one process.
pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]

# The quickstart, smaller: no experiment is named, so it is the default.
SMALL = (
    "--set data.sample.train=600 --set data.sample.validate=200 --set model.hidden=16 --set training.epochs=3 "
    "--set search.scheduler.kind=none"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Launched]:
    """A cluster that has run one search."""
    hosts.require()
    launched = Launched()
    try:
        launched.up()
        launched.printed = launched.submit(SMALL)
        yield launched
    finally:
        launched.close()


def test_the_search_ran_on_every_host(cluster: Launched) -> None:
    assert "6 of 6 trials to run, 3 trials at a time, each with 1 CPU" in cluster.printed
    assert "best trial" in cluster.printed
    ran_on = cluster.mlflow("select value from tags where key = 'host'")
    assert len(ran_on) == 6 and {host for (host,) in ran_on} == {"head", "worker1", "worker2"}
    assert cluster.mlflow("select distinct status from runs") == [("FINISHED",)]


def test_every_host_has_its_own_data_and_its_own_cache(cluster: Launched) -> None:
    for host in cluster.nodes:
        assert len(list(cluster.inside(host, HOME / "video-tuner" / "sample_data").rglob("*.tfrecord"))) > 1
        assert list(cluster.inside(host, HOME / ".cache" / "tuner").rglob("*.npy"))
    assert len(cluster.mlflow("select distinct value from tags where key = 'data_fingerprint'")) == 1


def test_there_is_one_mlflow_server_and_it_is_started_once(cluster: Launched) -> None:
    pid_file = cluster.inside(cluster.head, HOME / ".video-tuner" / "mlflow" / "pid")
    before = pid_file.read_text()
    cluster.console("bash ~/video-tuner/clusters/mlflow_server.sh")
    assert pid_file.read_text() == before
    for host in cluster.workers:
        assert "mlflow" not in host.run("ps -A -ww -o args=")
    assert not (cluster.inside(host, HOME / "video-tuner") / "mlflow.db").exists()


def test_the_best_model_is_exported_from_the_head(cluster: Launched) -> None:
    cluster.type("ray exec cluster.yaml 'python -m tuner.best --export model'")
    cluster.type("ray rsync-down cluster.yaml model/ model/")
    assert list((cluster.project / "model").glob("*.safetensors"))


def test_the_token_is_in_no_process_list_and_no_log(cluster: Launched) -> None:
    token = cluster.inside(cluster.head, HOME / ".video-tuner" / "auth_token").read_text()
    for host in cluster.nodes:
        assert cluster.inside(host, HOME / ".video-tuner" / "auth_token").read_text() == token
        assert token not in host.run("ps -A -ww -o args=")
        assert host.run(f"grep -rsl {token} /tmp {SHARED} ~/.video-tuner/mlflow", check=False) == ""
    assert token not in cluster.printed


def test_nobody_gets_in_without_the_token(cluster: Launched) -> None:
    ask = (
        f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64} ray status --address {cluster.head.address}:6379; echo code $?"
    )
    assert "code 0" not in cluster.client.run(ask, timeout=120)
    assert "/3.0 CPU" in cluster.console("ray status")


@pytest.mark.parametrize("port", [5000, 8265])
def test_only_the_head_reaches_mlflow_and_the_dashboard(cluster: Launched, port: int) -> None:
    connect = "(exec 3<> /dev/tcp/{}/{}) && echo open"
    assert "open" in cluster.head.run(connect.format("127.0.0.1", port))
    for host in (cluster.client, *cluster.workers):
        assert "open" not in host.run(connect.format(cluster.head.address, port), check=False)


def test_a_storage_of_one_host_alone_is_refused(cluster: Launched) -> None:
    printed = cluster.console(f"cd; python tune.py {SMALL} --storage ~/own; echo code $?")
    assert f"{HOME}/own/" in printed and "is not the same folder on worker" in printed
    assert printed.endswith("code 2\n") and "Traceback" not in printed
    left = cluster.inside(cluster.head, HOME / "own" / "quickstart").iterdir()
    assert not [path for path in left if path.is_dir()]  # no search that has only half begun


def test_ray_job_submit_works_too(cluster: Launched) -> None:
    printed = cluster.console(
        "cd ~/video-tuner; ray job submit --address http://127.0.0.1:8265 --working-dir . -- python tune.py --dry-run"
    )
    assert "3 trials at a time" in printed and "succeeded" in printed


def test_stopping_ends_ray_and_mlflow_on_all_hosts(cluster: Launched) -> None:
    cluster.type("ray exec cluster.yaml 'cd ~/video-tuner/clusters; bash release.sh; bash mlflow_server.sh stop'")
    names = ("raylet", "gcs_server", "mlflow")
    for host in cluster.nodes:
        wait_for(lambda host=host: not any(name in host.run("ps -A -ww -o args=") for name in names))
    assert Path(cluster.hosts.shared / "quickstart").exists()  # the search itself stays
