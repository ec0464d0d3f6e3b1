"""Floating-point operations, counted by torch while work is done: computing seconds and joules are made of them."""

import torch


def flop_counter():
    """torch's counter, a context manager with `get_total_flops()`. Attention counts at every version of torch.

    Some versions leave it out on a processor: 4 % of a training step of the lab's own model.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def attention(query, key, value, *_, **options):  # shapes
        return sdpa_flop_count(query, key, value)

    def backward(gradient, query, key, value, *_, **options):
        return sdpa_backward_flop_count(gradient, query, key, value)

    on_processors = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward_on_processors = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(
        display=False, custom_mapping={on_processors: attention, backward_on_processors: backward}
    )
