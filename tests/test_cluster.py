"""Attribution by the workers of a cluster: the same bytes as by one process, also when one of them is killed."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import dask.config
import distributed
import psutil
import pytest
import torch
import xarray as xr
from test_attribution import probe, toy
from test_store import attribute, processes, small_blocks, tree  # noqa: F401
from torch import nn

from support import attribution, cluster, store, zoo

NAMES = "abc"


class Logged(nn.Module):
    """A network that writes down which process runs it, and takes its time: there is a middle to be killed in."""

    def __init__(self, network, log, seconds):
        super().__init__()
        self.network, self.log, self.seconds = network, log, seconds

    def forward(self, x):
        if len(x) > 2:  # not in the check
            with open(self.log, "a") as log:
                log.write(f"{os.getpid()}\n")
            time.sleep(self.seconds)
        return self.network(x)


def logged(log, seconds=0.0):
    encoders = [toy(name, seed=i) for i, name in enumerate(NAMES)]
    for encoder in encoders:
        encoder.network = encoder.representation = Logged(encoder.network, log, seconds).eval()
    return encoders


@pytest.fixture(scope="module")
def client():
    """Two processes, "plain" and "gpu", of which the second says that it has a GPU."""
    loopback = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    nanny = {"cls": distributed.Nanny, "options": {"nthreads": 1, **loopback}}
    workers = {"plain": nanny, "gpu": {**nanny, "options": {**nanny["options"], "resources": {"GPU": 1}}}}
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard": False, "port": 0, **loopback}}
    with (
        distributed.SpecCluster(workers, scheduler, shutdown_on_close=True) as machines,
        distributed.Client(machines) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        yield client


def kill_who_computes(log, after):
    """Once `after` batches are begun, kill the process that began the last one."""
    while not log.exists() or len(log.read_text().splitlines()) < after:
        time.sleep(0.01)
    os.kill(int(log.read_text().splitlines()[-1]), signal.SIGKILL)


def test_with_a_worker_killed_in_the_middle_nothing_is_lost_and_nothing_done_twice(tmp_path, client):
    images, log = probe(n=15), tmp_path / "log"
    expected = attribute(logged(log, 0.2), images, out=tmp_path / "serial")
    log.unlink()
    killer = threading.Thread(target=kill_who_computes, args=(log, 5), daemon=True)
    killer.start()
    found = attribute(logged(log, 0.2), images, out=tmp_path / "cluster", client=client)
    killer.join(timeout=10)
    begun = log.read_text().splitlines()
    assert len(set(begun)) >= 2 and str(os.getpid()) not in begun
    assert len(begun) == len(NAMES) * 4 + 1  # the killed batch was begun twice
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")
    xr.testing.assert_identical(found, expected)


@pytest.mark.parametrize("method", [["whitened_energy", "epsilon_lrp", "saliency"], "relational"])
def test_methods_that_need_all_images_give_the_same_bytes_too(tmp_path, client, method):
    encoders, images = [toy("a"), toy("b", seed=1, side=8)], probe(n=11)
    attribute(encoders, images, method, out=tmp_path / "serial", channels="keep")
    attribute(encoders, images, method, out=tmp_path / "cluster", channels="keep", client=client)
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")


def test_a_real_network_reaches_a_worker_that_has_loaded_nothing(tmp_path, client):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Mine(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3))\n"
    )
    torch.manual_seed(0)
    own = zoo.load(f"python:{tmp_path / 'mine.py'}:Mine")
    encoders = [zoo.load("package:centerface"), zoo.load("bank:edge2d"), own]  # the first converted from ONNX
    attribute(encoders, probe(n=1), out=tmp_path / "cluster", client=client)
    attribute(encoders, probe(n=1), out=tmp_path / "serial")
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")


def test_only_workers_that_declare_a_gpu_get_tasks_unless_the_processor_is_asked_for(tmp_path, client):
    information = client.scheduler_info(n_workers=-1)["workers"]
    pids = {bool(information[address]["resources"]): str(pid) for address, pid in client.run(os.getpid).items()}
    settings = {"images": probe(n=7), "method": "saliency", "progress": False, "client": client}
    for device, expected in {"auto": {pids[True]}, "cpu": set(pids.values())}.items():
        log = tmp_path / f"{device}.log"
        attribution.attribute(logged(log, 0.1), **settings, device=device, out=tmp_path / device)
        assert set(log.read_text().splitlines()) == expected


def test_the_error_of_a_worker_arrives_and_what_is_finished_stays(tmp_path, client):
    encoders, images = [toy("a"), toy("b", activation=nn.Softmax(1)), toy("c", seed=2)], probe(n=7)
    with pytest.raises(ValueError, match="b: .*Softmax"):
        attribute(encoders, images, "epsilon_lrp", out=tmp_path / "maps", client=client)
    assert not list((tmp_path / "maps").glob(store.DRAFT + "*"))
    attribute(encoders[::2], images, "epsilon_lrp", out=tmp_path / "maps", client=client)
    store.delete(tmp_path / "maps", "b")
    attribute(encoders[::2], images, "epsilon_lrp", out=tmp_path / "serial")
    assert tree(tmp_path / "maps") == tree(tmp_path / "serial")


class FailsOnceAnotherRuns(nn.Module):
    """A network that fails as soon as another one is being run, by another worker."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, x):
        if len(x) <= 2:  # in the check
            return x
        while not self.log.exists():
            time.sleep(0.01)
        raise ValueError("failed while the other one runs")


