"""Workers of a local cluster are killed in the middle of a computation, and its results are the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.dask_calls import blocked_results
from tests.support.ring_calls import make_call

pytestmark = pytest.mark.distributed
KILLS = 4  # `python -m benchmarks.distributed kills` kills twenty


class Killer:
    """A plugin of the scheduler that kills a worker when so many tasks have been computed."""

    name = "killer"

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.left = -1

    def transition(self, key: str, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if (start, finish) == ("processing", "memory"):
            self.left -= 1
            if self.left == 0:
                os.kill(self.pids.pop(), signal.SIGKILL)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    dask = pytest.importorskip("dask")
    distributed = pytest.importorskip("distributed")
    config = {
        "distributed.scheduler.allowed-failures": 2 * KILLS,
        "distributed.deploy.lost-worker-timeout": "600s",  # a new worker may take longer than the 15 s of the default
    }
    with (
        dask.config.set(config),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
        aa.use_kernels("reference"),  # a new worker need not load kernels
    ):
        yield client


@pytest.mark.filterwarnings("ignore")  # of connections that a killed worker leaves
def test_a_killed_worker_changes_nothing(client: Any) -> None:
    from distributed.diagnostics.plugin import SchedulerPlugin

    class Plugin(Killer, SchedulerPlugin):
        pass

    killer, scheduler = Plugin(), client.cluster.scheduler
    scheduler.add_plugin(killer)
    call, rng = make_call("dropout", "float32"), np.random.default_rng(0)
    chunks = {"query": (1, 2, 6, -1), "key": (1, 1, 13, -1), "value": (1, 1, 13, -1)}
    before = scheduler.transition_counter
    expected = blocked_results(call, chunks, lambda lazy: client.compute(lazy, sync=True))
    assert scheduler.transition_counter > before  # it was the cluster that computed
    for _ in range(KILLS):
        client.wait_for_workers(2)
        killer.pids = list(client.run(os.getpid, on_error="ignore").values())
        alive = len(killer.pids)
        killer.left = int(rng.integers(1, 40))
        found = blocked_results(call, chunks, lambda lazy: client.compute(lazy, sync=True))
        assert len(killer.pids) == alive - 1, "no worker was killed"
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
