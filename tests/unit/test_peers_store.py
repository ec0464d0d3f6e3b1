"""Models by content: what comes out of a store is what its name says, or it is refused by name."""

import http.server
import threading
from email.parser import BytesParser
from urllib.parse import parse_qs, urlparse

import pytest
import torch

from fedgen_lab.peers.store import (
    Folder,
    Ipfs,
    Unusable,
    cid_of,
    digest_in,
    digest_of,
    pack_weights,
    unpack_weights,
)

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


class Node(http.server.BaseHTTPRequestHandler):
    """The two calls of an IPFS node's HTTP interface that the store needs."""

    blocks: dict = {}

    def do_POST(self):
        asked = urlparse(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if asked.path == "/api/v0/block/put":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            data = BytesParser().parsebytes(head + body).get_payload()[0].get_payload(decode=True)
            self.blocks[cid_of(digest_of(data))] = data
            return self.answer(200, f'{{"Key":"{cid_of(digest_of(data))}","Size":{len(data)}}}'.encode())
        data = self.blocks.get(parse_qs(asked.query)["arg"][0])
        return self.answer(500, b'{"Message":"block was not found"}') if data is None else self.answer(200, data)

    def answer(self, code, data):
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(params=["folder", "ipfs"])
def store(request, tmp_path):
    """A store, and a function that puts bytes under a name that is not theirs (None: takes them away)."""
    if request.param == "folder":

        def forge(cid, data):
            (tmp_path / cid).unlink() if data is None else (tmp_path / cid).write_bytes(data)

        yield Folder(tmp_path), forge
        return
    Node.blocks = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Node)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def forge(cid, data):
        Node.blocks.pop(cid) if data is None else Node.blocks.__setitem__(cid, data)

    yield Ipfs(f"http://127.0.0.1:{server.server_port}"), forge
    server.shutdown()


def test_content_ids_are_real_ones():
    multiformats = pytest.importorskip("multiformats", reason="multiformats is in the extra [test]")
    for data in (b"", b"hello", bytes(range(256))):
        cid = cid_of(digest_of(data))
        assert cid == str(multiformats.CID("base32", 1, "raw", multiformats.multihash.digest(data, "sha2-256")))
        assert digest_in(cid) == digest_of(data)


NO_CIDS = ["", "../etc/passwd", "Qm" + 44 * "a", "bafkrei", "bafkrei" + 52 * "!", "b" + 58 * "a"]


@pytest.mark.parametrize("name", NO_CIDS)
def test_a_name_that_is_no_content_id_is_refused(store, name):
    with pytest.raises(ValueError, match="is no content id"):
        store[0].get(name)


def test_what_goes_in_comes_out(store):
    data = pack_weights(STATE)
    cid = store[0].put(data)
    assert store[0].put(data) == cid and store[0].get(cid) == data
    back = unpack_weights(cid, data, like=STATE)
    assert all(torch.equal(back[name], STATE[name]) for name in STATE)


def test_every_changed_byte_is_found(store):
    data = pack_weights(STATE)
    cid = store[0].put(data)
    for place in range(0, len(data), 7):
        store[1](cid, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(Unusable, match=f"{cid} is damaged"):
            store[0].get(cid)


def test_withheld_truncated_and_oversized_models_are_named(store):
    data = pack_weights(STATE)
    cid = store[0].put(data)
    with pytest.raises(Unusable, match=f"{cid} is oversized: more than 10 bytes"):
        store[0].get(cid, most_bytes=10)
    store[1](cid, data[:-1])
    with pytest.raises(Unusable, match=f"{cid} is damaged"):
        store[0].get(cid)
    store[1](cid, None)
    with pytest.raises(Unusable, match=f"{cid} is withheld"):
        store[0].get(cid)


def other(**changed):
    return pack_weights(STATE | changed)


MODELS = {
    "pickle": (b"\x80\x04.", "is no safetensors file"),
    "empty": (b"", "is no safetensors file"),
    "endless header": (b"\xff" * 8 + b"{}", "is no safetensors file"),
    "another tensor": (other(extra=torch.ones(1)), "another kind of model"),
    "another shape": (other(**{"layer.bias": torch.ones(3)}), "another kind of model"),
    "another type": (other(**{"layer.bias": torch.ones(2, dtype=torch.float64)}), "another kind of model"),
    "nan": (other(**{"layer.bias": torch.tensor([1.0, float("nan")])}), "not finite, first in layer.bias"),
}


@pytest.mark.parametrize(("data", "reason"), MODELS.values(), ids=MODELS)
def test_a_model_that_is_not_of_our_kind_is_refused(data, reason):
    with pytest.raises(Unusable, match=reason):
        unpack_weights("bafkreitest", data, like=STATE)


def test_the_same_weights_have_the_same_name():
    turned = dict(reversed(STATE.items()))
    assert pack_weights(turned) == pack_weights(STATE)


def test_an_ipfs_node_that_is_not_there_is_named():
    for ask in (lambda node: node.put(b"x"), lambda node: node.get(cid_of(digest_of(b"x")))):
        with pytest.raises(ConnectionError, match="No IPFS node answers"):
            ask(Ipfs("http://127.0.0.1:9"))
