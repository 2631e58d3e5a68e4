from trunkline.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODE_UNSPECIFIED: _ClassVar[Code]
    CODE_APPLIED: _ClassVar[Code]
    CODE_GONE: _ClassVar[Code]
    CODE_TOO_LARGE: _ClassVar[Code]
    CODE_THROTTLED: _ClassVar[Code]
    CODE_NOT_AUTHORIZED: _ClassVar[Code]
    CODE_UNKNOWN: _ClassVar[Code]
    CODE_STALE_EPOCH: _ClassVar[Code]
    CODE_NOT_OPEN: _ClassVar[Code]
    CODE_INVALID: _ClassVar[Code]
    CODE_KEY_REUSED: _ClassVar[Code]
    CODE_NO_LEADER: _ClassVar[Code]
    CODE_FORWARDED: _ClassVar[Code]
    CODE_REFUSED: _ClassVar[Code]

class ConnectionPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONNECTION_PHASE_UNSPECIFIED: _ClassVar[ConnectionPhase]
    CONNECTION_PHASE_PENDING: _ClassVar[ConnectionPhase]
    CONNECTION_PHASE_OPEN: _ClassVar[ConnectionPhase]
    CONNECTION_PHASE_CLOSING: _ClassVar[ConnectionPhase]
CODE_UNSPECIFIED: Code
CODE_APPLIED: Code
CODE_GONE: Code
CODE_TOO_LARGE: Code
CODE_THROTTLED: Code
CODE_NOT_AUTHORIZED: Code
CODE_UNKNOWN: Code
CODE_STALE_EPOCH: Code
CODE_NOT_OPEN: Code
CODE_INVALID: Code
CODE_KEY_REUSED: Code
CODE_NO_LEADER: Code
CODE_FORWARDED: Code
CODE_REFUSED: Code
CONNECTION_PHASE_UNSPECIFIED: ConnectionPhase
CONNECTION_PHASE_PENDING: ConnectionPhase
CONNECTION_PHASE_OPEN: ConnectionPhase
CONNECTION_PHASE_CLOSING: ConnectionPhase

