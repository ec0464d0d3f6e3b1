"""Other machines' answers: a way to an Ethereum node on which no answer, half of one and nonsense are one sentence.

Lab 10. `fedgen_lab.peers.chain.Chain(endpoint)` speaks through it. web3.py limits the time between two bytes only, and
takes an answer apart without having looked at it: TypeErrors from deep inside would be all that a learner sees.
"""

import re
import threading
from concurrent.futures import Future

NODE_SECONDS = 10.0  # for so long a node may be silent; what only reads is asked five times
ANSWER_SECONDS = 60.0  # until an answer must be complete, however often it was asked for
ADDRESS, NUMBER, DATA = (
    re.compile("0x" + digits) for digits in ("[0-9a-fA-F]{40}", "[0-9a-fA-F]+", "[0-9a-fA-F]*")
)
RESULTS = {  # what the methods that we use answer with: a text of this form, or one of these types
    "eth_accounts": list,
    "eth_blockNumber": NUMBER,
    "eth_chainId": NUMBER,
    "eth_gasPrice": NUMBER,
    "eth_maxPriorityFeePerGas": NUMBER,
    "eth_estimateGas": NUMBER,
    "eth_getTransactionCount": NUMBER,
    "eth_getBalance": NUMBER,
    "eth_getCode": DATA,
    "eth_call": DATA,
    "eth_sendTransaction": NUMBER,
    "eth_sendRawTransaction": NUMBER,
    "eth_getLogs": list,
    "eth_feeHistory": dict,
    "eth_getTransactionReceipt": (dict, type(None)),
    "eth_getBlockByNumber": (dict, type(None)),
}


def within(seconds, ask):
    """What `ask()` returns or raises, if it does so within `seconds`; else TimeoutError, and its thread is left alone.

    For what has a time limit for each byte but none for the whole.
    """
    told = Future()

    def wait():
        try:
            told.set_result(ask())
        except BaseException as error:  # whatever it is belongs to who asked
            told.set_exception(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        return told.result(seconds)
    except TimeoutError as error:  # also one that `ask` raised, which has words of its own
        raise TimeoutError(
            str(error) or f"not all of its answer came within {seconds:g} s"
        ) from error


def provider_of(endpoint):
    """A web3 provider that says in one sentence, as a ConnectionError, why there is no answer to go by."""
    import requests
    from web3 import HTTPProvider

    class Node(HTTPProvider):
        def make_request(self, method, params):
            try:
                answer = within(
                    ANSWER_SECONDS, lambda: super(Node, self).make_request(method, params)
                )
                if not is_sound(method, answer):
                    raise ValueError(f"to {method} it says {str(answer)[:80]!r}")
            except (OSError, ValueError, RecursionError) as error:  # all of requests' are OSErrors
                told = f"No Ethereum node answers at {endpoint} ({type(error).__name__}: {str(error)[:200]})."
                raise ConnectionError(
                    f"{told} Start one and try again, or leave the endpoint out."
                ) from error
            return {
                key: value for key, value in answer.items() if key != "error" or value is not None
            }

    # one session for all threads: web3 keeps one for each, and each request has a thread of its own
    return Node(endpoint, request_kwargs={"timeout": NODE_SECONDS}, session=requests.Session())


def is_sound(method, answer):
    """Whether this is an answer to this method by JSON-RPC 2.0: an error, or a result of the right kind."""
    if not isinstance(answer, dict) or answer.get("jsonrpc") != "2.0" or "id" not in answer:
        return False
    error, result = answer.get("error"), answer.get("result")
    if error is not None:
        return (
            isinstance(error, dict)
            and isinstance(error.get("code"), int)
            and isinstance(error.get("message"), str)
        )
    if "result" not in answer:
        return False
    form = RESULTS.get(method, object)
    if isinstance(form, re.Pattern):
        return isinstance(result, str) and form.fullmatch(result) is not None
    if method == "eth_accounts":
        return isinstance(result, list) and all(
            isinstance(one, str) and ADDRESS.fullmatch(one) for one in result
        )
    return isinstance(result, form)
