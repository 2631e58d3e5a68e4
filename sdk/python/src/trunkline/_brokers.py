"""Where the brokers are: at the addresses the user gave, and where brokers say that they are. A subscription holds one stream to
each broker, however many addresses lead to it. The twin of sdk/rust/src/brokers.rs; no IO."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trunkline.v1 import trunkline_pb2 as wire

BROKERS_MAX = 64
"""Brokers that are kept in mind; a cluster has fewer."""


@dataclass(frozen=True, slots=True, order=True)
class Given:
    """Whoever answers at the n-th address that the user gave."""

    number: int


@dataclass(frozen=True, slots=True, order=True)
class Told:
    """This broker, of which others told."""

    broker: int


Target = Given | Told


class Claim(enum.Enum):
    """What the one who greeted is to a session."""

    HELD = "held"
    """The session's broker: join."""
    TWICE = "twice"
    """One to which another session holds a stream: this one is not needed."""
    OTHER = "other"
    """Another broker than the one that is looked for."""


def authority(address: str) -> str:
    """The host and port of an address."""
    return address.rpartition("://")[2].split("/")[0]


@dataclass(slots=True)
class _GivenAddress:
    address: str
    broker: int | None = None
    """Who answered there last."""


class Brokers:
    """The brokers that a subscription knows. `changed` is called when there may be some without a session."""

    def __init__(self, addresses: list[str], changed: Callable[[], None] = lambda: None) -> None:
        self._given = [_GivenAddress(address) for address in addresses]
        self._changed = changed
        # which brokers are where, by who says so: those with a stream, or the last one that had one
        self._lists: dict[int, dict[int, str]] = {}
        # streams that have been greeted
        self._held: dict[int, Target] = {}
        self._sessions: set[Target] = {Given(number) for number in range(len(addresses))}

    def given(self) -> list[Target]:
        """A session is started for each address that was given."""
        return [Given(number) for number in range(len(self._given))]

    def missing(self) -> list[Target]:
        """Brokers without a session, for each of which one is to be started."""
        found: list[Target] = []
        for broker in sorted({broker for told in self._lists.values() for broker in told}):
            address = self._told(broker)
            if address is not None and not self._is_covered(broker, address):
                self._sessions.add(Told(broker))
                found.append(Told(broker))
        return found

    def address(self, target: Target, attempts: int) -> str | None:
        """Where to look for a session's broker after so many attempts in vain. `None`: it is no broker of the cluster any more."""
        addresses = list(self._addresses(target))
        return addresses[attempts % len(addresses)] if addresses else None

    def greeted(self, target: Target, address: str, greeting: wire.Brokers) -> Claim:
        """A broker has answered a session at this address."""
        broker = greeting.broker
        for given in self._given:
            if given.address == address:
                given.broker = broker
        self.learn(greeting)
        holder = self._held.get(broker)
        if isinstance(target, Told) and target.broker != broker:
            return Claim.OTHER
        if holder is not None and holder != target:
            return Claim.TWICE
        self._held[broker] = target
        return Claim.HELD

    def learn(self, told: wire.Brokers) -> None:
        """A broker tells where brokers are."""
        known = {broker.id: broker.grpc for broker in [each for each in told.brokers if each.grpc][:BROKERS_MAX]}
        full = len(self._lists) >= BROKERS_MAX and told.broker not in self._lists
        if known and not full:
            self._lists[told.broker] = known
            # what somebody said whose stream has ended counts while nobody else says anything
            self._lists = {
                teller: said for teller, said in self._lists.items() if teller == told.broker or teller in self._held
            }
        self._changed()

    def released(self, target: Target) -> None:
        """A session's stream has ended."""
        broker = next((broker for broker, holder in self._held.items() if holder == target), None)
        if broker is None:
            return
        del self._held[broker]
        if any(teller in self._held for teller in self._lists):
            self._lists.pop(broker, None)

    def ended(self, target: Target) -> None:
        """A session is over."""
        self.released(target)
        self._sessions.discard(target)
        self._changed()

    def _told(self, broker: int) -> str | None:
        own = self._lists.get(broker, {}).get(broker)
        return own or next((said[broker] for _, said in sorted(self._lists.items()) if broker in said), None)

    def _is_covered(self, broker: int, address: str) -> bool:
        """Whether a session talks to that broker, or may turn out to."""
        if broker in self._held:
            return True
        for target in self._sessions:
            if isinstance(target, Told):
                if target.broker == broker:
                    return True
                continue
            given = self._given[target.number]
            if given.broker == broker or (given.broker is None and authority(given.address) == authority(address)):
                return True
        return False

    def _addresses(self, target: Target) -> Iterator[str]:
        seen: set[str] = set()
        for address in self._candidates(target):
            if authority(address) not in seen:
                seen.add(authority(address))
                yield address

    def _candidates(self, target: Target) -> Iterator[str]:
        if isinstance(target, Given):
            broker = self._given[target.number].broker
            yield self._given[target.number].address
        else:
            broker = target.broker
        if broker is None:
            return
        if (told := self._told(broker)) is not None:
            yield told
        yield from (given.address for given in self._given if given.broker == broker)
