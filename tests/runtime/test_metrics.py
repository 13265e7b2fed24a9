import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from itdesk.runtime.metrics import CONTENT_TYPE, Metrics, OwnProcess


async def test_the_page_holds_the_runtimes_metrics_and_those_of_the_process() -> None:
    metrics = Metrics()
    metrics.http_request_seconds.labels("GET", "/api/v1/tickets", "200").observe(0.01)
    metrics.actor_restarts.labels("scanner").inc()
    page = (await metrics.render()).decode()
    assert 'itdesk_actor_restarts_total{actor="scanner"} 1.0' in page
    route = 'method="GET",route="/api/v1/tickets",status="200"'
    assert f"itdesk_http_request_seconds_count{{{route}}} 1.0" in page
    for name in ("itdesk_loop_lag_seconds_count", "process_open_fds", "python_gc_objects"):
        assert name in page
    assert "_created" not in page
    assert CONTENT_TYPE.startswith("text/plain")


def test_the_process_is_measured_where_proc_holds_processes_alone(tmp_path: Path) -> None:
    """O-10: with ProcSubset=pid there is no /proc/stat, which says when the machine was booted."""
    (tmp_path / "self").symlink_to(f"/proc/{os.getpid()}")
    names = ("process_open_fds", "process_resident_memory_bytes", "process_start_time_seconds")
    bare, whole = CollectorRegistry(), CollectorRegistry()
    OwnProcess(proc=str(tmp_path), registry=bare)
    ProcessCollector(registry=whole)
    for name in names:
        there, wanted = bare.get_sample_value(name), whole.get_sample_value(name)
        assert there is not None and there == pytest.approx(wanted, rel=0.2)
    started = [registry.get_sample_value(names[2]) for registry in (bare, whole)]
    assert started[0] == pytest.approx(started[1], abs=2)


def test_many_daemons_may_live_in_one_process() -> None:
    first, second = Metrics(), Metrics()
    first.counter("itdesk_jobs_total", "Jobs.").inc()
    second.counter("itdesk_jobs_total", "Jobs.").inc(5)
    assert first.registry.get_sample_value("itdesk_jobs_total") == 1
    assert second.registry.get_sample_value("itdesk_jobs_total") == 5


def test_asking_twice_for_a_name_gives_the_same_metric() -> None:
    metrics = Metrics()
    assert metrics.counter("itdesk_a_total", "A.", ["x"]) is metrics.counter(
        "itdesk_a_total", "A.", ["x"]
    )
    assert metrics.gauge("itdesk_b", "B.") is metrics.gauge("itdesk_b", "B.")
    assert metrics.histogram("itdesk_c", "C.") is metrics.histogram("itdesk_c", "C.")


def test_one_name_cannot_mean_two_things() -> None:
    metrics = Metrics()
    metrics.gauge("itdesk_b", "B.", ["x"])
    with pytest.raises(ValueError, match="itdesk_b"):
        metrics.counter("itdesk_b", "B.", ["x"])
    with pytest.raises(ValueError, match="itdesk_b"):
        metrics.gauge("itdesk_b", "B.", ["x", "y"])
