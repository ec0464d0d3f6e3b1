"""Operations are the same number at every version of torch, attention among them."""

import torch
import torch.nn.functional as F

from fedgen_lab.flops import flop_counter


def test_attention_counts_forward_and_backward():
    query, key, value = (
        torch.randn(3, 2, 5, 8, requires_grad=True) for _ in range(3)
    )  # (B, heads, tokens, size)
    with flop_counter() as forward:
        attended = F.scaled_dot_product_attention(query, key, value)
    with flop_counter() as backward:
        attended.sum().backward()
    product = (
        2 * 3 * 2 * 5 * 5 * 8
    )  # a multiplication and an addition for each number of one matrix product
    assert forward.get_total_flops() == 2 * product  # scores, then their mean of the values
    assert (
        backward.get_total_flops() == 5 * product
    )  # the scores again, and two products for each of the two
