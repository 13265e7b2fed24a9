import pytest

from itdesk.runtime.metrics import CONTENT_TYPE, Metrics


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
