from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MessageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MESSAGE_KIND_UNSPECIFIED: _ClassVar[MessageKind]
    MESSAGE_KIND_TEXT: _ClassVar[MessageKind]
    MESSAGE_KIND_BINARY: _ClassVar[MessageKind]

class CloseCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOSE_CAUSE_UNSPECIFIED: _ClassVar[CloseCause]
    CLOSE_CAUSE_CLIENT: _ClassVar[CloseCause]
    CLOSE_CAUSE_CLIENT_VANISHED: _ClassVar[CloseCause]
    CLOSE_CAUSE_HANDLER: _ClassVar[CloseCause]
    CLOSE_CAUSE_IDLE: _ClassVar[CloseCause]
    CLOSE_CAUSE_PING_TIMEOUT: _ClassVar[CloseCause]
    CLOSE_CAUSE_MAX_LIFETIME: _ClassVar[CloseCause]
    CLOSE_CAUSE_SLOW_CONSUMER: _ClassVar[CloseCause]
    CLOSE_CAUSE_PROTOCOL_ERROR: _ClassVar[CloseCause]
    CLOSE_CAUSE_TOO_LARGE: _ClassVar[CloseCause]
    CLOSE_CAUSE_RATE_LIMITED: _ClassVar[CloseCause]
    CLOSE_CAUSE_REJECTED: _ClassVar[CloseCause]
    CLOSE_CAUSE_EDGE_DRAINED: _ClassVar[CloseCause]
    CLOSE_CAUSE_EDGE_LOST: _ClassVar[CloseCause]
    CLOSE_CAUSE_REGISTRATION_TIMEOUT: _ClassVar[CloseCause]
    CLOSE_CAUSE_TOKEN_EXPIRED: _ClassVar[CloseCause]
