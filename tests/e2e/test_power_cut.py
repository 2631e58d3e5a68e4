"""The power of the broker's disk is cut: what was acknowledged is there afterwards. `kill -9` cannot show this, for the
page cache outlives a process.

The negative control runs the same with fsync turned off by a switch that exists for this test only. It must lose
something: a test that was never seen failing proves nothing.
"""

from __future__ import annotations

import random
import time

import pytest

import checker
import disk
from clients import Crowd, Submitters
from disk import Disk
from harness import Cluster, until
from verdict import APIS, end_and_judge

CUTS = 6
CONTROL_CUTS = 8
NO_SYNC = {"TRUNKLINE_TEST_NO_SYNC": "1"}


def cut(cluster: Cluster, device: Disk) -> None:
    """Cuts the power of broker and disk; then power comes back."""
    assert cluster.broker.alive, f"the broker ended before its power did\n{cluster.broker.tail_of_log()}"
    device.cut(cluster.broker.popen)
    cluster.broker.kill9()
    device.power_on()


@pytest.mark.short
@pytest.mark.timeout(240)
def test_nothing_acknowledged_is_lost_when_the_power_goes(folder, need):
    need(not disk.missing(), disk.missing())
    chance = random.Random()
    with Disk(folder) as device:
        cluster = Cluster(folder, APIS, data=device.at / "data", snapshot_entries=300).start()
        cluster.handler("effects", group="effects", api="effects")
        crowd = Crowd(cluster.ws(""), writers=30, watchers=2, pause=0.1).start()
        submitters = Submitters(cluster.broker.http(), channel="submits", threads=4, pause=0.005).start()
        for number in range(CUTS):
            answered, accepted = crowd.received, submitters.acked
            until(lambda: crowd.received > answered + 50, f"answers before cut {number}", 60)
            until(lambda: submitters.acked > accepted + 20, f"submits before cut {number}", 60)
            time.sleep(chance.uniform(0, 1.5))  # the random moment
            cut(cluster, device)
            cluster.start_broker()
        answered = crowd.received
        until(lambda: crowd.connected == 32 and crowd.received > answered + 50, "all clients connected and answered", 60)
        submits = end_and_judge(cluster, crowd, submitters)
        print(f"{CUTS} cuts, {len(submits)} submits, {sum(s.outcome == 'acked' for s in submits)} acknowledged, {crowd.received} answers")
        for process in (cluster.edge, cluster.broker):
            process.stop()


@pytest.mark.short
@pytest.mark.timeout(120)
def test_a_broker_whose_disk_is_gone_says_so_and_loses_nothing_it_said_before(folder, need):
    """The disk alone fails, under a broker that lives on. What it says in that very moment is not judged: ext4 may have told
    it that a sync succeeded that did not (disk.py)."""
    need(not disk.missing(), disk.missing())
    with Disk(folder) as device:
        cluster = Cluster(folder, APIS, data=device.at / "data", snapshot_entries=100)
        for number in range(CUTS):
            cluster.start_broker()
            submitters = Submitters(cluster.broker.http(), channel="submits", threads=4, pause=0.001, give_up=0).start()
            until(lambda: submitters.acked > 100, "submits before the disk goes", 30)
            before = list(submitters.submits)
            device.cut()
            until(lambda: cluster.request("get", "/readyz").status_code == 503, "the broker to say that it is not ready", 10)
            tried, accepted = len(submitters.submits), submitters.acked
            until(lambda: len(submitters.submits) > tried + 20, "submits to a broker without a disk", 20)
            assert submitters.acked <= accepted + 4, "it goes on acknowledging"
            submitters.finish()
            cluster.broker.kill9()
            device.power_on()
            cluster.start_broker()
            found = checker.submits(cluster.tail(), before, channel="submits")
            lost = [violation for violation in found if "is lost" in violation.detail]
            assert not lost, f"round {number}: {checker.report(lost)}"
            cluster.broker.kill9()


@pytest.mark.short
@pytest.mark.timeout(240)
def test_without_fsync_the_same_check_finds_the_loss(folder, need):
    need(not disk.missing(), disk.missing())
    with Disk(folder) as device:
        for number in range(CONTROL_CUTS):
            found = lose(folder / str(number), device)
            if found:
                print(f"cut {number + 1} lost acknowledged submits: {checker.report(found, 3)}")
                return
    pytest.fail(f"with {NO_SYNC} nothing was lost in {CONTROL_CUTS} cuts: either the switch does nothing or the test is blind")


def lose(folder, device: Disk) -> list[checker.Violation]:
    cluster = Cluster(folder, APIS, data=device.at / f"data-{folder.name}", broker_env=NO_SYNC)
    cluster.start_broker()
    submitters = Submitters(cluster.broker.http(), channel="submits", threads=4, pause=0, give_up=0).start()
    until(lambda: submitters.acked > 300, "submits before the cut", 30)
    cut(cluster, device)
    submits = submitters.finish()
    assert not submitters.errors, submitters.errors[:3]
    # the folder may be damaged beyond what a broker accepts: refusing to start is a way of telling, and a loss
    try:
        cluster.start_broker()
    except AssertionError:
        assert not cluster.broker.alive, "the broker neither starts nor ends"
        return [checker.Violation("submits", "the broker", f"does not start on what is left: {cluster.broker.tail_of_log(3)}")]
    found = checker.submits(cluster.tail(), submits, channel="submits")
    cluster.broker.kill9()
    return [violation for violation in found if "is lost" in violation.detail]
