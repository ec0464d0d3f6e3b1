"""Several adapters on one base: personal ones that take turns, and exact mixtures of them.

One frozen model serves many people, since an adapter is small. A mixture adds products: W + sum_k w_k B_k A_k, which no
average of the factors gives; diffusers' `set_adapters` computes it. It is the ground truth that lab 04 holds its
aggregation rules against. arXiv 2307.07146 (personalised content on a shared base); Hu et al., arXiv 2106.09685.
"""

import warnings

import torch

LORA = (".lora_A.default.weight", ".lora_B.default.weight")


def add_adapters(unet, adapters, alpha=None):
    """Put adapters beside each other on one base: `adapters` is {name: state}, a state as `trainable_state` gives it.

    Ranks may differ from adapter to adapter. `alpha`: of all of them, None for alpha = rank. None is active until `mix`
    says so. Raises ValueError when a state is no adapter of this UNet, or a name is taken.
    """
    layers = {name for name, _ in unet.named_modules()}
    for name, state in adapters.items():
        if name in (getattr(unet, "peft_config", None) or {}):
            raise ValueError(
                f"This UNet already has an adapter {name!r}; give the new one another name."
            )
        odd = [
            key
            for key in state
            if not key.endswith(LORA) or key.rsplit(".lora_", 1)[0] not in layers
        ]
        if odd or not state:
            raise ValueError(
                f"The state of {name!r} is no adapter of this UNet: {odd[0] if odd else 'it is empty'}."
            )
        weights = {}
        for (
            key,
            value,
        ) in state.items():  # the scale goes into B, so that what is loaded has a scale of one
            scale = 1.0 if alpha is None or key.endswith(LORA[0]) else alpha / value.shape[1]
            weights[key.replace(".default.weight", ".weight")] = value * scale
        with (
            warnings.catch_warnings()
        ):  # peft warns of the second adapter; several are the point here
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            unet.load_lora_adapter(weights, prefix=None, adapter_name=name)
    unet.requires_grad_(False)
    unet.disable_adapters()


def mix(unet, weights):
    """Activate the mixture sum_k weights[k] B_k A_k of adapters on this UNet; an empty dict gives the base alone.

    One name with weight 1 is that person's own model. Raises ValueError for a name that is not there.
    """
    there = getattr(unet, "peft_config", None) or {}
    if unknown := sorted(set(weights) - set(there)):
        raise ValueError(
            f"No adapter {unknown[0]!r} on this UNet; there are {', '.join(sorted(there)) or 'none'}."
        )
    if not weights:
        return unet.disable_adapters() if there else None
    unet.enable_adapters()
    unet.set_adapters(list(weights), [float(weight) for weight in weights.values()])


def merged(adapters, weights, alpha=None):
    """The mixture as one change a layer: {layer: sum_k weights[k] (alpha / r_k) B_k A_k}, each (out, in)."""
    change = {}
    for name, weight in weights.items():
        for key, a in adapters[name].items():
            if key.endswith(LORA[0]):
                layer = key.removesuffix(LORA[0])
                scale = 1.0 if alpha is None else alpha / len(a)
                product = adapters[name][layer + LORA[1]] @ a  # (out, r) (r, in)
                change[layer] = change.get(layer, 0) + weight * scale * product
    return change


@torch.no_grad()
def add_to_weights(unet, change):
    """Add a change (see `merged`) to the base's own weights; subtract it by adding its negative."""
    for layer, delta in change.items():
        unet.get_submodule(layer).weight += delta
