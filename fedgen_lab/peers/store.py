"""Models found by their content: a store in which the name of a thing is the hash of its bytes.

Lab 10; PDFed, arXiv 2409.18245, section 4.1, keeps weights and manifests on IPFS and only their content ids on the
chain. Nobody has to be trusted to hand out the right bytes, since whoever reads them checks them. What the chain can't
promise is that somebody still has them. Content ids: CIDv1, multiformats.io, with the "raw" codec and SHA-256. IPFS
itself cuts files above one mebibyte into pieces and gives the tree of pieces another id; we store one block.
"""

import base64
import contextlib
import hashlib
import os
import threading
import time
from pathlib import Path

from fedgen_lab.files import patiently
from fedgen_lab.peers.node import within

CID_PREFIX = bytes([0x01, 0x55, 0x12, 0x20])  # version 1, raw bytes, SHA-256, 32 bytes long
MOST_BYTES = 64 * 1024 * 1024
GRACE_SECONDS = 1.0  # beyond its own time, for a node to be cut off: silence ends sooner, by httpx
ABANDONED_SECONDS = 24 * 3600  # a file half written that long ago has no writer any more


class Unusable(Exception):
    """A model or manifest that can't be used; the message names it and says why. It costs nothing but itself."""


class Withheld(Unusable):
    """Nobody offers the content, so far."""


def digest_of(data):
    """SHA-256 of bytes, as bytes of length 32: what the chain keeps."""
    return hashlib.sha256(data).digest()


def cid_of(digest):
    """The content id, CIDv1, of what has this digest (32 bytes): a text of 59 characters that begins with "bafkrei"."""
    if len(digest) != 32:
        raise ValueError(f"A SHA-256 digest has 32 bytes; got {len(digest)}.")
    return "b" + base64.b32encode(CID_PREFIX + digest).decode().lower().rstrip("=")


def digest_in(cid):
    """The digest, 32 bytes, in a content id. Raises ValueError for what is no CIDv1 of raw bytes by SHA-256."""
    letters = cid[1:].upper()
    try:
        data = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except ValueError:
        data = b""
    if len(data) != 36 or not data.startswith(CID_PREFIX) or cid != cid_of(data[4:]):
        raise ValueError(
            f"{cid!r} is no content id of this store: CIDv1, raw, SHA-256, 59 letters, first bafkrei."
        )
    return data[4:]


