"""Signed manifests: whatever is changed, by whomever, is found before a model is used."""

import json
from dataclasses import replace

import pytest

from fedgen_lab.peers.chain import Submission
from fedgen_lab.peers.manifest import canonical, new_key, read_manifest, training_facts, write_manifest
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
    "parents in another order": (replace(SENT, parents=SENT.parents[::-1]), "other parents than the chain"),
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
                read_manifest(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :], SENT)


def test_other_spellings_of_the_same_claim_are_refused():
    for data in (json.dumps(json.loads(written())).encode(), written() + b" ", written().replace(b"{", b"{ ", 1)):
        with pytest.raises(Unusable, match="not in canonical form"):
            read_manifest(data, SENT)


NO_MANIFESTS = {
    "empty": b"", "no JSON": b"\x80\x04.", "a list": b"[]", "a number": b"7", "half": written()[:200],
    "no claim": b'{"signature":{}}', "deep": b"[" * 100_000, "claim is a list": b'{"claim":[],"signature":{}}',
    "null": b'{"claim":null,"signature":null}',
}  # fmt: skip


@pytest.mark.parametrize("data", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(Unusable, match="is damaged"):
        read_manifest(data, SENT)


def test_numbers_that_json_lacks_are_not_signed():
    with pytest.raises(ValueError, match="JSON"):
        written(facts={"loss": float("nan")})
