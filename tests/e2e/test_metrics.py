"""What alerts ask for is what servers export, under the labels that the alerts name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests

from harness import Cluster
from test_kills import APIS

pytestmark = [pytest.mark.short, pytest.mark.timeout(120)]

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules.yml"
# they come with what they count
LATER = {"trunkline_edge_paused_seconds_total", "trunkline_handler_lag_records"}


def exported(text: str) -> dict[str, set[str]]:
    """Names, without what belongs to a histogram, and their labels."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(trunkline_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def test_alerts_ask_for_metrics_that_there_are(folder):
    cluster = Cluster(folder, APIS, partitions=2)
    cluster.start_broker()
    cluster.start_edge()
    pages = [cluster.broker.http(), cluster.edge.http("edge-http")]
    found = exported("".join(requests.get(f"{page}/metrics", timeout=10).text for page in pages))
    rules = re.findall(r"^\s+expr: (.*)$", RULES.read_text(), re.MULTILINE)
    asked = {rule: {name.removesuffix("_bucket") for name in re.findall(r"trunkline_\w+", rule)} for rule in rules}
    wanted = set().union(*asked.values())
    assert len(wanted) >= 8, wanted
    missing = wanted - found.keys() - LATER
    assert not missing, f"{missing} are not in {sorted(found)}"
    by_partition = {name for rule, names in asked.items() if "(partition)" in rule for name in names}
    assert by_partition, rules
    assert all("partition" in found[name] for name in by_partition), found
