"""What several processes add up to, and when the report says that the generator was the limit."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_server.bench.histogram import Histogram
from gpu_server.bench.plan import Plan, Result
from gpu_server.bench.report import report, table

PLAN = Plan(url="http://h/embed", connections=8, processes=2, duration_s=10.0, texts=4)
OPEN = Plan(url="http://h/embed", connections=8, processes=2, duration_s=10.0, rate=100.0)


def histogram(value_s: float, count: int = 1) -> Histogram:
    made = Histogram()
    for _ in range(count):
        made.add(value_s)
    return made


def result(cpu_s: float = 1.0, lag_s: float = 1e-4, **given: Any) -> Result:
    outcomes = {"200": histogram(0.01, 99), "429": histogram(0.001)}
    return Result(outcomes, 99, cpu_s, histogram(lag_s), **{"late": Histogram(), **given})


def test_rates_and_latencies_are_of_good_answers() -> None:
    made = report(PLAN, [result(), result()], machine_busy=0.5)
    assert made.requests_per_s == pytest.approx(19.8)
    assert made.texts_per_s == pytest.approx(4 * 19.8)
    assert made.latency.p50_s == made.latency.max_s == pytest.approx(0.01)
    assert {name: row.requests for name, row in made.outcomes.items()} == {"200": 198, "429": 2}
    assert (made.loop, made.generator.limits) == ("closed", ())


def test_a_body_of_the_users_own_has_no_texts() -> None:
    plan = Plan(url="http://h/x", connections=1, body_file="x.json")
    assert report(plan, [result()], 0.0).texts_per_s == 0.0


@pytest.mark.parametrize(
    ("plan", "results", "busy", "said"),
    [
        (PLAN, [result(cpu_s=9.5), result()], 0.5, "1 of 2 generator processes used a whole core"),
        (PLAN, [result(lag_s=0.02), result()], 0.5, "the generator ran 20.0 ms late"),
        (OPEN, [result(offered=100, late=histogram(0.03))], 0.5, "the generator ran 30.0 ms late"),
        (PLAN, [result()], 0.97, "this machine's CPUs were 97% busy"),
        (OPEN, [result(offered=100, waited=5)], 0.5, "5.0% of the requests found no free connection"),
    ],
)
def test_the_generators_own_limit_is_told(plan: Plan, results: list[Result], busy: float, said: str) -> None:
    made = report(plan, results, busy)
    (limit,) = made.generator.limits
    assert said in limit
    assert f"LIMIT: {limit}" in table(made).splitlines()


def test_table_has_a_row_for_each_outcome() -> None:
    rows = table(report(OPEN, [result(offered=100)], 0.1)).splitlines()
    assert "9.9 requests/s of 10.0 offered" in rows[1]
    assert [row.split()[0] for row in rows[3:5]] == ["200", "429"]
    assert not any(row.startswith("LIMIT") for row in rows)


def test_a_run_without_answers_has_a_table() -> None:
    made = report(PLAN, [Result({}, 0, 0.0, Histogram(), Histogram())], 0.0)
    assert made.latency.requests == 0
    assert "0.0 requests/s" in table(made)


def test_shares_add_up_to_the_plan() -> None:
    plan = Plan(url="http://h/embed", connections=10, processes=3, rate=100.0)
    shares = [plan.share(number) for number in range(3)]
    assert [share.connections for share in shares] == [4, 3, 3]
    assert sum(share.rate for share in shares) == pytest.approx(100.0)
    assert len({share.seed for share in shares}) == 3
