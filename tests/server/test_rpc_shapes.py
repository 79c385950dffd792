"""What all methods have in common, from the descriptors: a new method that lacks it fails here."""

import importlib
import pkgutil

import pytest
from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor

import syncline.v1

METHODS = {
    method.full_name: method
    for found in pkgutil.iter_modules(syncline.v1.__path__)
    if found.name.endswith("_service_pb2")
    for service in importlib.import_module(f"syncline.v1.{found.name}").DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
READING_PREFIXES = ("Get", "BatchGet", "List", "Watch")
READING = {f"syncline.v1.SyncService.{name}" for name in ("Sync", "Subscribe", "UpdateFeed", "DigestRanges")}
"""Further methods that change nothing. All others are taken to change something."""


def reads(method) -> bool:
    return method.name.startswith(READING_PREFIXES) or method.full_name in READING


MUTATING = [method for method in METHODS.values() if not reads(method)]


def test_methods_that_change_something_are_found():
    assert METHODS.keys() >= READING
    names = {method.name for method in MUTATING}
    assert names >= {"Push", "DeleteByIds", "CreateDataset", "RotateKey", "StreamSession", "CloseSession"}


@pytest.mark.parametrize("method", MUTATING, ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("name", "kind"),
    [("request_id", FieldDescriptor.TYPE_STRING), ("validate_only", FieldDescriptor.TYPE_BOOL)],
)
def test_g05_every_mutating_method_has_request_id_and_validate_only(method, name, kind):
    """Issue 2, section 2: in the request itself, optional, one value."""
    request = method.input_type
    if method.name == "PushStream":  # the readings are known by their numbers
        request = request.fields_by_name["open"].message_type
    field = request.fields_by_name.get(name)
    assert field is not None, f"{request.full_name} has no {name}"
    assert (field.type, field.is_repeated) == (kind, False)
    behavior = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    assert list(behavior) == [field_behavior_pb2.OPTIONAL]