def test_after_an_error_no_worker_is_still_computing(tmp_path, client):
    log = tmp_path / "log"
    encoders = [toy("d"), *logged(log, 1.0)]
    encoders[0].network = encoders[0].representation = FailsOnceAnotherRuns(log).eval()
    with pytest.raises(ValueError, match="failed while the other one runs"):
        attribute(encoders, probe(n=4), out=tmp_path / "maps", client=client)
    assert not any(client.run(cluster.is_busy).values())
    begun, files = log.read_text().splitlines(), tree(tmp_path / "maps")
    assert sum("/scale/c." in name for name in files) == len(begun) >= 1  # what was begun was finished
    time.sleep(1.5)
    assert log.read_text().splitlines() == begun and tree(tmp_path / "maps") == files


def be_client(address, log, out):
    store.BLOCK, store.CHUNK = 4 * 144, 2 * 144
    attribute(logged(log, 0.2), probe(n=15), out=out, client=cluster.connect(address))


def test_the_client_killed_in_the_middle_another_run_ends_with_the_same_bytes(tmp_path, client):
    log = tmp_path / "log"
    attribute(logged(log, 0.2), probe(n=15), out=tmp_path / "serial")
    log.unlink()
    process = processes.Process(target=be_client, args=(client.scheduler.address, log, tmp_path / "cluster"))
    process.start()
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert list((tmp_path / "cluster").glob(store.DRAFT + "*"))
    attribute(logged(log, 0.2), probe(n=15), out=tmp_path / "cluster", client=client)
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")


