"""The short form of the benchmarks fails on a ratio that fell, and on nothing less."""

import pytest

from tests.bench import requests
from tests.bench.load import Sample
from tests.bench.report import Samples


def _samples(*rates: tuple[float, float]) -> Samples:
    samples = Samples()
    for itdesk, limit in rates:
        for server, rate in (("itdesk", itdesk), ("limit", limit)):
            samples.add("read", server, Sample(rate=rate, p50=1.0, p99=2.0, requests=100))
    return samples


@pytest.mark.parametrize(
    ("ratio", "room", "reached"),
    [(0.71, 1.0, True), (0.69, 1.0, False), (0.43, 0.6, True), (0.41, 0.6, False)],
)
def test_a_target_is_reached_or_missed_by_the_ratio_to_the_limit(
    ratio: float, room: float, reached: bool
) -> None:
    """T1: the machine's speed does not matter, one noisy round neither."""
    samples = _samples((ratio * 900, 900), (ratio * 9000, 9000), (9000 * 0.01, 9000))
    [figure] = requests.figures(_samples((ratio * 900, 900), (ratio * 9000, 9000)), room=room)
    assert figure.reached is reached
    [noisy] = requests.figures(samples, room=room)
    assert noisy.value == pytest.approx(ratio)
