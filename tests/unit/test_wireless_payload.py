"""The sizes of the full-size model are those of its architecture, and the bytes of an upload those of the real one."""

import pytest
import torch

from fedgen_lab.federation import SERVER
from fedgen_lab.lora.upload import pack
from fedgen_lab.scenario import Scenario
from fedgen_lab.wireless import payload as sizes
from fedgen_lab.wireless.payload import Payload, adapter, trace_of, whole_unet


def test_the_sizes_of_stable_diffusion_are_counted_on_its_architecture():
    from diffusers import UNet2DConditionModel

    with torch.device(
        "meta"
    ):  # the library's defaults are Stable Diffusion 1.5, but for these two; no memory is taken
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    weights = list(unet.parameters())
    assert sum(p.numel() for p in weights) == sizes.UNET_NUMBERS
    assert sum(len(p) if p.dim() > 1 else 1 for p in weights) == sizes.UNET_ROWS
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0")
    layers = [module for name, module in unet.named_modules() if name.endswith(ends)]
    sides = [
        sum(getattr(layer, side) for layer in layers) for side in ("in_features", "out_features")
    ]
    assert (len(layers), *sides) == (sizes.LAYERS, sizes.INPUTS, sizes.OUTPUTS)


def test_an_adapter_of_rank_4_is_a_thousandth_of_the_unet():
    assert adapter(4).upload_bytes() == 3_188_736
    assert whole_unet().upload_bytes() / adapter(4).upload_bytes() == pytest.approx(1078, abs=1)
    assert (
        whole_unet().step_flops / adapter(4).step_flops < 1.5
    )  # but its steps cost nearly as much


@pytest.mark.parametrize("keep", [0.01, 0.1])
@pytest.mark.parametrize("upload", ["float32", "int8", "top-k"])
def test_counted_bytes_are_those_of_a_packed_upload(upload, keep, monkeypatch):
    monkeypatch.setattr(sizes, "KEEP", keep)
    generator = torch.Generator().manual_seed(1)
    trained = {
        "a": torch.randn(4, 30, generator=generator),
        "b": torch.randn(50, 4, generator=generator),
    }
    received = {name: torch.zeros_like(value) for name, value in trained.items()}
    from flwr.app import RecordDict

    record = pack(trained, received, Scenario(upload=upload, keep=keep), RecordDict(), seed=0)
    packed = sum(array.numpy().nbytes for array in record.values())
    assert Payload(320, 54, 1.0).upload_bytes(upload) == packed


def test_a_trace_has_every_client_down_and_up_in_every_round():
    frame = trace_of(adapter(8), 3, rounds=2, pictures=10, upload="int8").frame()
    assert (
        len(frame) == 2 * 3 * 2
        and (frame["bytes"][frame.sender == SERVER] == adapter(8).upload_bytes()).all()
    )
    up = frame[frame.sender != SERVER]
    assert (up["bytes"] == adapter(8).upload_bytes("int8")).all() and (
        up.flops == 10 * sizes.LORA_STEP_FLOPS
    ).all()


def test_nonsense_is_refused_by_name():
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1; got 0"):
        adapter(0)
    with pytest.raises(ValueError, match="upload must be one of float32, int8, top-k; got 'zip'"):
        adapter(1).upload_bytes("zip")
