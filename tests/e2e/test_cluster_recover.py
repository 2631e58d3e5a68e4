"""Two of three brokers lose their disks for good: the third goes on alone, and new ones take the place of the others."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib

from harness import binary, until
from several import Several
from verdict import APIS

CHANNELS = 16


def publish(cluster: Several, text: str) -> None:
    for n in range(CHANNELS):
        answer = cluster.post(f"/v1/channels/c{n}/messages", f"{text} {n}")
        assert answer.status_code == 200, answer.text


def recover(cluster: Several, number: int, *words: str) -> str:
    argv = [str(binary()), "cluster", "recover", str(cluster.folder / f"data-{number}"), *words]
    return subprocess.run(argv, check=True, capture_output=True, timeout=60, text=True).stdout


def test_the_last_disk_goes_on_with_everything_it_has_and_says_what_it_lacks(folder):
    cluster = Several(folder, APIS, edges=0).start()
    for n in range(10):
        publish(cluster, f"before {n}")
    survivor, lost = cluster.brokers[2], cluster.brokers[:2]

    def level() -> bool:
        return all(replica["lag"] == 0 for row in cluster.describe()["partitions"] for replica in row["replicas"])

    until(level, "every replica to have everything", 30)
    before = cluster.tail_text().splitlines()
    assert len(before) >= 10 * CHANNELS
    for broker in cluster.brokers:
        broker.process.kill9()
    for broker in lost:
        shutil.rmtree(folder / f"data-{broker.number}")

    told = recover(cluster, survivor.number)
    assert "Nothing is changed" in told and "Left behind" in told, told
    done = json.loads(recover(cluster, survivor.number, "--yes", "--json"))
    assert done["done"] and [row["broker"] for row in done["left_behind"]] == [1, 2], done
    assert [row["partition"] for row in done["partitions"]] == list(range(cluster.partitions))
    assert all(row["last"] >= (row["committed"] or 0) for row in done["partitions"])

    survivor.process.start(seconds=60)
    until(lambda: survivor.is_ready, "the survivor to lead everything", 60)
    after = cluster.tail_text().splitlines()
    assert set(before) <= set(after), "what was acknowledged and is on the survivor's disk is gone"
    publish(cluster, "alone")

    for broker in lost:
        # it is ready once it is a member
        broker.process.start(ready=False)
        link = tomllib.loads((folder / f"broker-{broker.number}.toml").read_text())["broker"]["link"]
        argv = [str(binary()), "cluster", "add", str(broker.number), "--link", link, "--broker", survivor.process.http("grpc")]
        until(lambda argv=argv: subprocess.run(argv, capture_output=True, timeout=60).returncode == 0, f"broker {broker.number} to be added", 60)
        broker.process.wait_ready(60)
    until(lambda: all(broker.is_ready for broker in cluster.brokers), "every broker to know every leader", 60)
    until(level, "every replica to have everything", 60)
    assert {tuple(row["voters"]) for row in cluster.describe()["partitions"]} == {(1, 2, 3)}
    # the survivor may go now
    survivor.process.kill9()
    for partition in range(cluster.partitions):
        cluster.leader(partition)
    publish(cluster, "without it")
    assert set(after) <= set(cluster.tail_text().splitlines())
