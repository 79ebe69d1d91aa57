from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeedbackRequest(_message.Message):
    __slots__ = ("model_name", "items")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    items: _containers.RepeatedCompositeFieldContainer[FeedbackItem]
    def __init__(self, model_name: _Optional[str] = ..., items: _Optional[_Iterable[_Union[FeedbackItem, _Mapping]]] = ...) -> None: ...

class FeedbackItem(_message.Message):
    __slots__ = ("request_id", "correlation_id", "integer", "number", "truth", "text", "json", "time_us", "source", "weight", "label_version", "idempotency_key")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LABEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    correlation_id: str
    integer: int
    number: float
    truth: bool
    text: str
    json: str
    time_us: int
    source: str
    weight: float
    label_version: int
    idempotency_key: str
    def __init__(self, request_id: _Optional[str] = ..., correlation_id: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., truth: _Optional[bool] = ..., text: _Optional[str] = ..., json: _Optional[str] = ..., time_us: _Optional[int] = ..., source: _Optional[str] = ..., weight: _Optional[float] = ..., label_version: _Optional[int] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[FeedbackResult]
    def __init__(self, results: _Optional[_Iterable[_Union[FeedbackResult, _Mapping]]] = ...) -> None: ...

class FeedbackResult(_message.Message):
    __slots__ = ("status", "reason")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[FeedbackResult.Status]
        ACCEPTED: _ClassVar[FeedbackResult.Status]
        DUPLICATE: _ClassVar[FeedbackResult.Status]
        INVALID: _ClassVar[FeedbackResult.Status]
        TOO_LATE: _ClassVar[FeedbackResult.Status]
    STATUS_UNSPECIFIED: FeedbackResult.Status
    ACCEPTED: FeedbackResult.Status
    DUPLICATE: FeedbackResult.Status
    INVALID: FeedbackResult.Status
    TOO_LATE: FeedbackResult.Status
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: FeedbackResult.Status
    reason: str
    def __init__(self, status: _Optional[_Union[FeedbackResult.Status, str]] = ..., reason: _Optional[str] = ...) -> None: ...
