"""Several adapters on one base: personal ones that take turns, and exact mixtures of them.

One frozen model serves many people, since an adapter is small. A mixture adds products: W + sum_k w_k B_k A_k, which no
average of the factors gives; diffusers' `set_adapters` computes it. It is the ground truth that lab 04 holds its
aggregation rules against. arXiv 2307.07146 (personalised content on a shared base); Hu et al., arXiv 2106.09685.
"""

import warnings

LORA = (".lora_A.default.weight", ".lora_B.default.weight")


def add_adapters(unet, adapters):
    """Put adapters beside each other on one base: `adapters` is {name: state}, a state as `trainable_state` gives it.

    Ranks may differ from adapter to adapter; each has a scale of one. None is active until `mix` says so. Raises
    ValueError when a state is no adapter of this UNet, or a name is taken.
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
        weights = {key.replace(".default.weight", ".weight"): value for key, value in state.items()}
        # peft warns of the second adapter; several are the point here.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            unet.load_lora_adapter(weights, prefix=None, adapter_name=name)
    unet.requires_grad_(False)
    unet.disable_adapters()


def mix(unet, weights):
    """Activate the mixture sum_k weights[k] B_k A_k of adapters on this UNet; an empty dict gives the base alone.

    One name with weight 1 is that person's own model. Raises ValueError for a name that is not there.
    """
    names = getattr(unet, "peft_config", None) or {}
    if unknown := sorted(set(weights) - set(names)):
        raise ValueError(
            f"No adapter {unknown[0]!r} on this UNet; there are {', '.join(sorted(names)) or 'none'}."
        )
    if weights:
        unet.enable_adapters()
        unet.set_adapters(list(weights), [float(weight) for weight in weights.values()])
    elif names:
        unet.disable_adapters()