class Folder:
    """A store in a directory, one file for each content. Several processes may use it at once.

    What writers that were killed left half written is taken away a day later.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        for half in self.path.glob(".bafkrei*"):
            with contextlib.suppress(
                OSError
            ):  # its writer finished it, or another process has it or took it away
                if time.time() - half.stat().st_mtime > ABANDONED_SECONDS:
                    half.unlink()

    def put(self, data):
        """Keep bytes; returns their content id."""
        cid = cid_of(digest_of(data))
        half = self.path / f".{cid}.{os.getpid()}.{threading.get_ident()}"
        try:
            half.write_bytes(data)
            patiently(
                lambda: half.replace(self.path / cid)
            )  # in one move: a reader sees all of it or nothing
        except OSError as error:
            half.unlink(missing_ok=True)
            told = f"The store {self.path} did not keep {cid} ({error.strerror}). Make room there, then start again."
            raise OSError(error.errno, told) from error
        return cid

    def get(self, cid, most_bytes=MOST_BYTES):
        """The bytes with this content id, checked. Raises `Unusable` for what is absent, too large or not what its
        name says.
        """
        digest_in(cid)  # also keeps names such as "../x" out
        path = self.path / cid
        if path.exists() and not path.is_file():  # a pipe, say: reading it might never end
            raise Withheld(
                f"{cid} is withheld: what has its name in the store is no file. Use another."
            )
        try:
            with open(path, "rb") as file:
                data = file.read(most_bytes + 1)
        except OSError as error:
            raise Withheld(
                f"{cid} is withheld: nobody offers its content ({error.strerror}). Use another."
            ) from error
        return checked(cid, data, most_bytes)


class Shelf:
    """The same store in memory, for peers of one process."""

    def __init__(self):
        self.kept = {}

    def put(self, data):
        """Keep bytes; returns their content id."""
        cid = cid_of(digest_of(data))
        self.kept[cid] = bytes(data)
        return cid

    def get(self, cid, most_bytes=MOST_BYTES):
        """The bytes with this content id, checked; raises `Unusable` as `Folder.get` does."""
        digest_in(cid)
        if cid not in self.kept:
            raise Withheld(f"{cid} is withheld: nobody offers its content. Use another.")
        return checked(cid, self.kept[cid], most_bytes)


class Ipfs:
    """The same store on an IPFS node's HTTP interface, such as http://127.0.0.1:5001.

    seconds: how long to wait for a whole answer; a node looks for what it lacks until then. Calls raise ConnectionError
    if no node is there. Endpoints: docs.ipfs.tech/reference/kubo/rpc, block/put and block/get.
    """

    def __init__(self, endpoint, seconds=30):
        import httpx

        if not str(endpoint).startswith(("http://", "https://")):
            raise ValueError(
                f"The IPFS endpoint must begin with http:// or https://; got {endpoint!r}."
            )
        self.seconds = seconds
        plain = {
            "Accept-Encoding": "identity"
        }  # what is packed could unpack to more than most_bytes
        self.http = httpx.Client(
            base_url=endpoint.rstrip("/") + "/api/v0", timeout=seconds, headers=plain
        )

    def put(self, data):
        """Keep bytes on the node, as one block; returns their content id. Raises ConnectionError if it does not."""
        cid = cid_of(digest_of(data))
        asked = {"cid-codec": "raw", "mhtype": "sha2-256", "allow-big-block": "true", "pin": "true"}
        code, answer = self._ask("/block/put", asked, 10_000, files={"data": data})
        if code != 200 or cid.encode() not in answer:
            told = f"{code or ''} {answer[:200].decode(errors='replace')!r}"
            raise ConnectionError(
                f"The IPFS node did not keep {cid}: it answers {told}. Is it an IPFS node?"
            )
        return cid

    def get(self, cid, most_bytes=MOST_BYTES):
        """The bytes with this content id, checked; raises `Unusable` as `Folder.get` does."""
        digest_in(cid)
        code, data = self._ask("/block/get", {"arg": cid}, most_bytes)
        if code != 200:
            raise Withheld(
                f"{cid} is withheld: the IPFS node answers {code or data.decode()}. Use another."
            )
        return checked(cid, data, most_bytes)

    def _ask(self, path, params, most_bytes=MOST_BYTES, **more):
        """Status and content of the node's answer; 0 and the reason if it breaks off or takes too long.

        Redirects are not followed, and reading ends soon after `most_bytes`.
        """
        try:
            return within(
                self.seconds + GRACE_SECONDS, lambda: self._answer(path, params, most_bytes, **more)
            )
        except TimeoutError:  # a header that drips: httpx limits the time between two bytes
            return 0, self._too_slow()

    def _too_slow(self):
        return f"too slowly, not all within {self.seconds:g} s".encode()

    def _answer(self, path, params, most_bytes, **more):
        import httpx

        data, end = bytearray(), time.monotonic() + self.seconds
        try:
            with self.http.stream("POST", path, params=params, **more) as answer:
                for piece in answer.iter_raw():
                    data += piece
                    if len(data) > most_bytes:
                        break
                    if time.monotonic() > end:
                        return 0, self._too_slow()
        except (
            httpx.ReadTimeout,
            httpx.ReadError,
            httpx.RemoteProtocolError,
        ) as error:  # it is there, and breaks off
            return 0, f"with half a message or none ({type(error).__name__})".encode()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConnectionError(
                f"No IPFS node answers at {self.http.base_url} ({error}). Start one, or use a Folder."
            ) from error
        return answer.status_code, bytes(data)


def checked(cid, data, most_bytes):
    """`data`, if it is what `cid` says and not too large; else raises `Unusable`."""
    if len(data) > most_bytes:
        raise Unusable(
            f"{cid} is oversized: more than {most_bytes:,} bytes. Use another, or raise most_bytes."
        )
    if cid_of(digest_of(data)) != cid:
        raise Unusable(
            f"{cid} is damaged: its {len(data):,} bytes have another digest. Use another."
        )
    return data


def pack_weights(state):
    """Tensors by name as bytes of a safetensors file. The same tensors give the same bytes."""
    from safetensors.torch import save

    return save({name: state[name].detach().contiguous().cpu() for name in sorted(state)})


def unpack_weights(cid, data, like):
    """The tensors in `data`, by name, if they have the names, shapes and types of `like` and are finite.

    Raises `Unusable`, naming the model by `cid`, otherwise; also if `pack_weights` writes the same tensors in other
    bytes, so that nobody gives a model a second name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(data)
    except (
        SafetensorError,
        KeyError,
    ) as error:  # a KeyError: a type of numbers that PyTorch has not
        raise Unusable(f"{cid} is no safetensors file ({error}). Use another.") from error
    if {n: (t.shape, t.dtype) for n, t in state.items()} != {
        n: (t.shape, t.dtype) for n, t in like.items()
    }:
        raise Unusable(
            f"{cid} holds another kind of model: names, shapes or types differ from ours. Use another."
        )
    broken = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if broken:
        raise Unusable(
            f"{cid} holds numbers that are not finite, first in {broken[0]}. Use another."
        )
    if pack_weights(state) != data:
        raise Unusable(
            f"{cid} is not in the form that we write: other bytes say the same. Use another."
        )
    return state
