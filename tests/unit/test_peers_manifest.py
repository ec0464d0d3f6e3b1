"""Signed manifests: whatever is changed, by whomever, is found before a model is used."""

import json
from dataclasses import replace

import pytest

from fedgen_lab.peers.chain import Submission
from fedgen_lab.peers.manifest import (
    DATA_HASH,
    WALLETS,
    canonical,
    new_key,
    read_manifest,
    training_facts,
    write_manifest,
)
from fedgen_lab.peers.store import Unusable

WALLET = "0x" + 20 * "ab"
SENT = Submission(b"c" * 32, WALLET, b"m" * 32, 7, (b"p" * 32, b"q" * 32))
FACTS = {"steps": 200, "learning_rate": 1e-3, "seed": 4}


def written(key=1, wallet=WALLET, content=SENT.content, parents=SENT.parents, facts=FACTS):
    return write_manifest(new_key(key), wallet, content, parents, facts)


def test_an_honest_manifest_reads_back():
    claim = read_manifest(written(), SENT)
    assert training_facts(claim) == FACTS and len(claim["ingredients"]) == 2
    assert written() == written() and written(key=2) != written()


SENT_OTHERWISE = {
    "other weights": (replace(SENT, content=b"d" * 32), "is about other weights"),
    "a parent left out": (replace(SENT, parents=SENT.parents[:1]), "other parents than the chain"),
    "parents in another order": (
        replace(SENT, parents=SENT.parents[::-1]),
        "other parents than the chain",
    ),
    "sent by another": (replace(SENT, author="0x" + 20 * "cd"), "but 0xcdcd"),
}


@pytest.mark.parametrize(("sent", "reason"), SENT_OTHERWISE.values(), ids=SENT_OTHERWISE)
def test_what_the_chain_says_otherwise_is_found(sent, reason):
    with pytest.raises(Unusable, match=reason):
        read_manifest(written(), sent)


def test_a_claim_changed_after_signing_is_found():
    manifest = json.loads(written())
    manifest["claim"]["title"] = "Mine"
    with pytest.raises(Unusable, match="is not signed by the key"):
        read_manifest(canonical(manifest), SENT)


def test_the_key_of_another_does_not_fit():
    manifest = json.loads(written())
    manifest["signature"]["public_key"] = json.loads(written(key=2))["signature"]["public_key"]
    with pytest.raises(Unusable, match="is not signed by the key"):
        read_manifest(canonical(manifest), SENT)


def test_every_changed_byte_is_found():
    data = written()
    for place in range(len(data)):
        for change in (1, 0x20):
            with pytest.raises(Unusable):
                read_manifest(
                    data[:place] + bytes([data[place] ^ change]) + data[place + 1 :], SENT
                )


def test_other_spellings_of_the_same_claim_are_refused():
    for data in (
        json.dumps(json.loads(written())).encode(),
        written() + b" ",
        written().replace(b"{", b"{ ", 1),
    ):
        with pytest.raises(Unusable, match="not in canonical form"):
            read_manifest(data, SENT)


def respelled(where, change):
    manifest = json.loads(written())
    manifest["signature"][where] = change(manifest["signature"][where])
    return canonical(manifest)


def with_more(value, brackets):
    """A manifest with one field more: beside the claim (1 bracket from the end) or in the signature (2)."""
    return written()[:-brackets] + b',"x":' + value.encode() + brackets * b"}"


CHANGES = {
    "upper": str.upper,
    "space": lambda text: f"{text[:2]} {text[2:]}",
    "newline": lambda text: text + "\n",
}
MORE = ("1", '"y"', "null", "[]", "NaN", "-Infinity", "1e400", '"\\ud800"')
SPELLINGS = {
    **{
        f"{at} {name}": respelled(at, CHANGES[name])
        for at in ("signature", "public_key")
        for name in CHANGES
    },
    **{f"one field more: {value}": with_more(value, 1) for value in MORE},
    **{f"more of a signature: {value}": with_more(value, 2) for value in MORE},
    "a key twice": written().replace(b'"alg":"ed25519"', b'"alg":"x","alg":"ed25519"'),
    "escaped": written().replace(b"fedgen_lab", b"\\u0066edgen_lab"),
    "whole number as a fraction": written().replace(b":200", b":200.0"),
    "UTF-16": written().decode().encode("utf-16"),
}


@pytest.mark.parametrize("data", SPELLINGS.values(), ids=SPELLINGS)
def test_one_manifest_has_one_spelling(data):
    assert data != written()
    with pytest.raises(Unusable):
        read_manifest(data, SENT)


def test_a_signature_that_adds_the_order_of_the_group_is_refused():
    manifest = json.loads(written())
    signature = bytes.fromhex(manifest["signature"]["signature"])
    other = (
        int.from_bytes(signature[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    )
    manifest["signature"]["signature"] = (signature[:32] + other.to_bytes(32, "little")).hex()
    with pytest.raises(Unusable, match="not signed by the key"):
        read_manifest(canonical(manifest), SENT)


@pytest.mark.parametrize(
    "point", ["01" + 31 * "00", "00" * 32, "ec" + 30 * "ff" + "7f", "ee" + 30 * "ff" + "7f"]
)
def test_keys_for_which_anybody_can_sign_are_refused(point):
    manifest = json.loads(written())
    for nonce in ("01" + 31 * "00", "00" * 32, "ec" + 30 * "ff" + "7f"):
        manifest["signature"] = {"public_key": point, "signature": nonce + 32 * "00"}
        with pytest.raises(Unusable, match="no secret|not signed by"):
            read_manifest(canonical(manifest), SENT)


def test_a_signed_claim_that_could_be_read_in_two_ways_is_refused():
    key, honest = new_key(1), json.loads(written())

    def other(change):
        claim = json.loads(written())["claim"]
        change(claim)
        return canonical(
            {
                "claim": claim,
                "signature": honest["signature"] | {"signature": key.sign(canonical(claim)).hex()},
            }
        )

    twice = [
        {"label": DATA_HASH, "data": {"alg": "sha256", "hash": ""}},
        {"label": WALLETS, "data": {"ethereum": []}},
    ]
    for change in (
        lambda claim: claim["assertions"].insert(0, twice[0]),
        lambda claim: claim["assertions"].insert(0, twice[1]),
        lambda claim: claim["assertions"][0]["data"].update(alg="md5"),
        lambda claim: claim["ingredients"][0].update(relationship="parentOf"),
        lambda claim: claim.update(alg="none"),
        lambda claim: claim.update(more=1),
    ):
        with pytest.raises(Unusable, match="says more, or in another form"):
            read_manifest(other(change), SENT)
    for change in (lambda claim: claim.pop("title"), lambda claim: claim.update(title=[])):
        with pytest.raises(Unusable, match="does not say what it is"):
            read_manifest(other(change), SENT)
    assert read_manifest(other(lambda claim: claim.update(title="Mine")), SENT)["title"] == "Mine"


NO_MANIFESTS = {
    "empty": b"",
    "no JSON": b"\x80\x04.",
    "a list": b"[]",
    "a number": b"7",
    "half": written()[:200],
    "no claim": b'{"signature":{}}',
    "deep": b"[" * 100_000,
    "claim is a list": b'{"claim":[],"signature":{}}',
    "null": b'{"claim":null,"signature":null}',
}


@pytest.mark.parametrize("data", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(Unusable, match="is damaged"):
        read_manifest(data, SENT)


def test_numbers_that_json_lacks_are_not_signed():
    with pytest.raises(ValueError, match="JSON"):
        written(facts={"loss": float("nan")})
