"""The network and the disks do what the faults rely on, and nothing of them is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import leftovers
from network import Network, entering, namespaces, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not run: namespaces need root")

SEED = leftovers.SEED_MAX - os.getpid()
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data, peer)
"""
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.3)
heard = 0
for _ in range(int(sys.argv[2])):
    s.sendto(b"x", (sys.argv[1], 9))
    try:
        s.recvfrom(100)
        heard += 1
    except TimeoutError:
        pass
print(heard)
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    prefix = leftovers.prefix_of(SEED)
    leftovers.claim(prefix, tmp_path_factory.mktemp("network"))
    made = Network(prefix, ["b1", "b2", "b3"]).make()
    echoes = []
    for host in made.hosts.values():
        echo = subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, preexec_fn=host.enter)
        echo.stdout.readline()
        echoes.append(echo)
    yield made
    leftovers.clean(prefix)
    assert all(echo.wait(5) == -9 for echo in echoes), "what runs inside is ended"
    assert not namespaces(prefix)


def heard(network: Network, asker: str, other: str, times: int = 1) -> int:
    """How many echoes `asker` gets of `other`."""
    return int(run(sys.executable, "-c", ASK, network[other].address, str(times), enter=network[asker].enter))


def test_everybody_hears_everybody(network):
    assert all(heard(network, a, b) for a in network.hosts for b in network.hosts if a != b)


def test_a_cut_is_one_way_counts_and_heals(network):
    # b2 hears nothing of b1: neither b1's question nor b1's answer arrives
    network["b2"].drop_from("cut", network["b1"])
    assert not heard(network, "b1", "b2") and not heard(network, "b2", "b1")
    assert heard(network, "b3", "b2") and heard(network, "b1", "b3")
    assert network["b2"].dropped("cut") == 2
    assert network["b2"].heal("cut") == 2
    assert heard(network, "b1", "b2") and heard(network, "b2", "b1")


def test_whoever_sends_into_a_cut_hears_silence_and_no_error(network):
    network["b2"].drop_from("cut", network["b1"])
    sent = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); print(s.sendto(b'x', ('%s', 9)))" % network["b2"].address
    assert run(sys.executable, "-c", sent, enter=network["b1"].enter).strip() == "1"
    network["b2"].heal("cut")


def test_two_cuts_on_one_host_are_apart(network):
    network["b1"].drop_from("one", network["b2"])
    network["b1"].drop_from("two", network["b3"])
    assert not heard(network, "b2", "b1") and not heard(network, "b3", "b1")
    network["b1"].heal("one")
    assert heard(network, "b2", "b1") and not heard(network, "b3", "b1")
    assert network["b1"].heal("two") >= 1
    assert heard(network, "b3", "b1")


def test_loss_loses_some(network):
    network["b1"].lose("loss", 50, network["b2"])
    got = heard(network, "b2", "b1", 20)
    network["b1"].heal("loss")
    assert 0 < got < 20


def test_a_slow_link_is_slow(network):
    network["b1"].slow("100kbit")
    size = 1000
    flood = f"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nfor _ in range(30): s.sendto(b'x' * {size}, ('{network['b2'].address}', 9))"
    run(sys.executable, "-c", flood, enter=network["b1"].enter)
    assert network["b1"].unslow() > 0
    assert network["b1"].unslow() == 0


def test_what_a_killed_run_leaves_is_taken_away(tmp_path):
    prefix = leftovers.prefix_of(SEED - 1)
    script = (
        "import sys, time, pathlib, leftovers\nfrom network import Network\nfrom disk import Disk\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\nleftovers.claim({prefix!r}, folder)\n"
        f"Network({prefix!r}, ['b1']).make()\nDisk(folder, 16)\nprint('made', flush=True)\ntime.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"made\n"
    inside = subprocess.Popen(["sleep", "60"], preexec_fn=entering(f"{prefix}b1"), cwd=tmp_path / "disk")
    with pytest.raises(SystemExit):
        leftovers.claim(prefix, tmp_path)
    owner.kill()
    owner.wait()
    gone = leftovers.clean(prefix)
    assert f"process {inside.pid}" in gone and str(tmp_path / "disk") in gone and f"namespace {prefix}b1" in gone
    assert inside.wait(5) == -9
    assert not namespaces(prefix) and str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not (leftovers.NOTES / prefix).exists()


def test_the_clock_of_a_claim_is_the_process_not_its_number():
    assert leftovers._started(os.getpid()) == leftovers._started(os.getpid())
    ended = subprocess.Popen(["true"])
    time.sleep(0.1)
    assert leftovers._started(ended.pid) is None, "a zombie has ended"
    ended.wait()


def test_a_second_run_waits_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "NOTES", tmp_path)
    turn = leftovers.take_turn()
    script = f"import pathlib, leftovers\nleftovers.NOTES = pathlib.Path({str(tmp_path)!r})\nleftovers.take_turn(lambda text: print(text, flush=True))\nprint('mine')"
    second = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert second.stdout.readline() == f"waiting for another run: process {os.getpid()}\n"
    turn.close()
    assert second.communicate(timeout=20)[0] == "mine\n"
