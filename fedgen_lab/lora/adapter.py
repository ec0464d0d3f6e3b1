"""LoRA adapters on a UNet, through peft: adding one, reading out what travels, putting it back, taking it off.

Labs 02 and 03. LoRA replaces a frozen weight W by W + (alpha / rank) B A with small trainable A and B (Hu et al.,
arXiv 2106.09685). What a client sends is nothing but the parameters that train: A and B, or everything with full
fine-tuning.
"""

import torch
import torch.nn.functional as F

from fedgen_lab.lora.factors import factors

# Which layers carry an adapter. Attention alone at rank 4 was too weak to learn four new objects in 200 steps.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = {
    "attention": ATTENTION,
    "attention+feed-forward": (*ATTENTION, "ff.net.0.proj", "ff.net.2"),
}


def add_adapter(unet, rank=8, alpha=None, seed=0, targets="attention+feed-forward"):
    """Freeze `unet` and put a trainable LoRA adapter beside its layers `TARGETS[targets]`: A random by `seed`, B zero.

    `alpha` scales the adapter by alpha / rank; None means alpha = rank, a scale of one. Because B starts at zero the
    UNet computes exactly what it did before. Raises ValueError if it already carries an adapter.
    """
    from peft import LoraConfig

    if getattr(unet, "peft_config", None):
        raise ValueError("This UNet already carries an adapter; call remove_adapter(unet) first.")
    unet.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=list(TARGETS[targets]),
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng():  # peft draws A from torch's global generator
        torch.manual_seed(seed)
        unet.add_adapter(config)


def remove_adapter(unet):
    """Take the adapter off: the UNet is the base model again, bit for bit."""
    if getattr(unet, "peft_config", None):
        unet.unload_lora()


def trainable_state(unet):
    """The parameters that train, by name, copied to the CPU: the adapter, or every weight under full fine-tuning."""
    return {
        name: p.detach().cpu().clone() for name, p in unet.named_parameters() if p.requires_grad
    }


def load_trainable(unet, state):
    """Write `state` (see `trainable_state`) back. Raises ValueError when names or shapes are not this UNet's."""
    parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    if odd := sorted(parameters.keys() ^ state.keys()):
        raise ValueError(
            f"This state does not fit: {odd[0]!r} is only on one side. "
            "Use the same rank, targets and base model on both."
        )
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)}, expected {tuple(parameter.shape)}."
            )
    # Only now: a state that does not fit leaves the UNet as it was.
    unet.load_state_dict(state, strict=False)


@torch.no_grad()
def load_adapter(unet, state, alpha=0.0, train="AB"):
    """Put an adapter of any rank, even of a rank of its own in every layer, in the place of the one `unet` carries.

    The scale becomes alpha / rank, or one where `alpha` is 0. `train`: the factors that train from now on, "AB", "A"
    or "B". Raises ValueError when the layers or their sizes are not this UNet's.
    """
    layers, pairs = dict(lora_layers(unet)), factors(state)
    if odd := sorted(pairs.keys() ^ layers.keys()):
        raise ValueError(
            f"This adapter does not fit: {odd[0]!r} is only on one side. Use the same targets and model."
        )
    for name, layer in layers.items():
        a, b = pairs[name]
        if a.shape[1] != layer.in_features or len(b) != layer.out_features:
            raise ValueError(
                f"{name} got A {tuple(a.shape)} and B {tuple(b.shape)} "
                f"where (r, {layer.in_features}) and ({layer.out_features}, r) belong."
            )
        for factor, value, modules in (("A", a, layer.lora_A), ("B", b, layer.lora_B)):
            module = modules["default"]
            value = value.clone().to(module.weight)
            module.weight = torch.nn.Parameter(value, requires_grad=factor in train)
        layer.r["default"] = len(a)
        layer.scaling["default"] = alpha / len(a) if alpha else 1.0


def lora_layers(unet):
    """[(name, layer)] of the layers that carry an adapter."""
    return [
        (name, layer)
        for name, layer in unet.named_modules()
        if "default" in getattr(layer, "lora_A", ())
    ]


@torch.no_grad()
def add_to_weights(unet, pairs, pristine):
    """W = W0 + B A in every adapted layer. pairs: {layer: (A, B)}; pristine: {layer: W0}, filled at the first call."""
    for name, layer in lora_layers(unet):
        weight = layer.base_layer.weight
        weight.copy_(pristine.setdefault(name, weight.clone()))
        if name in pairs:
            a, b = (factor.to(weight) for factor in pairs[name])
            weight.add_(b @ a)


class WithCore(torch.nn.Linear):
    """Fed-SB's B R in the place of a `Linear` B: `core` R (r, r) trains, `weight` B (out, r) is fixed."""

    def __init__(self, b):
        super().__init__(b.in_features, b.out_features, bias=False, device="meta")
        self.weight = b.weight
        self.core = torch.nn.Parameter(b.weight.new_zeros(b.in_features, b.in_features))

    def forward(self, x):
        """(..., r) -> (..., out)."""
        return F.linear(F.linear(x, self.core), self.weight)


def load_model(unet, state):
    """Load what a run left behind: an adapter of any rank with its scale inside B, or all weights."""
    if any(".lora_" in name for name in state):
        load_adapter(unet, state)
    else:
        load_trainable(unet, state)


def adapter_bytes(state):
    """The bytes of the numbers in `state`, without any header."""
    return sum(tensor.nbytes for tensor in state.values())
