"""Prometheus, Grafana and what they show: the files fit each other, compose.yaml and the collectors.

Neither program is there in CI, so the files are checked as data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import Metric

from pocqueue.hosts.gateway.metrics import Metrics as HostMetrics
from pocqueue.node.metrics import NodeMetrics
from pocqueue.rounds.backend import Backend
from pocqueue.rounds.metrics import PoolCollector
from pocqueue.web.requests import request_histogram
from tests.support.env_example import ROOT

CONFIG = ROOT / "config"
POOL, HOSTS = "grafana-dashboard.json", "grafana-hosts.json"
DASHBOARDS: dict[str, dict[str, Any]] = {
    name: json.loads((CONFIG / name).read_text()) for name in (POOL, HOSTS)
}
each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def panels(name: str) -> list[dict[str, Any]]:
    """Return the panels of a dashboard that show something."""
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


def expressions(name: str) -> Iterator[str]:
    """Yield every query of a dashboard."""
    for panel in panels(name):
        for target in panel["targets"]:
            yield target["expr"]


def series(name: str, kind: str) -> set[str]:
    """Return the names that a metric family has on the page."""
    if kind == "counter":
        return {f"{name}_total"}
    return (
        {f"{name}_{end}" for end in ("bucket", "count", "sum")} if kind == "histogram" else {name}
    )


def of_hosts() -> list[Metric]:
    """Return what a gateway of GPU hosts shows of itself."""
    metrics = HostMetrics()
    metrics.ledger_mismatch = 0
    families = [
        *metrics.registry.collect(),
        *metrics.gauges(nodes={}, jobs={}, num_connections=0),
    ]
    return [family for family in families if family.name.startswith("pocqueue")]


@pytest.fixture
def known(backend: Backend) -> set[str]:
    """Every name that our processes show."""
    families = [
        *PoolCollector(backend).collect(),
        *request_histogram("delegation").collect(),
        *NodeMetrics().registry.collect(),
        *of_hosts(),
    ]
    return {name for family in families for name in series(family.name, family.type)}


@each_dashboard
def test_every_metric_of_a_dashboard_exists(known: set[str], name: str) -> None:
    """A renamed metric is an empty graph that nobody notices."""
    used = {word for expr in expressions(name) for word in re.findall(r"pocqueue_\w+", expr)}
    assert used - known == set()


@pytest.mark.parametrize(
    ("name", "families"), [(POOL, NodeMetrics().registry.collect()), (HOSTS, of_hosts())]
)
def test_a_dashboard_shows_all_that_its_service_says(name: str, families: list[Metric]) -> None:
    """Of a small node and of a gateway of GPU hosts, in one form or another."""
    text = " ".join(expressions(name))
    assert [family.name for family in families if family.name not in text] == []


@pytest.mark.parametrize(
    "needed",
    [
        "pocqueue_gpu_nonces_checked_total",
        "pocqueue_nonces_checked_total",
        "pocqueue_nonces_valid_total",
        "pocqueue_gpu_ranges_out",
        "histogram_quantile(0.5, sum by (le) (max by (queue, host, le) (rate(pocqueue_gpu_commit",
        "histogram_quantile(0.99, sum by (le) (max by (queue, host, le) (rate(pocqueue_gpu_commit",
        "pocqueue_late_batches_total",
        "pocqueue_sessions",
        "pocqueue_node_delivery_seconds_bucket",
        "pocqueue_node_outbox_messages",
        "pocqueue_node_fraud_total",
        "pocqueue_auth_failures_total",
    ],
)
def test_a_rounds_life_is_on_the_dashboard(needed: str) -> None:
    """From the GPU to the receiver."""
    assert any(needed in expr for expr in expressions(POOL))


def test_pool_metrics_are_never_summed_over_scrapes() -> None:
    """Scheduler and API show the same: a sum over both would be twice the truth."""
    for expr in expressions(POOL):
        if re.search(r"pocqueue_(?!node_|delegation_)", expr):
            assert re.search(r"\bmax( by \([^)]*\))? ?\(", expr), expr


def test_gateways_say_the_same_of_nodes_and_jobs_and_each_its_own_of_the_rest() -> None:
    """What is in the database is taken from any of them, what each of them counts is summed."""
    for expr in expressions(HOSTS):
        same = re.search(r"pocqueue_hosts_(nodes|jobs|ledger_mismatch)\b", expr)
        assert re.match(r"(histogram_quantile\([\d.]+, )?(sum|max)\b", expr), expr
        assert (re.search(r"\bmax( by \([^)]*\))? ?\(", expr) is not None) == bool(same), expr


@each_dashboard
def test_brackets_of_queries_close(name: str) -> None:
    """The commonest mistake that a look at the file does not show."""
    for expr in expressions(name):
        assert expr.count("(") == expr.count(")"), expr
        assert expr.count("[") == expr.count("]"), expr


@each_dashboard
def test_a_dashboard_is_well_formed(name: str) -> None:
    """Ids are unique, no two panels lie on each other, each says what it shows."""
    everything = DASHBOARDS[name]["panels"]
    ids = [panel["id"] for panel in everything]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels(name):
        assert panel["title"], panel["id"]
        assert panel["description"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    assert DASHBOARDS[name]["uid"] == {POOL: "pocqueue", HOSTS: "pocqueue-hosts"}[name]
    assert DASHBOARDS[name]["schemaVersion"] >= 39


@each_dashboard
def test_the_data_source_can_be_chosen(name: str) -> None:
    """Every panel and query uses the variable, so the file works in anybody's Grafana."""
    (variable,) = DASHBOARDS[name]["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    for panel in panels(name):
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])


def test_prometheus_reads_what_compose_starts() -> None:
    """Hosts are services of compose.yaml, ports are those that they listen on."""
    loaded = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    jobs = {job["job_name"]: job for job in loaded["scrape_configs"]}
    ports = {
        "scheduler": services["scheduler"]["environment"]["POCQUEUE_METRICS_PORT"],
        "delegation": services["delegation"]["environment"]["DELEGATION_PORT"],
        "node": services["node"]["environment"]["POCQUEUE_NODE_PORT"],
        "hosts": services["hosts"]["environment"]["POCQUEUE_HOSTS_PORT"],
    }
    targets = {name: job["static_configs"][0]["targets"] for name, job in jobs.items()}
    assert targets == {name: [f"{name}:{port}"] for name, port in ports.items()}
    assert all("metrics_path" not in job for job in jobs.values())  # /metrics, everywhere
    for name in ("delegation", "hosts"):
        credentials = jobs[name]["authorization"]
        assert credentials["type"] == "Bearer"
        assert credentials["credentials_file"] in str(services["prometheus"]["entrypoint"])


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    """By the names that compose.yaml gives them."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    (source,) = yaml.safe_load((CONFIG / "grafana-datasource.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((CONFIG / "grafana-dashboards.yml").read_text())["providers"]
    folder = provider["options"]["path"]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert {f"{folder}/pocqueue.json", f"{folder}/hosts.json"} <= set(mounts)
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/pocqueue.json"
