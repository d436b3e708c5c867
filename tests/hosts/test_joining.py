"""How a command joins the other processes of its run, and what it says where it cannot."""

import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest
from jax._src import distributed, xla_bridge
from jax._src.clusters import cloud_tpu_cluster, cluster, k8s_cluster

from ptjax.errors import UserError
from ptjax.train import main
from tests.full import FULL
from tests.two import ROOT, free_port, started

COMMAND = ["ptjax.train", "--config=configs/quickstart.py"]
THREE = ["--coordinator=10.0.0.1:1234", "--processes=4", "--process=2"]
CLUSTERS = ("SLURM_", "OMPI_", "PMI", "KUBERNETES_", "JAX_COORDINATOR", "TPU_", "MEGASCALE_")
SCRIPT = Path(__file__).with_name("joined.py")


class Joined(Exception):
    """Raised where jax would connect: address, how many, which."""


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Runs the command up to where jax connects, in an environment without a cluster."""
    state = distributed.State()

    def connect(address, process, **settings):
        raise Joined(address, state.num_processes, process)

    monkeypatch.setattr(distributed, "global_state", state)
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    for name, made in (("service", lambda *_, **__: None), ("client", connect)):
        monkeypatch.setattr(distributed._jax, f"get_distributed_runtime_{name}", made)
    for name in [name for name in os.environ if name.startswith(CLUSTERS)]:
        monkeypatch.delenv(name)

    def run(*words):
        monkeypatch.setattr(sys, "argv", [*COMMAND, f"--workdir={tmp_path}", *words])
        main()

    yield run
    jax.config.update("jax_cuda_visible_devices", "all")  # SLURM and Open MPI give one a process
    jax.config.update("jax_rocm_visible_devices", "all")


def test_the_flags_say_who_is_there(start):
    with pytest.raises(Joined) as joined:
        start(*THREE)
    assert joined.value.args == ("10.0.0.1:1234", 4, 2)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (
            {
                "SLURM_JOB_ID": "70001",
                "SLURM_STEP_NODELIST": "node[3-6]",
                "SLURM_NTASKS": "4",
                "SLURM_PROCID": "2",
                "SLURM_LOCALID": "0",
            },
            ("node3:61809", 4, 2),
        ),
        (
            {
                "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            },
            ("10.96.0.1:62624", 4, 3),
        ),
    ],
    ids=["slurm", "ompi"],
)
def test_a_launcher_says_who_is_there(start, monkeypatch, environment, found):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Joined) as joined:
        start("--distributed")
    assert joined.value.args == found


@pytest.fixture
def tpu_vm(monkeypatch):
    """A TPU VM to jax; what its metadata say is the caller's."""
    said = {"tpu-env": ""}
    for module in (cluster, cloud_tpu_cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(
        cloud_tpu_cluster,
        "get_metadata",
        lambda key: (said[key], 200) if key in said else ("", 404),
    )
    return said


def test_a_tpu_pod_says_who_is_there(start, tpu_vm):
    tpu_vm["agent-worker-number"] = "1"
    tpu_vm["worker-network-endpoints"] = "a:1:127.0.0.1,b:2:127.0.0.2"
    with pytest.raises(Joined) as joined:
        start("--distributed")
    assert joined.value.args == ("127.0.0.1:8482", 2, 1)


def test_two_slices_of_gke_say_who_is_there(start, tpu_vm, monkeypatch):
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2",
        "TPU_WORKER_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.3",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Joined) as joined:
        start("--distributed")
    assert joined.value.args == ("127.0.0.3:8482", 4, 3)


def test_a_kubernetes_job_says_who_is_there(start, monkeypatch):
    """The service that answers questions about pods is played; the rest is jax's."""
    this = types.SimpleNamespace
    owner = this(controller=True, kind="Job")
    labels = {"job-name": "sft-hosts-0", "jobset.sigs.k8s.io/jobset-name": "sft"}
    pod = this(metadata=this(labels=labels, owner_references=[owner]), spec=this(subdomain="sft"))
    job = this(metadata=this(name="sft-hosts-0", labels=labels), spec=this(parallelism=4))
    client = types.ModuleType("kubernetes.client")
    client.CoreV1Api = lambda: this(list_namespaced_pod=lambda **_: this(items=[pod]))
    client.BatchV1Api = lambda: this(read_namespaced_job=lambda **_: job)
    client.exceptions = this(ApiException=OSError)
    package = types.ModuleType("kubernetes")
    package.client, package.config = client, this(load_incluster_config=lambda: None)
    monkeypatch.setitem(sys.modules, "kubernetes", package)
    monkeypatch.setattr(k8s_cluster.K8sCluster, "_namespace", classmethod(lambda cls: "default"))
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.7")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HOSTNAME", "sft-hosts-0-2")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    with pytest.raises(Joined) as joined:
        start("--distributed")
    assert joined.value.args == ("sft-hosts-0-0.sft:55527", 4, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (THREE[:2], "--coordinator, --process and --processes go together"),
        (["--distributed", *THREE[2:]], "--distributed finds the processes by itself"),
        (["--coordinator=10.0.0.1", *THREE[1:]], "give HOST:PORT"),
        ([*THREE[:2], "--process=4"], "of --processes=4 the numbers are 0 to 3"),
    ],
)
def test_flags_that_do_not_go_together(start, words, message):
    with pytest.raises(UserError, match=message):
        start(*words)


def test_a_port_that_is_taken(start):
    with socket.create_server(("", 0)) as server:
        taken = f"--coordinator=localhost:{server.getsockname()[1]}"
        with pytest.raises(UserError, match="process 0 cannot listen at port"):
            start(taken, "--processes=2", "--process=0")


def test_no_cluster_is_one_line(tmp_path):
    environment = {name: v for name, v in os.environ.items() if not name.startswith(CLUSTERS)}
    words = [sys.executable, "-m", *COMMAND, f"--workdir={tmp_path}/run", "--distributed"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --distributed: no TPU slice, SLURM, Open MPI or Kube")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def ended(processes, victim):
    """(exit code, lines of the error) of each but one, which is killed in the middle of a sum."""
    for process in processes:
        next(line for line in process.stdout if line == "summed\n")
    processes[victim].kill()
    began = time.monotonic()
    told = []
    try:
        for index, process in enumerate(processes):
            text = process.communicate(timeout=60)[1]
            if index != victim:
                told.append((process.returncode, [x for x in text.splitlines() if "error:" in x]))
    finally:
        for process in processes:
            with process:
                process.kill()
    assert time.monotonic() - began < 60
    return told


@pytest.mark.parametrize(("count", "victim"), [(2, 1), (2, 0), (3, 2)] if FULL else [(2, 1)])
def test_all_end_with_one_that_is_killed(count, victim):
    told = ended(started(SCRIPT, count, processes=count), victim)
    who = f"error: process {victim} of {count} (on {socket.gethostname()}) is gone: it was killed"
    assert len(told) == count - 1
    for code, lines in told:  # with process 0 dies jax's service: its abort may overtake us
        assert code in ((5,) if victim else (5, -signal.SIGABRT))
        assert len(lines) == 1 and lines[0].startswith(who), told


def test_who_waits_alone_says_for_whom(monkeypatch):
    monkeypatch.setenv("PTJAX_TEST_PATIENCE", "1")
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(SCRIPT), str(port), "1", "2"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: process 1 of 2 has waited 1 s for the others to come to 127.0.0.1:{port}: start "
        "the same command for each, and let them reach this address"
    ]
