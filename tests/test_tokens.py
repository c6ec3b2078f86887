"""Tokens: the published vectors, the checksum, and that nothing else has their shape."""

import binascii
import re
import string
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystore import tokens
from keystore.edge.decision import ClientCredentials
from keystore.edge.slow import is_malformed
from keystore.tokens import Shape

KEY = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
VECTORS = [
    (UUID(int=0), 0, tokens.DEFAULT_PREFIX, "0" * 50 + "hdmUS"),
    (
        KEY,
        2**160 - 1,
        tokens.DEFAULT_PREFIX,
        "02tcRIyrxLXTR81B3dqdOxaWgEPTl1tmebfsQzFP4bxwgy80V3ocg3b",
    ),
    (
        UUID("ffffffff-ffff-ffff-ffff-ffffffffffff"),
        0x0123456789ABCDEF0123456789ABCDEF01234567,
        "acme-live-",
        "7n42DGM5Tflk9n8mt7Fhc70A42ooYeVw3Mne3Lq3NTHYStAVr22g54w",
    ),
]
PATTERN = re.compile(r"sk-miro-api-[0-9A-Za-z]{55}")


@pytest.mark.parametrize(("key", "secret", "prefix", "rest"), VECTORS)
def test_published_vectors(key: UUID, secret: int, prefix: str, rest: str) -> None:
    token = tokens.build(key, secret, prefix)
    assert token == prefix + rest
    # the same, computed the long way round: the digits' values, weighted, give the parts back
    alphabet = string.digits + string.ascii_uppercase + string.ascii_lowercase
    values = [alphabet.index(char) for char in rest]
    numbers = [
        sum(value * 62**power for power, value in enumerate(reversed(values[start:end])))
        for start, end in ((0, 22), (22, 49), (49, 55))
    ]
    assert numbers == [key.int, secret, binascii.crc32((prefix + rest[:49]).encode())]


@given(st.uuids(), st.integers(0, 2**160 - 1))
def test_a_token_carries_its_key_and_has_the_documented_pattern(key: UUID, secret: int) -> None:
    token = tokens.build(key, secret)
    assert PATTERN.fullmatch(token)
    assert tokens.shape(token) is Shape.OURS
    assert tokens.key_uuid(token) == key


@given(
    st.integers(12, 66),
    st.sampled_from("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"),
)
def test_one_wrong_character_is_noticed(position: int, char: str) -> None:
    token = tokens.build(KEY, 12345)
    if token[position] != char:
        mistyped = token[:position] + char + token[position + 1 :]
        assert tokens.shape(mistyped) is Shape.MISTYPED
        assert tokens.key_uuid(mistyped) is None


@given(st.text(max_size=100))
def test_any_other_string_is_of_another_shape(text: str) -> None:
    assert tokens.shape(text) is Shape.OTHER
    assert tokens.key_uuid(text) is None
    assert len(tokens.hash_token(text)) == 64


@given(st.text(min_size=55, max_size=55))
def test_strange_characters_behind_our_prefix_are_a_typing_error(text: str) -> None:
    assert tokens.shape(tokens.DEFAULT_PREFIX + text) in {Shape.MISTYPED, Shape.OURS}


def test_a_right_checksum_over_an_impossible_uuid_names_no_key() -> None:
    body = tokens.DEFAULT_PREFIX + "z" * 22 + "0" * 27
    token = body + tokens._checksum(body)
    assert tokens.shape(token) is Shape.OURS
    assert tokens.key_uuid(token) is None


def test_a_right_checksum_over_strange_characters_names_no_key() -> None:
    body = tokens.DEFAULT_PREFIX + "-" * 22 + "0" * 27
    token = body + tokens._checksum(body)
    assert tokens.shape(token) is Shape.OURS
    assert tokens.key_uuid(token) is None


def test_tokens_of_another_system_are_not_typing_errors_of_ours() -> None:
    ours = tokens.build(KEY, 1)
    as_long = tokens.build(KEY, 1, "another-app-")
    assert len(as_long) == len(ours)
    assert tokens.shape(as_long) is Shape.OTHER
    assert tokens.shape(as_long[:-1] + "!") is Shape.OTHER
    assert tokens.shape(ours[:-1]) is Shape.OTHER
    assert tokens.shape(ours + "0") is Shape.OTHER


def test_what_does_not_fit_into_a_token_is_refused() -> None:
    tokens.build(KEY, 62**27 - 1)
    with pytest.raises(ValueError, match="27"):
        tokens.build(KEY, 62**27)


def test_a_string_of_512_characters_may_be_a_token_and_a_longer_one_is_none() -> None:
    assert not is_malformed("x" * 512, tokens.DEFAULT_PREFIX)
    assert is_malformed("x" * 513, tokens.DEFAULT_PREFIX)
    assert not is_malformed(ClientCredentials("x" * 512, "x" * 512), tokens.DEFAULT_PREFIX)
    assert is_malformed(ClientCredentials("x", "x" * 513), tokens.DEFAULT_PREFIX)


@pytest.mark.parametrize(
    ("client_id", "secret", "is_bad"),
    [
        *(("x", "", True), ("", "x", True), ("x", "x", False)),
        *(("a\ud800", "x", True), ("\udfff", "x", True)),
        *(("\ud7ff", "x", False), ("\ue000", "x", False), ("x", "\ud800", False)),
    ],
)
def test_a_client_is_malformed_that_cannot_even_be_asked_for(
    client_id: str, secret: str, is_bad: bool
) -> None:
    credentials = ClientCredentials(client_id, secret)
    assert is_malformed(credentials, tokens.DEFAULT_PREFIX) is is_bad


def test_a_clients_secret_is_no_token_and_has_a_checksum_of_its_own() -> None:
    secret = tokens.new_client_secret("acme-")
    assert re.fullmatch(r"acme-client-[0-9A-Za-z]{33}", secret)
    assert tokens.decode62(secret[-6:]) == binascii.crc32(secret[:-6].encode())
    assert tokens.decode62(secret[-33:-6]) < 2**160
    assert tokens.shape(secret, "acme-") is Shape.OTHER
    assert tokens.new_client_secret("acme-") != secret


def test_tokens_are_told_apart_by_prefix() -> None:
    token = tokens.build(KEY, 1, "acme-live-")
    assert tokens.shape(token, "acme-live-") is Shape.OURS
    assert tokens.shape(token) is Shape.OTHER


@pytest.mark.parametrize("prefix", ["", "-", "a", "acme", "a b-", "-acme-", "x" * 32 + "-", "é-"])
def test_prefixes_that_would_blur_into_the_token_are_refused(prefix: str) -> None:
    assert not tokens.is_valid_prefix(prefix)


@pytest.mark.parametrize("prefix", ["a-", "sk-miro-api-", "A_b.9-", "0.", "x" * 31 + "_"])
def test_prefixes_that_stand_apart_are_taken(prefix: str) -> None:
    assert tokens.is_valid_prefix(prefix)


def test_tokens_of_one_key_differ_in_all_160_bits_of_their_secret() -> None:
    secrets = [tokens.decode62(tokens.new_token(KEY)[-33:-6]) for _ in range(200)]
    seen_0 = seen_1 = 0
    for secret in secrets:
        seen_1 |= secret
        seen_0 |= ~secret
    every_bit = 2**160 - 1
    assert seen_1 & every_bit == every_bit
    assert seen_0 & every_bit == every_bit
