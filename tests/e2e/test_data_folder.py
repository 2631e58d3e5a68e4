"""A data folder that is locked, of another version, or damaged: said clearly, and left as it is."""

from __future__ import annotations

import json
import re
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from harness import Cluster, Dev, Timeout, binary, until

pytestmark = pytest.mark.short


def verify(data: Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(binary()), "verify", str(data)], capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def made(module_folder) -> Path:
    """A folder of a broker that was stopped twice: the second start has written the first log and its snapshots to tables."""
    cluster = Cluster(module_folder / "made", "", partitions=2, snapshot_entries=100)
    for _ in range(2):
        cluster.start_broker()
        for number in range(400):
            cluster.publish(f"channel-{number % 7}", f"message {number} " + "x" * 200)
        assert cluster.broker.stop() == 0
    return cluster.data


@pytest.fixture
def data(made, folder) -> Path:
    """A copy to spoil."""
    subprocess.run(["cp", "-a", str(made), str(folder / "data")], check=True)
    return folder / "data"


def start_on(folder: Path, data: Path) -> str:
    """What a broker says that refuses to start on `data`, or serves only what is sound of it and is not ready."""
    cluster = Cluster(folder / "cluster", "", partitions=2, data=data)
    # what is served is ready; a broker that refuses to start never is
    with suppress(Timeout):
        cluster.start_broker()
    if cluster.broker.alive:
        # a start reads what its newest snapshot does not stand for; damage before that is met by whoever reads that far back
        for partition in range(2):
            cluster.request("get", f"/v1/log?partition={partition}&from=0&limit=1000")
        until(lambda: "the partition is damaged and closed" in cluster.broker.log_text(), "the broker to find the damage", 20)
        answer = cluster.request("get", "/readyz")
        assert answer.status_code == 503 and "partition" in answer.json()["detail"], answer.text
        cluster.broker.stop()
    else:
        assert cluster.broker.popen.wait(10) != 0
    return cluster.broker.log_text()


def test_a_sound_folder_is_verified(made):
    done = verify(made)
    assert done.returncode == 0, done.stderr.decode()
    assert b"partition" in done.stdout.lower() and b"digest" in done.stdout.lower(), done.stdout


def test_a_locked_folder_is_refused_and_its_owner_goes_on(folder):
    node = Dev(folder / "one").start()
    other = Dev(folder / "two", data=node.data)
    with pytest.raises(Timeout):
        other.start()
    assert other.process.popen.wait(10) != 0
    assert str(node.data) in other.process.log_text()
    done = verify(node.data)
    assert done.returncode != 0 and str(node.data) in done.stderr.decode(), done
    node.publish("still", "there")
    assert node.process.stop() == 0


def test_a_folder_of_another_version_is_refused(folder, data):
    path = data / "identity"
    text = path.read_text()
    body = text[: text.index("checksum ")]
    assert "format 1\n" in body, text
    body = body.replace("format 1\n", "format 2\n")
    path.write_text(f"{body}checksum {zlib.crc32(body.encode()):08x}\n")
    before = tree(data)
    said = start_on(folder, data)
    assert "format" in said and "2" in said, said
    done = verify(data)
    assert done.returncode != 0 and "format" in done.stderr.decode()
    assert tree(data) == before, "it changed the folder nevertheless"


def test_a_folder_of_another_cluster_is_refused(folder, data):
    cluster = Cluster(folder / "cluster", "", partitions=3, data=data)
    with pytest.raises(Timeout):
        cluster.start_broker()
    said = cluster.broker.log_text()
    assert "2 partitions" in said and "3 partitions" in said, said


FILES = ["identity", "marks", "db/*.log", "db/*.sst", "db/MANIFEST-*", "db/CURRENT"]
"""Every kind of file that holds anything; log entries, snapshots and votes are in the database's. (The rest of it is for
RocksDB's own comfort: IDENTITY, LOCK, LOG, OPTIONS.)"""


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("spoil", [flip, cut_off, remove])
@pytest.mark.parametrize("files", FILES)
def test_damage_is_found_and_its_place_named_by_verify_and_by_a_broker(folder, data, files, spoil):
    victims = sorted(data.glob(files))
    assert victims, f"no {files} in {[str(path.relative_to(data)) for path in data.rglob('*')]}"
    for number, victim in enumerate(victims):
        copy = folder / f"{number}"
        subprocess.run(["cp", "-a", str(data), str(copy)], check=True)
        spoilt = copy / victim.relative_to(data)
        spoil(spoilt)
        before = tree(copy)
        done = verify(copy)
        assert tree(copy) == before, "verify changed the folder"
        said = done.stdout.decode() + done.stderr.decode()
        assert done.returncode not in {0, 101}, f"{victim} was spoilt and verify says all is well:\n{said}"
        assert names(said, spoilt, spoil), f"{victim.relative_to(data)} was spoilt; verify does not name the place:\n{said}"
        said = start_on(folder / f"broker-{number}", copy)
        assert names(said, spoilt, spoil), f"{victim.relative_to(data)} was spoilt; the broker does not name the place:\n{said}"


def names(said: str, victim: Path, spoil) -> bool:
    """The file. Of a log that ends too early there is nothing to see in it: the partition and how far it should go."""
    words = " ".join(said.replace("│", " ").split())
    if victim.suffix == ".log" and spoil is not flip:
        return "partition 0" in words and "its log ends at index" in words and "was synced: acknowledged data is lost" in words
    return "is damaged" in words and victim.name in words


def test_damage_inside_the_log_is_named_by_partition_and_index(data):
    victim = max(data.glob("db/*.sst"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[100] ^= 0x10
    victim.write_bytes(content)
    done = subprocess.run([str(binary()), "verify", "--json", str(data)], capture_output=True, timeout=60)
    damage = [row["damage"] for row in map(json.loads, done.stdout.splitlines()) if row["damage"]]
    assert done.returncode not in {0, 101} and len(damage) == 1, done
    assert re.match(rf"partition \d at or after index \d+ \(db/{victim.name}\) is damaged: ", damage[0]), damage


def tree(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name != "lock"}
