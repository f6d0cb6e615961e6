# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2defense.isolation.messages import MAX_BYTES, Decoder, MessageError, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(st.tuples(st.dictionaries(st.text(), JSON, max_size=3), st.binary()))


@given(MESSAGES, st.integers(1, 50))
def test_messages_survive_any_cut(messages, step):
    stream = b"".join(encode(content, blob) for content, blob in messages)
    decoder, received = Decoder(), []
    for start in range(0, len(stream), step):
        received += decoder.feed(stream[start : start + step])
    assert received == messages
    assert decoder.is_empty


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_refused(data):
    with contextlib.suppress(MessageError):
        for content, blob in Decoder().feed(data):
            assert isinstance(content, dict)
            assert isinstance(blob, bytes)


def test_nothing_is_sent_that_json_cannot_say():
    with pytest.raises(ValueError, match="JSON"):
        encode({"score": float("nan")})
    with pytest.raises(ValueError, match="more than"):
        encode({}, bytes(MAX_BYTES + 1))
