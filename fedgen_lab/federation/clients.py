"""One exchange with many clients, for servers that are no Flower strategy: ask, wait, and look at what comes back.

An answer comes from outside: it may be missing, an error, or hold NaN, or arrays of other names, shapes and types than
it should. Whatever is wrong is told as the end of a sentence that begins with the client. Labs 01 and 04 to 08.
"""

import time

import numpy as np
from flwr.common.constant import ErrorCode

from fedgen_lab.federation.arrays import read

LOOK_SECONDS = 0.2  # Flower's own `send_and_receive` looks for answers every three seconds; one hop of a U takes less


def gather(grid, number, patience_seconds):
    """The ids of the nodes that are connected once there are `number` of them, or once patience is over."""
    end = time.monotonic() + patience_seconds
    while len(node_ids := list(grid.get_node_ids())) < number and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return node_ids


def ask(grid, messages, timeout):
    """Send {key: message} and wait for `timeout` seconds at most: {key: reply} of those who answered."""
    waiting = [
        message_id
        for message_id in grid.push_messages(list(messages.values()))
        if message_id is not None
    ]
    end, replies = time.monotonic() + timeout, {}
    while waiting:
        replies |= {
            reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(waiting)
        }
        waiting = [message_id for message_id in waiting if message_id not in replies]
        if time.monotonic() > end:
            break
        if waiting:
            time.sleep(LOOK_SECONDS)
    answers = {key: replies.get(message.metadata.message_id) for key, message in messages.items()}
    return {key: reply for key, reply in answers.items() if reply is not None}


def content_of(reply):
    """The records of a reply, or of None. Raises ValueError with what its sender did instead."""
    if reply is None:
        raise ValueError("did not answer in time")
    if not reply.has_error():
        return reply.content
    if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
        raise ValueError("lost its connection")
    raise ValueError(f"sent an error instead of an answer: {reply.error.reason.rstrip('.')}")


def checked(arrays, expected):
    """The NumPy arrays of an `ArrayRecord`, by name.

    expected: name -> a tensor or anything else with a shape and a dtype. Raises ValueError unless the names, shapes and
    dtypes are these and all numbers are finite.
    """
    if missing := sorted(set(expected) - set(arrays)):
        raise ValueError(f"left out {len(missing)} arrays, the first is {missing[0]!r}")
    if extra := sorted(set(arrays) - set(expected)):
        raise ValueError(f"sent {len(extra)} arrays nobody asked for, the first is {extra[0]!r}")
    values = {}
    for name, array in arrays.items():
        shape, dtype = tuple(expected[name].shape), str(expected[name].dtype).removeprefix("torch.")
        try:
            value = read(array)
            is_right = value.shape == shape and str(value.dtype) == dtype
            is_finite = is_right and np.isfinite(value).all()
        except Exception as error:  # bytes from outside: anything can be wrong with them
            raise ValueError(f"sent {name!r} in a form that cannot be read ({error})") from None
        if not is_right:
            raise ValueError(
                f"sent {name!r} as {value.dtype} {value.shape} where {dtype} {shape} belongs"
            )
        if not is_finite:
            raise ValueError(f"sent NaN or infinity in {name!r}")
        values[name] = value
    return values
