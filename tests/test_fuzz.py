"""What a client sends, at random: never an exception, never a yes without the right token."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystore import tokens
from tests import fuzzing


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in fuzzing.LIMITS:
            patch.setattr(name, fuzzing.MOST)
        yield


PARTS = st.sampled_from(
    [
        *fuzzing.SEEDS,
        *(seed[: len(seed) // 2] for seed in fuzzing.SEEDS),
        fuzzing.TOKEN,
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"GET /check HTTP/1.1\r\n",
        b"HEAD /services/a/check HTTP/1.1\r\n",
        b"X-API-Key: " + fuzzing.TOKEN + b"\r\n",
        b"X-API-Key: x\r\n",
        b"Authorization: Bearer ",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"x" * 700,
        b"x-y: " + b"z" * 90 + b"\r\n",
        b"\0",
    ]
)


@given(st.lists(PARTS | st.binary(max_size=30), max_size=12), st.lists(st.integers(1, 90)))
@settings(max_examples=1500, deadline=None)
def test_no_bytes_get_an_exception_or_a_yes_without_the_right_token(
    parts: list[bytes], places: list[int]
) -> None:
    fuzzing.hold_for_http(fuzzing.cut(b"".join(parts), places))


def test_every_seed_holds_byte_by_byte() -> None:
    for seed in fuzzing.SEEDS:
        fuzzing.hold_for_http(fuzzing.cut(seed, [1] * len(seed)))
    client = fuzzing.Client()
    client.feed([fuzzing.SEEDS[0]] * 3)
    assert client.checker.said_yes == 3  # so the fuzzer can find a yes at all
    client = fuzzing.Client()
    client.feed([fuzzing.SEEDS[5]])
    assert client.checker.said_yes == 1


def test_what_never_ends_is_cut_and_not_kept() -> None:
    for start in (
        b"GET /" + b"a" * 300,
        b"GET /check HTTP/1.1\r\nX-API-Key: ",
        b"GET /check HTTP/1.1\r\n",
        b"POST /check HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;",
        b"POST /v2/keys.verifyKey HTTP/1.1\r\nContent-Length: 90000000\r\n\r\n",
    ):
        client = fuzzing.Client()
        piece = b"a: b\r\n" * 20 if start.endswith(b"\r\n") else b"a" * 100
        client.feed([start, *[piece] * 50])
        assert client.wire.has_ended or client.wire.is_over, start
        assert len(fuzzing.answers(client.wire.out)) == 1


TEXTS = st.text(max_size=80) | st.text(st.sampled_from(sorted(tokens._ALPHABET)), max_size=60).map(
    lambda text: tokens.DEFAULT_PREFIX + text
)


@given(TEXTS, st.integers(0, 2**128 - 1), st.integers(0, 2**160 - 1))
@settings(max_examples=1000, deadline=None)
def test_a_token_is_what_was_built_and_nothing_else(text: str, key: int, secret: int) -> None:
    fuzzing.hold_for_tokens(text, key, secret)
