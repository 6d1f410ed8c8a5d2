"""Notifications about objects, as their services send them, and the gathering of bursts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.flows.object_events import Debouncer, NotificationError, created_objects

# Shaped after the services' documentation.
S3 = {
    "Records": [
        {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {
                "bucket": {"name": "shop"},
                "object": {"key": "orders/ds%3D2024-03-01/a+b.parquet", "size": 3, "eTag": "d41d"},
            },
        },
        {
            "eventName": "ObjectRemoved:Delete",
            "s3": {"bucket": {"name": "shop"}, "object": {"key": "orders/old.parquet"}},
        },
    ]
}
URI = "s3://shop/orders/ds=2024-03-01/a b.parquet"
SNS = {"Type": "Notification", "MessageId": "1", "Message": json.dumps(S3)}
EVENTBRIDGE = {
    "source": "aws.s3",
    "detail-type": "Object Created",
    "detail": {"bucket": {"name": "shop"}, "object": {"key": "orders/a+b.parquet"}},
}
MINIO = {
    "EventName": "s3:ObjectCreated:Put",
    "Key": "shop/orders/a.parquet",
    "Records": [
        {
            "eventName": "s3:ObjectCreated:Put",
            "s3": {"bucket": {"name": "shop"}, "object": {"key": "orders%2Fa.parquet"}},
        }
    ],
}
SEAWEEDFS = {
    "key": "/buckets/shop/orders/a.parquet",
    "event_type": "create",
    "message": {"new_entry": {"name": "a.parquet"}},
}


@pytest.mark.parametrize(
    ("message", "uris"),
    [
        (S3, [URI]),
        (SNS, [URI]),
        ({"Records": [{"messageId": "1", "body": json.dumps(S3)}]}, [URI]),
        ({"Records": [{"messageId": "1", "body": json.dumps(SNS)}]}, [URI]),
        ({"Records": [{"EventSource": "aws:sns", "Sns": SNS}]}, [URI]),
        ({"body": json.dumps(S3)}, [URI]),
        (EVENTBRIDGE, ["s3://shop/orders/a+b.parquet"]),
        ({**EVENTBRIDGE, "detail-type": "Object Deleted"}, []),
        (MINIO, ["s3://shop/orders/a.parquet"]),
        (SEAWEEDFS, ["s3://shop/orders/a.parquet"]),
        ({**SEAWEEDFS, "event_type": "delete"}, []),
        ({**SEAWEEDFS, "message": {"new_entry": {"is_directory": True}}}, []),
        ({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "shop"}, []),
    ],
)
def test_created_objects(message: Any, uris: list[str]) -> None:
    assert created_objects(message) == uris


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["create", "/buckets/a/b", "Object Created", "s3:ObjectCreated:Put", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("Records", "body", "Message", "s3", "bucket", "object", "key", "name"),
                    *("eventName", "event_type", "message", "new_entry", "detail", "detail-type"),
                    *("Sns", "Event"),
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_anything_else_is_refused(message: Any) -> None:
    try:
        uris = created_objects(message)
    except NotificationError:
        return
    assert all(uri.startswith("s3://") for uri in uris)


@pytest.mark.parametrize("part", [{"message": "x"}, {"message": {"new_entry": [1]}}])
def test_a_damaged_message_of_seaweedfs_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(NotificationError):
        created_objects({**SEAWEEDFS, **part})


def test_envelopes_in_each_other_have_an_end() -> None:
    message: Any = S3
    for _ in range(10):
        message = {"body": json.dumps(message)}
    with pytest.raises(NotificationError):
        created_objects(message)


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from(["a", "b", "c"])), max_size=40))
def test_no_object_of_a_watched_prefix_is_lost(arrivals: list[tuple[float, str]]) -> None:
    debouncer = Debouncer(["s3://x/a/", "s3://x/b/"], quiet=2.0, longest=6.0)
    now, told, sent = 0.0, {"a": 0, "b": 0}, {"a": 0, "b": 0}
    first: dict[str, float] = {}
    for pause, folder in arrivals:
        now += pause
        for burst in debouncer.take(now):
            told[burst.prefix[-2]] += burst.count
            first.pop(burst.prefix[-2], None)
        is_watched = debouncer.add(f"s3://x/{folder}/1.parquet", now)
        assert is_watched == (folder in sent)
        if is_watched:
            sent[folder] += 1
            first.setdefault(folder, now)
            due = debouncer.next_due
            assert due is not None
            assert due <= min(first.values()) + 6.0
    for burst in debouncer.take(now, all_of_them=True):
        told[burst.prefix[-2]] += burst.count
    assert told == sent


def test_a_burst_is_one_and_an_endless_stream_is_not_put_off() -> None:
    debouncer = Debouncer(["s3://x/"], quiet=2.0, longest=6.0)
    for second in range(5):
        debouncer.add("s3://x/1", float(second))
        assert debouncer.take(second + 0.5) == []
    [burst] = debouncer.take(6.0)
    assert (burst.count, burst.first) == (5, 0.0)
    debouncer.add("s3://x/2", 7.0)
    debouncer.put_back(burst)
    [again] = debouncer.take(100.0)
    assert (again.count, again.first) == (6, 0.0)
