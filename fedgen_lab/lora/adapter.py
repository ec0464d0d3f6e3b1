"""LoRA adapters on a UNet, through peft: adding one, reading out what travels, putting it back, taking it off.

Labs 02 and 03. LoRA replaces a frozen weight W by W + (alpha / rank) B A with small trainable A and B (Hu et al.,
arXiv 2106.09685). What a client sends is nothing but the parameters that train: A and B, or everything with full
fine-tuning.
"""

import torch

# Attention and feed-forward layers: attention alone at rank 4 was too weak to learn four new objects in 200 steps.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


def add_adapter(unet, rank=8, alpha=None, seed=0, targets=TARGETS):
    """Freeze `unet` and put a trainable LoRA adapter beside its `targets`: A random by `seed`, B zero.

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
        target_modules=list(targets),
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


@torch.no_grad()
def load_trainable(unet, state):
    """Write `state` (see `trainable_state`) back. Raises ValueError when names or shapes are not this UNet's."""
    ours = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    if ours.keys() != state.keys():
        odd = sorted(ours.keys() ^ state.keys())[0]
        raise ValueError(
            f"This state does not fit: {odd!r} is only on one side. Use the same rank, targets and base model on both."
        )
    for name, parameter in ours.items():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)}, expected {tuple(parameter.shape)}."
            )
    for (
        name,
        parameter,
    ) in ours.items():  # only now: a state that does not fit leaves the UNet as it was
        parameter.copy_(state[name])


@torch.no_grad()
def load_adapter(unet, state, alpha=0.0, train="AB"):
    """Put an adapter of any rank, even of a rank of its own in every layer, in the place of the one `unet` carries.

    The scale becomes alpha / rank, or one where `alpha` is 0. `train`: the factors that train from now on, "AB", "A"
    or "B". Raises ValueError when the layers or their sizes are not this UNet's.
    """
    layers = {
        name: layer
        for name, layer in unet.named_modules()
        if "default" in getattr(layer, "lora_A", ())
    }
    given = {name.partition(".lora_")[0] for name in state}
    if odd := sorted(given ^ set(layers)):
        raise ValueError(
            f"This adapter does not fit: {odd[0]!r} is only on one side. Use the same targets and model."
        )
    for name, layer in layers.items():
        a, b = (state[f"{name}.lora_{factor}.default.weight"] for factor in "AB")
        if (a.shape[1], b.shape[0]) != (layer.in_features, layer.out_features) or a.shape[
            0
        ] != b.shape[1]:
            raise ValueError(
                f"{name} got A {tuple(a.shape)} and B {tuple(b.shape)} "
                f"where (r, {layer.in_features}) and ({layer.out_features}, r) belong."
            )
        for module, factor, value in (
            (layer.lora_A["default"], "A", a),
            (layer.lora_B["default"], "B", b),
        ):
            if module.weight.shape == value.shape:
                module.weight.copy_(value)
            else:
                module.weight = torch.nn.Parameter(value.clone().to(module.weight))
            module.weight.requires_grad_(factor in train)
        layer.r["default"], layer.scaling["default"] = len(a), alpha / len(a) if alpha else 1.0


def load_model(unet, state):
    """Load what a run left behind: an adapter of any rank with its scale inside B, or all weights."""
    if any(".lora_" in name for name in state):
        load_adapter(unet, state)
    else:
        load_trainable(unet, state)


def adapter_bytes(state):
    """The bytes of the numbers in `state`, without any header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
