"""Floating-point operations, counted by torch while work is done: computing seconds and joules are made of them."""

import torch


def flop_counter():
    """torch's counter, a context manager with `get_total_flops()`. Attention counts at every version of torch.

    Some versions leave it out on a processor: 4 % of a training step of the lab's own model.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten
    attention = {  # by the shapes of query, key and value; backward, of the gradient before them
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(
            *shapes[:3]
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
            sdpa_backward_flop_count(*shapes[:4])
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)
