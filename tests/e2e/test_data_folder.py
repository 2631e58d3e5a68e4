"""A data folder that is locked, of another version, or damaged: said clearly, and left as it is."""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path

import pytest

from harness import Cluster, Dev, Timeout, binary

pytestmark = pytest.mark.short


def verify(data: Path) -> subprocess.CompletedProcess:
    return subprocess.run([str(binary()), "verify", str(data)], capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def made(module_folder) -> Path:
    """A folder with a log and snapshots, of a broker that was stopped."""
    cluster = Cluster(module_folder / "made", "", partitions=2, snapshot_entries=100)
    cluster.start_broker()
    for number in range(500):
        cluster.publish(f"channel-{number % 7}", f"message {number} " + "x" * 200)
    assert cluster.broker.stop() == 0
    # a second start turns the first one's write-ahead log into tables; what follows stays in a log
    cluster.start_broker()
    for number in range(500):
        cluster.publish(f"channel-{number % 7}", f"later {number} " + "x" * 200)
    assert cluster.broker.stop() == 0
    return cluster.data


@pytest.fixture
def data(made, folder) -> Path:
    """A copy to spoil."""
    subprocess.run(["cp", "-a", str(made), str(folder / "data")], check=True)
    return folder / "data"


def start_on(folder: Path, data: Path) -> str:
    """What a broker says that refuses to start on `data`."""
    cluster = Cluster(folder / "cluster", "", partitions=2, data=data)
    with pytest.raises(Timeout):
        cluster.start_broker()
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


@pytest.mark.parametrize("where", ["identity", "log", "table", "marks"])
def test_damage_is_found_and_its_place_named(folder, data, where):
    victim = pick(data, where)
    flip(victim)
    done = verify(data)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode not in {0, 101}, f"{victim} was spoilt and verify says all is well:\n{said}"
    assert names(said, victim), f"{victim.relative_to(data)} was spoilt; verify does not name the place:\n{said}"


def test_a_broker_does_not_serve_a_damaged_log(folder, data):
    flip(pick(data, "log"))
    said = start_on(folder, data)
    assert "damage" in said or "corrupt" in said.lower(), said[-2000:]


def test_a_log_that_lost_its_end_is_not_taken_for_a_whole_one(folder, data):
    """Acknowledged records are gone: starting as if nothing had happened would be a lie."""
    victim = pick(data, "log")
    with open(victim, "r+b") as file:
        file.truncate(victim.stat().st_size // 2)
    start_on(folder, data)
    assert verify(data).returncode not in {0, 101}


def pick(data: Path, where: str) -> Path:
    files = [path for path in data.rglob("*") if path.is_file() and path.stat().st_size > 64]
    kinds = {
        "identity": [path for path in files if path.name == "identity"],
        "log": [path for path in files if path.suffix == ".log"],
        "table": [path for path in files if path.suffix in {".sst", ".blob"}],
        "marks": [path for path in data.rglob("*") if path.is_file() and "marks" in path.name],
    }
    found = sorted(kinds[where], key=lambda path: path.stat().st_size)
    assert found, f"no {where} in {[str(path.relative_to(data)) for path in files]}"
    return found[-1]


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def names(said: str, victim: Path) -> bool:
    """The file; or the database's folder where RocksDB does not say which of its files it read."""
    return str(victim) in said or victim.name in said or f"{victim.parent} is damaged" in said


def tree(data: Path) -> dict[str, bytes]:
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name != "lock"}