def test_connecting_and_what_is_refused(tmp_path, client):
    assert cluster.connect("") is None
    with cluster.connect(client.scheduler.address) as other:
        assert other.scheduler.address == client.scheduler.address
    with pytest.raises(OSError, match="no Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        cluster.connect("tcp://127.0.0.1:1", timeout=0.5)
    with pytest.raises(ValueError, match="give its folder as `out`"):
        attribute(toy(), probe(), client=client)
    with pytest.raises(FileNotFoundError, match="does not see .*nowhere: the store must be on a file system"):
        cluster._store(Path(tmp_path / "nowhere"))


PAGE = (Path(__file__).parents[1] / "book" / "cluster.md").read_text()


def blocks_of(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def commands(start):
    """Command lines of the page that begin like that, as lists of words."""
    lines = [line for block in blocks_of("bash") for line in block.replace("\\\n", "").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(start)]


def sockets(pids):
    """Addresses and ports on which these processes and their children accept connections."""
    everyone = [p for pid in pids for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
    return {c.laddr for p in everyone for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


def listening(pids, before=frozenset()):
    """Addresses of these sockets, but for those that were there before."""
    found = sockets(pids) - before
    assert len(found) > 2
    return {address.ip for address in found}


@contextlib.contextmanager
def started(*lines, env=None):
    processes = []
    try:
        for line in lines:
            command = [sys.executable, "-m", "dask", *line[1:]]  # .venv/bin/dask is one of these
            processes.append(subprocess.Popen(command, env=os.environ | (env or {}), stderr=subprocess.DEVNULL))
        yield [process.pid for process in processes]
    finally:
        for process in processes[::-1]:
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def on_a_free_port(line, port):
    line = [word.replace("192.0.2.1", "127.0.0.1").replace("8786", port) for word in line]
    return [word.replace("127.0.0.1:8787", "127.0.0.1:0") for word in line]


def test_started_as_the_page_says_nothing_listens_but_on_the_loopback(tmp_path):
    port = free_port()
    scheduler, worker = (
        on_a_free_port(commands(f".venv/bin/dask {what}")[0], port) for what in ("scheduler", "worker")
    )
    assert "tcp://127.0.0.1:8786" in PAGE and "--host" in scheduler and "--host" in worker
    with started(scheduler, worker) as pids, cluster.connect(f"tcp://127.0.0.1:{port}", timeout=60) as client:
        client.wait_for_workers(2, timeout=120)
        attribute([toy("a"), toy("b", seed=1)], probe(n=7), out=tmp_path / "cluster", client=client)
        assert listening(pids) == {"127.0.0.1"}
    attribute([toy("a"), toy("b", seed=1)], probe(n=7), out=tmp_path / "serial")
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")


def test_the_client_of_the_page_starts_its_workers_on_the_loopback():
    code = next(block for block in blocks_of("python") if "loopback = {" in block)
    scope = {}
    exec(code.split("if __name__")[0], scope)
    before = sockets([os.getpid()])  # clusters of other tests in this process
    with distributed.Client(n_workers=2, threads_per_worker=1, **scope["loopback"]):
        assert "n_workers=2, threads_per_worker=1, **loopback" in code
        assert listening([os.getpid()], before) == {"127.0.0.1"}


def test_with_tls_as_the_page_says_only_who_has_the_certificate_is_a_client(tmp_path):
    folder = tmp_path / "dask-tls"
    make = next(block for block in blocks_of("bash") if "openssl" in block).replace("~/dask-tls", str(folder))
    subprocess.run(make, shell=True, check=True, capture_output=True)
    assert folder.stat().st_mode & 0o77 == 0
    (configuration,) = blocks_of("yaml")
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "tls.yaml").write_text(configuration.replace("/home/me/dask-tls", str(folder)))
    port = free_port()
    scheduler, worker = (
        on_a_free_port(commands(f".venv/bin/dask {what}")[1], port) for what in ("scheduler", "worker")
    )
    with started(scheduler, worker, env={"DASK_CONFIG": str(tmp_path / "dask")}):
        configured = dask.config.merge(dask.config.config, dask.config.collect([str(tmp_path / "dask")]))
        with dask.config.set(configured), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with cluster.connect(f"tls://127.0.0.1:{port}", timeout=60) as client:
                client.wait_for_workers(2, timeout=120)
                attribute([toy("a"), toy("b", seed=1)], probe(n=7), out=tmp_path / "cluster", client=client)
        certificate, both = str(folder / "certificate.pem"), str(folder / "both.pem")
        security = distributed.Security(tls_ca_file=certificate, tls_client_cert=both, require_encryption=True)
        with cluster.connect(f"tls://127.0.0.1:{port}", timeout=30, security=security) as client:
            assert client.submit(len, "abc").result() == 3
        for stranger in (f"tls://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}"):
            with pytest.raises(OSError, match="no Dask scheduler answers"):
                cluster.connect(stranger, timeout=2)
    attribute([toy("a"), toy("b", seed=1)], probe(n=7), out=tmp_path / "serial")
    assert tree(tmp_path / "cluster") == tree(tmp_path / "serial")


LOOPBACK = "127.0.0.1:1 tcp://127.0.0.1:1 localhost:1 tcp://LOCALHOST:1 127.1:1 tcp://127.9.8.7:1 [::1]:1 tcp://[::1]:1"
LOOPBACK += " tcp://[::ffff:127.0.0.1]:1 ws://127.0.0.1:1 tls://192.0.2.1:1 wss://192.0.2.1:1 tls://node.example:1"
EXPOSED = (
    "192.0.2.1:1 tcp://192.0.2.1:1 tcp://[2001:db8::1]:1 ws://192.0.2.1:1 tcp://0.0.0.0:1 tcp://[::ffff:192.0.2.1]:1"
)
EXPOSED += " tcp://nowhere.invalid:1 tcp://127.0.0.1.nowhere.invalid:1"


def test_an_unencrypted_address_beyond_this_machine_is_warned_of(monkeypatch):
    monkeypatch.setattr(distributed, "Client", lambda address, **settings: address)
    for address in EXPOSED.split():
        with pytest.warns(UserWarning, match="not encrypted"):
            assert cluster.connect(address) == address
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for address in LOOPBACK.split():
            assert cluster.connect(address) == address
    with pytest.raises(ValueError, match="address of a scheduler is a text"):
        cluster.connect(8786)
    with pytest.raises(ValueError, match="cluster.connect"):
        attribute(toy(), probe(), client="tcp://127.0.0.1:8786", out="maps")