MESSAGE_KIND_UNSPECIFIED: MessageKind
MESSAGE_KIND_TEXT: MessageKind
MESSAGE_KIND_BINARY: MessageKind
CLOSE_CAUSE_UNSPECIFIED: CloseCause
CLOSE_CAUSE_CLIENT: CloseCause
CLOSE_CAUSE_CLIENT_VANISHED: CloseCause
CLOSE_CAUSE_HANDLER: CloseCause
CLOSE_CAUSE_IDLE: CloseCause
CLOSE_CAUSE_PING_TIMEOUT: CloseCause
CLOSE_CAUSE_MAX_LIFETIME: CloseCause
CLOSE_CAUSE_SLOW_CONSUMER: CloseCause
CLOSE_CAUSE_PROTOCOL_ERROR: CloseCause
CLOSE_CAUSE_TOO_LARGE: CloseCause
CLOSE_CAUSE_RATE_LIMITED: CloseCause
CLOSE_CAUSE_REJECTED: CloseCause
CLOSE_CAUSE_EDGE_DRAINED: CloseCause
CLOSE_CAUSE_EDGE_LOST: CloseCause
CLOSE_CAUSE_REGISTRATION_TIMEOUT: CloseCause
CLOSE_CAUSE_TOKEN_EXPIRED: CloseCause

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class ConnectionOpened(_message.Message):
    __slots__ = ("edge", "incarnation", "peer", "path", "query", "headers", "subprotocols", "principal", "channels", "handler_group", "subprotocol", "parameters", "attributes")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EDGE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    SUBPROTOCOLS_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HANDLER_GROUP_FIELD_NUMBER: _ClassVar[int]
    SUBPROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    edge: str
    incarnation: int
    peer: str
    path: str
    query: str
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    subprotocols: _containers.RepeatedScalarFieldContainer[str]
    principal: str
    channels: _containers.RepeatedScalarFieldContainer[str]
    handler_group: str
    subprotocol: str
    parameters: _containers.RepeatedCompositeFieldContainer[Header]
    attributes: _containers.ScalarMap[str, str]
    def __init__(self, edge: _Optional[str] = ..., incarnation: _Optional[int] = ..., peer: _Optional[str] = ..., path: _Optional[str] = ..., query: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., subprotocols: _Optional[_Iterable[str]] = ..., principal: _Optional[str] = ..., channels: _Optional[_Iterable[str]] = ..., handler_group: _Optional[str] = ..., subprotocol: _Optional[str] = ..., parameters: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., attributes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class MessageReceived(_message.Message):
    __slots__ = ("kind", "payload")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    kind: MessageKind
    payload: bytes
    def __init__(self, kind: _Optional[_Union[MessageKind, str]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class ConnectionClosed(_message.Message):
    __slots__ = ("code", "reason", "cause")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    cause: CloseCause
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., cause: _Optional[_Union[CloseCause, str]] = ...) -> None: ...

class ConnectionAccepted(_message.Message):
    __slots__ = ("subprotocol", "headers", "attributes", "channels")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SUBPROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    subprotocol: str
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    attributes: _containers.ScalarMap[str, str]
    channels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, subprotocol: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., attributes: _Optional[_Mapping[str, str]] = ..., channels: _Optional[_Iterable[str]] = ...) -> None: ...

class ConnectionRejected(_message.Message):
    __slots__ = ("status", "body")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    status: int
    body: bytes
    def __init__(self, status: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class Pushed(_message.Message):
    __slots__ = ("kind", "payload")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    kind: MessageKind
    payload: bytes
    def __init__(self, kind: _Optional[_Union[MessageKind, str]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Published(_message.Message):
    __slots__ = ("channel", "api", "kind", "payload")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    EXCEPT_FIELD_NUMBER: _ClassVar[int]
    channel: str
    api: str
    kind: MessageKind
    payload: bytes
    def __init__(self, channel: _Optional[str] = ..., api: _Optional[str] = ..., kind: _Optional[_Union[MessageKind, str]] = ..., payload: _Optional[bytes] = ..., **kwargs) -> None: ...

class CloseRequested(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ChannelJoined(_message.Message):
    __slots__ = ("channel", "edge")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    channel: str
    edge: str
    def __init__(self, channel: _Optional[str] = ..., edge: _Optional[str] = ...) -> None: ...

class ChannelLeft(_message.Message):
    __slots__ = ("channel",)
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    channel: str
    def __init__(self, channel: _Optional[str] = ...) -> None: ...

class AttributesSet(_message.Message):
    __slots__ = ("set", "removed")
    class SetEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SET_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    set: _containers.ScalarMap[str, str]
    removed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, set: _Optional[_Mapping[str, str]] = ..., removed: _Optional[_Iterable[str]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("offset", "acknowledged", "refused", "parked")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    PARKED_FIELD_NUMBER: _ClassVar[int]
    offset: int
    acknowledged: Acknowledged
    refused: Refused
    parked: Parked
    def __init__(self, offset: _Optional[int] = ..., acknowledged: _Optional[_Union[Acknowledged, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., parked: _Optional[_Union[Parked, _Mapping]] = ...) -> None: ...

class Acknowledged(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Refused(_message.Message):
    __slots__ = ("delay_ms", "released")
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    delay_ms: int
    released: bool
    def __init__(self, delay_ms: _Optional[int] = ..., released: bool = ...) -> None: ...

class Parked(_message.Message):
    __slots__ = ("reason", "record", "attempt")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    record: bytes
    attempt: int
    def __init__(self, reason: _Optional[str] = ..., record: _Optional[bytes] = ..., attempt: _Optional[int] = ...) -> None: ...

class Hole(_message.Message):
    __slots__ = ("offset", "attempt", "not_before")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    attempt: int
    not_before: int
    def __init__(self, offset: _Optional[int] = ..., attempt: _Optional[int] = ..., not_before: _Optional[int] = ...) -> None: ...

class HandlerCommitted(_message.Message):
    __slots__ = ("group", "member", "epoch", "base", "through", "outcomes", "holes", "commands")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    HOLES_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    group: str
    member: str
    epoch: int
    base: int
    through: int
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    holes: _containers.RepeatedCompositeFieldContainer[Hole]
    commands: int
    def __init__(self, group: _Optional[str] = ..., member: _Optional[str] = ..., epoch: _Optional[int] = ..., base: _Optional[int] = ..., through: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ..., holes: _Optional[_Iterable[_Union[Hole, _Mapping]]] = ..., commands: _Optional[int] = ...) -> None: ...

class HandlerAssigned(_message.Message):
    __slots__ = ("group", "member", "epoch", "apis", "kinds", "start", "base", "through", "holes")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    APIS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    HOLES_FIELD_NUMBER: _ClassVar[int]
    group: str
    member: str
    epoch: int
    apis: _containers.RepeatedScalarFieldContainer[str]
    kinds: _containers.RepeatedScalarFieldContainer[int]
    start: Start
    base: int
    through: int
    holes: _containers.RepeatedCompositeFieldContainer[Hole]
    def __init__(self, group: _Optional[str] = ..., member: _Optional[str] = ..., epoch: _Optional[int] = ..., apis: _Optional[_Iterable[str]] = ..., kinds: _Optional[_Iterable[int]] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., base: _Optional[int] = ..., through: _Optional[int] = ..., holes: _Optional[_Iterable[_Union[Hole, _Mapping]]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("earliest", "latest", "offset", "time")
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    earliest: bool
    latest: bool
    offset: int
    time: int
    def __init__(self, earliest: bool = ..., latest: bool = ..., offset: _Optional[int] = ..., time: _Optional[int] = ...) -> None: ...

class GroupReset(_message.Message):
    __slots__ = ("group", "start", "through")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    group: str
    start: Start
    through: int
    def __init__(self, group: _Optional[str] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., through: _Optional[int] = ...) -> None: ...

class GroupDropped(_message.Message):
    __slots__ = ("group", "epoch")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    group: str
    epoch: int
    def __init__(self, group: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class ParkedReleased(_message.Message):
    __slots__ = ("group", "offsets", "discard")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    group: str
    offsets: _containers.RepeatedScalarFieldContainer[int]
    discard: bool
    def __init__(self, group: _Optional[str] = ..., offsets: _Optional[_Iterable[int]] = ..., discard: bool = ...) -> None: ...

class EdgeAttached(_message.Message):
    __slots__ = ("edge", "incarnation", "nonce")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    edge: str
    incarnation: int
    nonce: bytes
    def __init__(self, edge: _Optional[str] = ..., incarnation: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class EdgeLost(_message.Message):
    __slots__ = ("edge", "incarnation")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    edge: str
    incarnation: int
    def __init__(self, edge: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class Forwarded(_message.Message):
    __slots__ = ("target", "through")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    target: int
    through: int
    def __init__(self, target: _Optional[int] = ..., through: _Optional[int] = ...) -> None: ...

class Trimmed(_message.Message):
    __slots__ = ("through", "skipping")
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    SKIPPING_FIELD_NUMBER: _ClassVar[int]
    through: int
    skipping: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, through: _Optional[int] = ..., skipping: _Optional[_Iterable[str]] = ...) -> None: ...

class ApplyVersion(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class EdgeSource(_message.Message):
    __slots__ = ("edge", "incarnation", "sequence")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    edge: str
    incarnation: int
    sequence: int
    def __init__(self, edge: _Optional[str] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class SubmitSource(_message.Message):
    __slots__ = ("principal", "key", "first_command")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    FIRST_COMMAND_FIELD_NUMBER: _ClassVar[int]
    principal: str
    key: str
    first_command: int
    def __init__(self, principal: _Optional[str] = ..., key: _Optional[str] = ..., first_command: _Optional[int] = ...) -> None: ...

class ForwardSource(_message.Message):
    __slots__ = ("partition", "offset", "predecessor")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PREDECESSOR_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offset: int
    predecessor: int
    def __init__(self, partition: _Optional[int] = ..., offset: _Optional[int] = ..., predecessor: _Optional[int] = ...) -> None: ...
