"""A network of our own: one bridge in a namespace, one namespace a node, and rules that cut, lose or slow what passes.

Rules drop on *input*, never on output: a drop on output tells the sender EPERM, where a broken network says nothing. The
harness itself moves into the bridge's namespace, so it reaches every node, whatever is cut between them, and nothing of all
this shows in the namespace it came from. Needs root, iproute2 and nftables.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.77.0"
OBSERVER = f"{SUBNET}.254"
"""The harness's own address, on the bridge. No rule ever names it."""
TABLE = "chaos"
CLONE_NEWNET = 0x40000000
_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_LIBC = ctypes.CDLL(None, use_errno=True)


def run(*argv: str, enter: Callable[[], None] | None = None, input: str | None = None, ok: bool = True) -> str:
    done = subprocess.run(
        [str(part) for part in argv], capture_output=True, text=True, input=input, env=os.environ | {"PATH": _SEARCH}, preexec_fn=enter, timeout=30
    )
    if ok and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def entering(namespace: str) -> Callable[[], None]:
    """What moves a process into `namespace`. (`ip netns exec` would also give it a copy of all mounts, which would keep a
    disk busy that is to be unmounted.)"""
    path = f"/run/netns/{namespace}".encode()

    def enter() -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            if _LIBC.setns(fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns {path.decode()}")
        finally:
            os.close(fd)

    return enter


@dataclass
class Host:
    """A node's namespace, with one interface `eth0` on the bridge."""

    name: str
    namespace: str
    address: str
    rules: dict[str, list[str]] = field(default_factory=dict)
    """tag → rules, as nftables writes them"""

    @property
    def enter(self) -> Callable[[], None]:
        return entering(self.namespace)

    def drop_from(self, tag: str, *others: Host) -> None:
        """Hears nothing of `others` any more. They hear this one."""
        self._set(tag, [f"ip saddr {other.address} counter drop" for other in others])

    def lose(self, tag: str, percent: int, *others: Host) -> None:
        """Of what comes from `others`, so much is lost."""
        self._set(tag, [f"ip saddr {other.address} numgen random mod 100 < {percent} counter drop" for other in others])

    def heal(self, tag: str) -> int:
        """Takes the rules of `tag` away; how many packets they dropped."""
        dropped = self.dropped(tag)
        self.rules.pop(tag, None)
        self._write()
        return dropped

    def dropped(self, tag: str) -> int:
        if tag not in self.rules:
            return 0
        listed = json.loads(run("nft", "-j", "list", "table", "ip", TABLE, enter=self.enter))
        total = 0
        for item in listed["nftables"]:
            rule = item.get("rule", {})
            if rule.get("comment") == tag:
                total += sum(part["counter"]["packets"] for part in rule["expr"] if isinstance(part.get("counter"), dict))
        return total

    def slow(self, rate: str) -> None:
        """Sends no faster than `rate` (as `tc` writes it: `1mbit`)."""
        run("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "10kb", "latency", "400ms")

    def unslow(self) -> int:
        """How often something had to wait for the rate."""
        listed = json.loads(run("tc", "-n", self.namespace, "-s", "-j", "qdisc", "show", "dev", "eth0"))
        waited = sum(row.get("overlimits", 0) for row in listed if row["kind"] == "tbf")
        run("tc", "-n", self.namespace, "qdisc", "del", "dev", "eth0", "root", ok=False)
        return waited

    def _set(self, tag: str, rules: list[str]) -> None:
        assert tag not in self.rules, f"{self.name} has rules of {tag} already"
        self.rules[tag] = rules
        self._write()

    def _write(self) -> None:
        """All rules anew, in one transaction. Counters begin again: faults that overlap on one host count only since then."""
        lines = [f'    {rule} comment "{tag}"' for tag, rules in self.rules.items() for rule in rules]
        chain = ["  chain input {", "    type filter hook input priority 0; policy accept;", *lines, "  }"]
        text = "\n".join([f"table ip {TABLE} {{}}", f"delete table ip {TABLE}", f"table ip {TABLE} {{", *chain, "}"])
        run("nft", "-f", "-", enter=self.enter, input=text)


class Network:
    """`prefix` begins every name; make it unique to the run, of at most 9 letters (an interface has at most 15)."""

    def __init__(self, prefix: str, names: list[str]) -> None:
        assert len(prefix) <= 9, prefix
        self.prefix = prefix
        self.switch = f"{prefix}sw"
        self.hosts = {name: Host(name, f"{prefix}{name}", f"{SUBNET}.{number}") for number, name in enumerate(names, start=1)}

    def make(self) -> Network:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "set", "lo", "up")
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.switch, "addr", "add", f"{OBSERVER}/24", "dev", "br0")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")
        for host in self.hosts.values():
            run("ip", "netns", "add", host.namespace)
            port = f"{self.prefix}{host.name}"
            run("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            run("ip", "-n", self.switch, "link", "set", port, "master", "br0")
            run("ip", "-n", self.switch, "link", "set", port, "up")
            run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
            run("ip", "-n", host.namespace, "link", "set", "lo", "up")
        return self

    def enter_switch(self) -> None:
        """This thread, and the threads and processes it starts from now on, live on the bridge."""
        entering(self.switch)()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]


def namespaces(prefix: str) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted(name for name in os.listdir("/run/netns") if name.startswith(prefix))
    return []


def processes_in(namespace: str) -> list[int]:
    """Every process whose network is `namespace`."""
    with suppress(OSError):
        wanted = os.stat(f"/run/netns/{namespace}").st_ino
        found = []
        for path in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if os.stat(path / "ns/net").st_ino == wanted:
                    found.append(int(path.name))
        return found
    return []


def remove_namespace(namespace: str) -> None:
    """Its interfaces go with it. Nothing may run in it any more."""
    run("ip", "netns", "del", namespace, ok=False)
