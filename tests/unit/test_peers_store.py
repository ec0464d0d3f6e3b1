"""Models by content: what comes out of a store is what its name says, or it is refused by name."""

import gzip
import http.server
import itertools
import os
import socket
import threading
import time
from email.parser import BytesParser
from urllib.parse import parse_qs, urlparse

import pytest
import torch

from fedgen_lab.peers.store import (
    ABANDONED_SECONDS,
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
            return self.answer(
                200, f'{{"Key":"{cid_of(digest_of(data))}","Size":{len(data)}}}'.encode()
            )
        data = self.blocks.get(parse_qs(asked.query)["arg"][0])
        return (
            self.answer(500, b'{"Message":"block was not found"}')
            if data is None
            else self.answer(200, data)
        )

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
        assert cid == str(
            multiformats.CID("base32", 1, "raw", multiformats.multihash.digest(data, "sha2-256"))
        )
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


def header(text, body=b""):
    """A safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text + body


def other_header(change):
    data = pack_weights(STATE)
    end = 8 + int.from_bytes(data[:8], "little")
    return header(change(data[8:end]), data[end:])


MODELS = {
    "metadata": (
        other_header(lambda text: text.replace(b"{", b'{"__metadata__":{"by":"me"},', 1)),
        "not in the form",
    ),
    "a space": (other_header(lambda text: text + b" " * 8), "not in the form"),
    "a tensor twice": (
        other_header(
            lambda text: (
                b'{"layer.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                + text.lstrip(b"{")
            )
        ),
        "Use another",
    ),
    "numbers unknown": (
        header(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"0"),
        "is no safetensors",
    ),
    "pickle": (b"\x80\x04.", "is no safetensors file"),
    "empty": (b"", "is no safetensors file"),
    "endless header": (b"\xff" * 8 + b"{}", "is no safetensors file"),
    "another tensor": (other(extra=torch.ones(1)), "another kind of model"),
    "another shape": (other(**{"layer.bias": torch.ones(3)}), "another kind of model"),
    "another type": (
        other(**{"layer.bias": torch.ones(2, dtype=torch.float64)}),
        "another kind of model",
    ),
    "nan": (
        other(**{"layer.bias": torch.tensor([1.0, float("nan")])}),
        "not finite, first in layer.bias",
    ),
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


class Odd:
    """A server that answers every request with these bytes, piece by piece, and closes."""

    def __init__(self, pieces, pause=0.0):
        self.pieces, self.pause, self.sent, self.asked = pieces, pause, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            with self.listener.accept()[0] as client:
                self.asked += 1
                client.recv(65536)
                try:
                    for piece in self.pieces():
                        client.sendall(piece)
                        self.sent += len(piece)
                        time.sleep(self.pause)
                except OSError:  # it has stopped reading
                    pass


WANTED = b"wanted"
CID = cid_of(digest_of(WANTED))


def answered(status, length, data, *more):
    head = [f"HTTP/1.1 {status} Said", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(head).encode() + data


ANSWERS = {
    "status 201": (answered(201, 6, WANTED), "withheld: the IPFS node answers 201"),
    "status 206": (answered(206, 6, WANTED), "withheld: the IPFS node answers 206"),
    "status 404": (answered(404, 6, WANTED), "withheld: the IPFS node answers 404"),
    "cut off": (answered(200, 7, WANTED), "withheld"),
    "no HTTP": (b"\x00\x01\r\n\r\n", "withheld"),
    "nothing": (b"", "withheld"),
    "packed": (
        answered(200, len(gzip.compress(WANTED)), gzip.compress(WANTED), "Content-Encoding: gzip"),
        "damaged",
    ),
    "more": (answered(200, 7, WANTED + b"!"), "damaged"),
}


@pytest.mark.parametrize(("data", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_a_bad_answer_costs_one_model(data, reason):
    node = Ipfs(Odd(lambda: [data]).endpoint, seconds=5)
    with pytest.raises(Unusable, match=f"{CID} is {reason}"):
        node.get(CID)
    with pytest.raises(ConnectionError, match=f"did not keep {CID}"):
        node.put(WANTED)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(code):
    elsewhere = Odd(lambda: [answered(200, 6, WANTED)])
    node = Odd(lambda: [answered(code, 0, b"", f"Location: {elsewhere.endpoint}/api/v0/block/get")])
    with pytest.raises(Unusable, match=f"{CID} is withheld: the IPFS node answers {code}"):
        Ipfs(node.endpoint).get(CID)
    assert node.asked == 1 and elsewhere.asked == 0
    assert Ipfs(elsewhere.endpoint).get(CID) == WANTED


def test_reading_stops_at_the_limit_and_at_the_time():
    endless = Odd(
        lambda: itertools.chain([answered(200, 10**12, b"")], itertools.repeat(bytes(65536)))
    )
    with pytest.raises(Unusable, match=f"{CID} is oversized: more than 1,000 bytes"):
        Ipfs(endless.endpoint).get(CID, most_bytes=1_000)
    assert endless.sent < 10**9
    slow = Odd(
        lambda: itertools.chain([answered(200, 10**6, b"")], itertools.repeat(b".")), pause=0.05
    )
    with pytest.raises(
        Unusable, match=f"{CID} is withheld: the IPFS node answers too slowly, not all within 0.5 s"
    ):
        Ipfs(slow.endpoint, seconds=0.5).get(CID)
    silent = Odd(lambda: itertools.repeat(b""), pause=0.05)
    with pytest.raises(
        Unusable, match=f"{CID} is withheld"
    ):  # a node looks for what it lacks and says nothing
        Ipfs(silent.endpoint, seconds=0.5).get(CID)


def test_a_header_that_drips_ends_at_the_time_too(monkeypatch):
    monkeypatch.setattr("fedgen_lab.peers.store.GRACE_SECONDS", 0.1)
    node = Odd(
        lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nX-A: "], itertools.repeat(b"a", 100)),
        pause=0.05,
    )
    with pytest.raises(
        Unusable, match=f"{CID} is withheld: the IPFS node answers too slowly, not all within 0.5 s"
    ):
        Ipfs(node.endpoint, seconds=0.5).get(CID)


def test_what_is_no_web_address_is_named():
    with pytest.raises(
        ValueError, match="must begin with http:// or https://; got 'localhost:5001'"
    ):
        Ipfs("localhost:5001")


def test_a_full_disk_is_named_and_nothing_half_stays(tmp_path):
    resource = pytest.importorskip("resource", reason="needs limits of POSIX")
    store, data = Folder(tmp_path), bytes(100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(
            OSError, match=f"did not keep {cid_of(digest_of(data))} .* Make room there"
        ):
            store.put(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    (tmp_path / cid_of(digest_of(data))).write_bytes(data[:10])  # as a copy that broke off
    assert store.get(store.put(data)) == data


def test_a_pipe_in_the_store_does_not_stop_a_reader(tmp_path):
    os.mkfifo(tmp_path / CID)
    with pytest.raises(Unusable, match=f"{CID} is withheld: .* no file"):
        Folder(tmp_path).get(CID)


def test_what_a_killed_writer_left_is_taken_away_and_what_is_being_written_stays(tmp_path):
    old, young = tmp_path / f".{CID}.1.1", tmp_path / f".{CID}.2.2"
    for half in (old, young):
        half.write_bytes(b"half of a mod")
    os.utime(old, (time.time() - 2 * ABANDONED_SECONDS,) * 2)
    Folder(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
