"""The ledger of messages."""

from fedgen_lab.federation import SERVER, Trace


def test_a_trace_keeps_messages_in_the_order_of_sending():
    trace = Trace()
    trace.add(1, 0, SERVER, 0, "train", 100)
    sent = trace.add(1, 0, 0, SERVER, "train", 90, flops=5.0)
    assert sent.flops == 5.0 and sent.error == "" and len(trace) == 2
    assert list(trace.frame().bytes) == [100, 90]


def test_an_empty_trace_still_has_its_columns():
    columns = ["round", "step", "sender", "receiver", "kind", "bytes", "flops", "error"]
    assert list(Trace().frame().columns) == columns


def test_a_frame_is_a_copy():
    trace = Trace()
    trace.add(1, 0, SERVER, 0, "train", 100)
    frame = trace.frame()
    frame.loc[0, "bytes"] = 0
    assert trace.frame().bytes[0] == 100