class AddMemberRequest(_message.Message):
    __slots__ = ("id", "link", "patience_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: int
    link: str
    patience_seconds: int
    def __init__(self, id: _Optional[int] = ..., link: _Optional[str] = ..., patience_seconds: _Optional[int] = ...) -> None: ...

class AddMemberResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveMemberRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class RemoveMemberResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TransferLeaderRequest(_message.Message):
    __slots__ = ("partition", "to")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    partition: int
    to: int
    def __init__(self, partition: _Optional[int] = ..., to: _Optional[int] = ...) -> None: ...

class TransferLeaderResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("join", "credit", "commit", "extend")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    EXTEND_FIELD_NUMBER: _ClassVar[int]
    join: Join
    credit: Credit
    commit: Commit
    extend: Extend
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., extend: _Optional[_Union[Extend, _Mapping]] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("group", "member", "apis", "kinds", "start", "credit", "max_attempts")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    APIS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    group: str
    member: str
    apis: _containers.RepeatedScalarFieldContainer[str]
    kinds: _containers.RepeatedScalarFieldContainer[int]
    start: _records_pb2.Start
    credit: int
    max_attempts: int
    def __init__(self, group: _Optional[str] = ..., member: _Optional[str] = ..., apis: _Optional[_Iterable[str]] = ..., kinds: _Optional[_Iterable[int]] = ..., start: _Optional[_Union[_records_pb2.Start, _Mapping]] = ..., credit: _Optional[int] = ..., max_attempts: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("amount",)
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    amount: int
    def __init__(self, amount: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("id", "partition", "epoch", "outcomes", "commands")
    ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    id: int
    partition: int
    epoch: int
    outcomes: _containers.RepeatedCompositeFieldContainer[_records_pb2.Outcome]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, id: _Optional[int] = ..., partition: _Optional[int] = ..., epoch: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[_records_pb2.Outcome, _Mapping]]] = ..., commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Extend(_message.Message):
    __slots__ = ("partition", "epoch", "offsets")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    epoch: int
    offsets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, partition: _Optional[int] = ..., epoch: _Optional[int] = ..., offsets: _Optional[_Iterable[int]] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("joined", "assigned", "revoked", "events", "committed", "brokers")
    JOINED_FIELD_NUMBER: _ClassVar[int]
    ASSIGNED_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    joined: Joined
    assigned: Assigned
    revoked: Revoked
    events: Events
    committed: CommitResult
    brokers: Brokers
    def __init__(self, joined: _Optional[_Union[Joined, _Mapping]] = ..., assigned: _Optional[_Union[Assigned, _Mapping]] = ..., revoked: _Optional[_Union[Revoked, _Mapping]] = ..., events: _Optional[_Union[Events, _Mapping]] = ..., committed: _Optional[_Union[CommitResult, _Mapping]] = ..., brokers: _Optional[_Union[Brokers, _Mapping]] = ...) -> None: ...

class Brokers(_message.Message):
    __slots__ = ("broker", "brokers")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    broker: int
    brokers: _containers.RepeatedCompositeFieldContainer[BrokerAddress]
    def __init__(self, broker: _Optional[int] = ..., brokers: _Optional[_Iterable[_Union[BrokerAddress, _Mapping]]] = ...) -> None: ...

class BrokerAddress(_message.Message):
    __slots__ = ("id", "grpc")
    ID_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    id: int
    grpc: str
    def __init__(self, id: _Optional[int] = ..., grpc: _Optional[str] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("partitions", "broker")
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    BROKER_FIELD_NUMBER: _ClassVar[int]
    partitions: int
    broker: int
    def __init__(self, partitions: _Optional[int] = ..., broker: _Optional[int] = ...) -> None: ...

class Assigned(_message.Message):
    __slots__ = ("partition", "epoch", "trimmed")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRIMMED_FIELD_NUMBER: _ClassVar[int]
    partition: int
    epoch: int
    trimmed: TrimmedRange
    def __init__(self, partition: _Optional[int] = ..., epoch: _Optional[int] = ..., trimmed: _Optional[_Union[TrimmedRange, _Mapping]] = ...) -> None: ...

class TrimmedRange(_message.Message):
    __slots__ = ("through",)
    FROM_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    through: int
    def __init__(self, through: _Optional[int] = ..., **kwargs) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("partition", "epoch")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    partition: int
    epoch: int
    def __init__(self, partition: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("partition", "epoch", "events")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    epoch: int
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, partition: _Optional[int] = ..., epoch: _Optional[int] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("offset", "time", "attempt", "connection", "api", "opened", "message", "closed")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    offset: int
    time: int
    attempt: int
    connection: bytes
    api: str
    opened: _records_pb2.ConnectionOpened
    message: _records_pb2.MessageReceived
    closed: _records_pb2.ConnectionClosed
    def __init__(self, offset: _Optional[int] = ..., time: _Optional[int] = ..., attempt: _Optional[int] = ..., connection: _Optional[bytes] = ..., api: _Optional[str] = ..., opened: _Optional[_Union[_records_pb2.ConnectionOpened, _Mapping]] = ..., message: _Optional[_Union[_records_pb2.MessageReceived, _Mapping]] = ..., closed: _Optional[_Union[_records_pb2.ConnectionClosed, _Mapping]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("connection", "accept", "reject", "push", "publish", "close", "join", "leave", "attributes", "unlogged")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    UNLOGGED_FIELD_NUMBER: _ClassVar[int]
    connection: bytes
    accept: _records_pb2.ConnectionAccepted
    reject: _records_pb2.ConnectionRejected
    push: _records_pb2.Pushed
    publish: _records_pb2.Published
    close: _records_pb2.CloseRequested
    join: _records_pb2.ChannelJoined
    leave: _records_pb2.ChannelLeft
    attributes: _records_pb2.AttributesSet
    unlogged: bool
    def __init__(self, connection: _Optional[bytes] = ..., accept: _Optional[_Union[_records_pb2.ConnectionAccepted, _Mapping]] = ..., reject: _Optional[_Union[_records_pb2.ConnectionRejected, _Mapping]] = ..., push: _Optional[_Union[_records_pb2.Pushed, _Mapping]] = ..., publish: _Optional[_Union[_records_pb2.Published, _Mapping]] = ..., close: _Optional[_Union[_records_pb2.CloseRequested, _Mapping]] = ..., join: _Optional[_Union[_records_pb2.ChannelJoined, _Mapping]] = ..., leave: _Optional[_Union[_records_pb2.ChannelLeft, _Mapping]] = ..., attributes: _Optional[_Union[_records_pb2.AttributesSet, _Mapping]] = ..., unlogged: bool = ...) -> None: ...

class CommitResult(_message.Message):
    __slots__ = ("id", "partition", "status", "offset", "commands")
    ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    id: int
    partition: int
    status: Status
    offset: int
    commands: _containers.RepeatedCompositeFieldContainer[CommandResult]
    def __init__(self, id: _Optional[int] = ..., partition: _Optional[int] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., offset: _Optional[int] = ..., commands: _Optional[_Iterable[_Union[CommandResult, _Mapping]]] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: Code
    message: str
    def __init__(self, code: _Optional[_Union[Code, str]] = ..., message: _Optional[str] = ...) -> None: ...

class CommandResult(_message.Message):
    __slots__ = ("status", "partition", "offset")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    status: Status
    partition: int
    offset: int
    def __init__(self, status: _Optional[_Union[Status, _Mapping]] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("commands", "idempotency_key")
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    idempotency_key: str
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[CommandResult]
    def __init__(self, results: _Optional[_Iterable[_Union[CommandResult, _Mapping]]] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("partition", "limit", "follow", "raw", "api", "connection", "until", "local")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    partition: int
    limit: int
    follow: bool
    raw: bool
    api: str
    connection: bytes
    until: int
    local: bool
    def __init__(self, partition: _Optional[int] = ..., limit: _Optional[int] = ..., follow: bool = ..., raw: bool = ..., api: _Optional[str] = ..., connection: _Optional[bytes] = ..., until: _Optional[int] = ..., local: bool = ..., **kwargs) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("records", "end")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[LoggedRecord]
    end: int
    def __init__(self, records: _Optional[_Iterable[_Union[LoggedRecord, _Mapping]]] = ..., end: _Optional[int] = ...) -> None: ...

class LoggedRecord(_message.Message):
    __slots__ = ("offset", "time", "kind", "connection", "api", "body", "refused", "forwarded", "source")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FORWARDED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    time: int
    kind: int
    connection: bytes
    api: str
    body: bytes
    refused: str
    forwarded: bool
    source: str
    def __init__(self, offset: _Optional[int] = ..., time: _Optional[int] = ..., kind: _Optional[int] = ..., connection: _Optional[bytes] = ..., api: _Optional[str] = ..., body: _Optional[bytes] = ..., refused: _Optional[str] = ..., forwarded: bool = ..., source: _Optional[str] = ...) -> None: ...

class Connection(_message.Message):
    __slots__ = ("connection", "api", "edge", "opened_at", "subprotocol", "attributes", "channels", "opened_offset", "phase", "peer", "principal", "last_active_at")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_FIELD_NUMBER: _ClassVar[int]
    SUBPROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    OPENED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    LAST_ACTIVE_AT_FIELD_NUMBER: _ClassVar[int]
    connection: bytes
    api: str
    edge: str
    opened_at: int
    subprotocol: str
    attributes: _containers.ScalarMap[str, str]
    channels: _containers.RepeatedScalarFieldContainer[str]
    opened_offset: int
    phase: ConnectionPhase
    peer: str
    principal: str
    last_active_at: int
    def __init__(self, connection: _Optional[bytes] = ..., api: _Optional[str] = ..., edge: _Optional[str] = ..., opened_at: _Optional[int] = ..., subprotocol: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., channels: _Optional[_Iterable[str]] = ..., opened_offset: _Optional[int] = ..., phase: _Optional[_Union[ConnectionPhase, str]] = ..., peer: _Optional[str] = ..., principal: _Optional[str] = ..., last_active_at: _Optional[int] = ...) -> None: ...

class GetConnectionRequest(_message.Message):
    __slots__ = ("connection",)
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    connection: bytes
    def __init__(self, connection: _Optional[bytes] = ...) -> None: ...

class GetOpeningRequest(_message.Message):
    __slots__ = ("connection", "offset")
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    connection: bytes
    offset: int
    def __init__(self, connection: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("offset", "time", "api", "opened", "trimmed")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    TRIMMED_FIELD_NUMBER: _ClassVar[int]
    offset: int
    time: int
    api: str
    opened: _records_pb2.ConnectionOpened
    trimmed: bool
    def __init__(self, offset: _Optional[int] = ..., time: _Optional[int] = ..., api: _Optional[str] = ..., opened: _Optional[_Union[_records_pb2.ConnectionOpened, _Mapping]] = ..., trimmed: bool = ...) -> None: ...

class ListConnectionsRequest(_message.Message):
    __slots__ = ("api", "channel", "limit", "after")
    API_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    api: str
    channel: str
    limit: int
    after: bytes
    def __init__(self, api: _Optional[str] = ..., channel: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[bytes] = ...) -> None: ...

class ListConnectionsResponse(_message.Message):
    __slots__ = ("connections", "next")
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    connections: _containers.RepeatedCompositeFieldContainer[Connection]
    next: bytes
    def __init__(self, connections: _Optional[_Iterable[_Union[Connection, _Mapping]]] = ..., next: _Optional[bytes] = ...) -> None: ...

class StateAtRequest(_message.Message):
    __slots__ = ("partition", "offset", "time")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offset: int
    time: int
    def __init__(self, partition: _Optional[int] = ..., offset: _Optional[int] = ..., time: _Optional[int] = ...) -> None: ...

class StateAtResponse(_message.Message):
    __slots__ = ("connections", "channels", "through", "digest")
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    connections: _containers.RepeatedCompositeFieldContainer[Connection]
    channels: _containers.RepeatedCompositeFieldContainer[Channel]
    through: int
    digest: int
    def __init__(self, connections: _Optional[_Iterable[_Union[Connection, _Mapping]]] = ..., channels: _Optional[_Iterable[_Union[Channel, _Mapping]]] = ..., through: _Optional[int] = ..., digest: _Optional[int] = ...) -> None: ...

class Channel(_message.Message):
    __slots__ = ("channel", "connections")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    channel: str
    connections: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, channel: _Optional[str] = ..., connections: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("cluster", "version", "partition_count", "brokers", "partitions", "edges")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTITION_COUNT_FIELD_NUMBER: _ClassVar[int]
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    version: str
    partition_count: int
    brokers: _containers.RepeatedCompositeFieldContainer[Broker]
    partitions: _containers.RepeatedCompositeFieldContainer[Partition]
    edges: _containers.RepeatedCompositeFieldContainer[Edge]
    def __init__(self, cluster: _Optional[str] = ..., version: _Optional[str] = ..., partition_count: _Optional[int] = ..., brokers: _Optional[_Iterable[_Union[Broker, _Mapping]]] = ..., partitions: _Optional[_Iterable[_Union[Partition, _Mapping]]] = ..., edges: _Optional[_Iterable[_Union[Edge, _Mapping]]] = ...) -> None: ...

class Broker(_message.Message):
    __slots__ = ("id", "grpc", "link", "healthy", "reachable", "http", "answered", "version", "problem", "disk_free_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    grpc: str
    link: str
    healthy: bool
    reachable: bool
    http: str
    answered: bool
    version: str
    problem: str
    disk_free_bytes: int
    def __init__(self, id: _Optional[int] = ..., grpc: _Optional[str] = ..., link: _Optional[str] = ..., healthy: bool = ..., reachable: bool = ..., http: _Optional[str] = ..., answered: bool = ..., version: _Optional[str] = ..., problem: _Optional[str] = ..., disk_free_bytes: _Optional[int] = ...) -> None: ...

class Partition(_message.Message):
    __slots__ = ("partition", "leader", "voters", "term", "applied", "earliest", "snapshot", "connections", "channels", "digest", "learners", "replicas")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    VOTERS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LEARNERS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    partition: int
    leader: int
    voters: _containers.RepeatedScalarFieldContainer[int]
    term: int
    applied: int
    earliest: int
    snapshot: int
    connections: int
    channels: int
    digest: int
    learners: _containers.RepeatedScalarFieldContainer[int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    def __init__(self, partition: _Optional[int] = ..., leader: _Optional[int] = ..., voters: _Optional[_Iterable[int]] = ..., term: _Optional[int] = ..., applied: _Optional[int] = ..., earliest: _Optional[int] = ..., snapshot: _Optional[int] = ..., connections: _Optional[int] = ..., channels: _Optional[int] = ..., digest: _Optional[int] = ..., learners: _Optional[_Iterable[int]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("broker", "voter", "reachable", "applied", "lag", "snapshot", "digest", "problem")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    VOTER_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    broker: int
    voter: bool
    reachable: bool
    applied: int
    lag: int
    snapshot: int
    digest: int
    problem: str
    def __init__(self, broker: _Optional[int] = ..., voter: bool = ..., reachable: bool = ..., applied: _Optional[int] = ..., lag: _Optional[int] = ..., snapshot: _Optional[int] = ..., digest: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class Edge(_message.Message):
    __slots__ = ("edge", "incarnation", "attached", "connections", "lag")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    edge: str
    incarnation: int
    attached: bool
    connections: int
    lag: int
    def __init__(self, edge: _Optional[str] = ..., incarnation: _Optional[int] = ..., attached: bool = ..., connections: _Optional[int] = ..., lag: _Optional[int] = ...) -> None: ...

class GroupsRequest(_message.Message):
    __slots__ = ("group",)
    GROUP_FIELD_NUMBER: _ClassVar[int]
    group: str
    def __init__(self, group: _Optional[str] = ...) -> None: ...

class GroupsResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    def __init__(self, groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("group", "partition", "member", "epoch", "through", "holes", "lag", "parked", "members")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    HOLES_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    group: str
    partition: int
    member: str
    epoch: int
    through: int
    holes: int
    lag: int
    parked: int
    members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, group: _Optional[str] = ..., partition: _Optional[int] = ..., member: _Optional[str] = ..., epoch: _Optional[int] = ..., through: _Optional[int] = ..., holes: _Optional[int] = ..., lag: _Optional[int] = ..., parked: _Optional[int] = ..., members: _Optional[_Iterable[str]] = ...) -> None: ...

class ResetGroupRequest(_message.Message):
    __slots__ = ("group", "to")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    group: str
    to: _records_pb2.Start
    def __init__(self, group: _Optional[str] = ..., to: _Optional[_Union[_records_pb2.Start, _Mapping]] = ...) -> None: ...

class ResetGroupResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    def __init__(self, groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ...) -> None: ...

class ParkedRequest(_message.Message):
    __slots__ = ("group", "partition", "after", "limit")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    group: str
    partition: int
    after: int
    limit: int
    def __init__(self, group: _Optional[str] = ..., partition: _Optional[int] = ..., after: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ParkedResponse(_message.Message):
    __slots__ = ("events", "more")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[ParkedEvent]
    more: bool
    def __init__(self, events: _Optional[_Iterable[_Union[ParkedEvent, _Mapping]]] = ..., more: bool = ...) -> None: ...

class ParkedEvent(_message.Message):
    __slots__ = ("record", "attempts", "reason")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    record: LoggedRecord
    attempts: int
    reason: str
    def __init__(self, record: _Optional[_Union[LoggedRecord, _Mapping]] = ..., attempts: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseParkedRequest(_message.Message):
    __slots__ = ("group", "partition", "offsets", "discard")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    group: str
    partition: int
    offsets: _containers.RepeatedScalarFieldContainer[int]
    discard: bool
    def __init__(self, group: _Optional[str] = ..., partition: _Optional[int] = ..., offsets: _Optional[_Iterable[int]] = ..., discard: bool = ...) -> None: ...

class ReleaseParkedResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
