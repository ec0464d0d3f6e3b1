"""Claims about the aggregation rules, on random factors: what is exact, what is not, and by how much."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from fedgen_lab.lora import rules
from fedgen_lab.lora.adapter import add_adapter, load_trainable, trainable_state

SHAPES = {"down.to_q": (16, 24), "mid.to_out.0": (24, 8), "up.ff": (40, 12)}  # out, in


def random_adapter(seed, rank=4, shapes=None):
    generator = torch.Generator().manual_seed(seed)
    return rules.adapter_of(
        {
            layer: (
                torch.randn(rank, n, generator=generator),
                torch.randn(out, rank, generator=generator),
            )
            for layer, (out, n) in (shapes or SHAPES).items()
        }
    )


def random_clients(seed, ranks=(4, 4, 4)):
    weights = torch.rand(len(ranks), generator=torch.Generator().manual_seed(seed)) + 0.2
    return [random_adapter(100 * seed + k, r) for k, r in enumerate(ranks)], (
        weights / weights.sum()
    ).tolist()


def dense(state):
    return (
        {layer: b.double() @ a.double() for layer, (a, b) in rules.factors(state).items()}
        if state
        else {}
    )


def mean_change(states, weights):
    changes = [dense(state) for state in states]
    return {
        layer: sum(w * c[layer] for w, c in zip(weights, changes, strict=True))
        for layer in changes[0]
    }


def assert_same(got, wanted, rtol=1e-5):
    assert got.keys() == wanted.keys()
    for layer in wanted:
        assert float((got[layer] - wanted[layer]).norm() / wanted[layer].norm()) < rtol, layer


@pytest.fixture(params=[1, 2, 3], ids="instance{}".format)
def instance(request):
    return random_clients(request.param)


def test_what_averaging_factors_misses_is_their_covariance(instance):
    states, weights = instance
    wanted, average = mean_change(states, weights), dense(rules.fedit(states, weights).adapter)
    for layer in SHAPES:
        a, b = zip(*(rules.factors(state)[layer] for state in states), strict=True)
        pairs = [(i, j) for j in range(len(a)) for i in range(j)]
        covariance = sum(
            weights[i] * weights[j] * (b[i] - b[j]).double() @ (a[i] - a[j]).double()
            for i, j in pairs
        )
        torch.testing.assert_close(wanted[layer] - average[layer], covariance, rtol=1e-4, atol=1e-5)


def test_the_bias_is_that_difference_over_the_mean_change(instance):
    states, weights = instance
    wanted, average = mean_change(states, weights), dense(rules.fedit(states, weights).adapter)
    for layer, bias in rules.bias_by_layer(states, weights).items():
        assert bias == pytest.approx(
            float((wanted[layer] - average[layer]).norm() / wanted[layer].norm()), rel=1e-4
        )
        assert bias > 0.1


def test_equal_clients_and_shared_factors_have_no_bias(instance):
    states, weights = instance
    assert max(rules.bias_by_layer([states[0]] * 3, weights).values()) < 1e-4
    shared = [{**state, **rules.part(states[0], "A")} for state in states]
    assert max(rules.bias_by_layer(shared, weights).values()) < 1e-4


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 2, 8)], ids=str)
def test_flora_is_exact_for_any_ranks(ranks):
    states, weights = random_clients(5, ranks)
    merged = rules.flora(states, weights)
    assert merged.adapter == {}, "everyone starts afresh"
    assert_same(dense(merged.into_base), mean_change(states, weights))
    assert rules.factors(merged.into_base)["up.ff"][0].shape[0] == sum(ranks)


@pytest.mark.parametrize("which", ["A", "B"], ids=["rolora-even", "ffa-and-rolora-odd"])
def test_averaging_one_factor_while_the_other_is_shared_is_exact(instance, which):
    states, weights = instance
    fixed = rules.part(states[0], "B" if which == "A" else "A")
    uploads = [rules.part(state, which) for state in states]
    rule = rules.rolora if which == "A" else rules.ffa
    merged = {**fixed, **rule(uploads, weights).adapter}
    assert_same(dense(merged), mean_change([{**fixed, **upload} for upload in uploads], weights))


def test_fed_sb_is_exact(instance):
    generator = torch.Generator().manual_seed(9)
    frames = rules.factors(
        rules.frame({k: torch.randn(s, generator=generator) for k, s in SHAPES.items()}, 4)
    )
    cores = [{layer: torch.randn(4, 4, generator=generator) for layer in SHAPES} for _ in range(3)]
    weights = instance[1]

    def change(core):
        return {
            layer: b.double() @ core[layer].double() @ a.double()
            for layer, (a, b) in frames.items()
        }

    wanted = {
        layer: sum(w * change(c)[layer] for w, c in zip(weights, cores, strict=True))
        for layer in SHAPES
    }
    assert_same(change(rules.fed_sb(cores, weights).adapter), wanted)
    for a, b in frames.values():
        torch.testing.assert_close(a @ a.T, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(b.T @ b, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("total", [3, 60], ids="rank{}".format)
def test_the_svd_through_qr_is_the_svd_of_the_product(total):
    generator = torch.Generator().manual_seed(total)
    a = torch.randn(total, 24, generator=generator, dtype=torch.float64)
    b = torch.randn(16, total, generator=generator, dtype=torch.float64)
    u, s, vt = rules.svd(a, b)
    torch.testing.assert_close(s, torch.linalg.svdvals(b @ a)[: len(s)], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close((u * s) @ vt, b @ a)


def test_flexlora_never_forms_the_product(instance, monkeypatch):
    states, weights = instance
    largest, real = [0], torch.linalg.svd

    def watched(matrix, **rest):
        largest[0] = max(largest[0], *matrix.shape)
        return real(matrix, **rest)

    big = {"layer": (500, 300)}
    monkeypatch.setattr(torch.linalg, "svd", watched)
    rules.flexlora([random_adapter(k, 4, big) for k in range(3)], weights)
    assert largest[0] == 12


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 4, 8)], ids=str)
def test_flexlora_is_the_best_adapter_of_its_rank_and_exact_when_nothing_is_cut(ranks):
    states, weights = random_clients(6, ranks)
    wanted = mean_change(states, weights)
    assert_same(dense(rules.truncated(rules.stacked(states, weights), sum(ranks))), wanted)
    cut = rules.flexlora(states, weights).adapter
    for layer, change in dense(cut).items():
        u, s, vt = torch.linalg.svd(wanted[layer], full_matrices=False)
        best = (u[:, : max(ranks)] * s[: max(ranks)]) @ vt[: max(ranks)]
        torch.testing.assert_close(change, best, rtol=1e-4, atol=1e-4)


def test_fedex_is_exact_and_its_residual_has_the_rank_it_says(instance):
    states, weights = instance
    merged = rules.fedex(states, weights)
    total = {
        layer: change + dense(merged.into_base)[layer]
        for layer, change in dense(merged.adapter).items()
    }
    assert_same(total, mean_change(states, weights))
    assert all(a.shape[0] <= 2 * 4 for a, _ in rules.factors(merged.into_base).values())
    assert rules.fedex(states[:1], [1.0]).into_base == {}, "one client alone leaves nothing over"


def test_the_ridge_correction_comes_closer_than_plain_averaging(instance, monkeypatch):
    states, weights = instance
    wanted = mean_change(states, weights)
    plain, fair = (dense(rule(states, weights).adapter) for rule in (rules.fedit, rules.lora_fair))
    for layer in SHAPES:
        assert (fair[layer] - wanted[layer]).norm() < (plain[layer] - wanted[layer]).norm()
    monkeypatch.setattr(rules.LoRAFair, "ridge", 1e-9)
    _, b = rules.factors(rules.lora_fair(states, weights).adapter)["up.ff"]
    a = rules.factors(rules.mean(states, weights))["up.ff"][0].double()
    best = wanted["up.ff"] @ torch.linalg.pinv(
        a
    )  # least squares, which is what a vanishing ridge gives
    torch.testing.assert_close(b.double(), best, rtol=1e-4, atol=1e-4)


def test_hetlora_pads_weighs_by_norm_and_prunes_what_is_idle():
    small, large = random_adapter(1, 2), random_adapter(2, 4)
    sizes = [
        sum(float((b @ a).square().sum()) for a, b in rules.factors(state).values()) ** 0.5
        for state in (small, large)
    ]
    first, second = (size / sum(sizes) for size in sizes)
    (a_small, b_small), (a_large, b_large) = (rules.factors(s)["up.ff"] for s in (small, large))
    a, b = rules.factors(rules.hetlora([small, large], [0.5, 0.5]).adapter)["up.ff"]
    torch.testing.assert_close(a[2:], second * a_large[2:])
    torch.testing.assert_close(b[:, :2], first * b_small + second * b_large[:, :2])
    by_norm = rules.hetlora(
        [rules.adapter_of({k: (a, 0 * b) for k, (a, b) in rules.factors(small).items()}), large],
        [0.5, 0.5],
    ).adapter
    assert_same(dense(by_norm), dense(large)), "a client whose change is zero has no say"
    idle = {
        k: (a * torch.tensor([[1.0], [1], [1e-4], [1e-4]]), b)
        for k, (a, b) in rules.factors(large).items()
    }
    assert rules.pruned(rules.adapter_of(idle), 0.01) == 2 and rules.pruned(large, 0.01) == 4


@pytest.mark.parametrize("alpha", [0.0, 1.0, 8.0], ids="alpha{}".format)
def test_folding_keeps_the_change_and_unfolding_undoes_it(alpha):
    state = random_adapter(3, 4)
    folded, scale = rules.fold(state, alpha), (alpha or 4) / 4
    assert_same(dense(folded), {layer: scale * change for layer, change in dense(state).items()})
    assert_same(dense(rules.unfold(folded, alpha)), dense(state))
    back = rules.resized(rules.resized(state, 9), 4)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_a_factor_without_its_partner_is_named():
    state = random_adapter(1)
    with pytest.raises(ValueError, match="mid.to_out.0"):
        rules.factors(
            {name: t for name, t in state.items() if name != "mid.to_out.0.lora_B.default.weight"}
        )


def test_truncating_small_ranks_makes_the_largest_clients_rank_collapse():
    """Clients of rank 2 only ever see two directions: averaged with theirs, all others fade away."""
    generator = torch.Generator().manual_seed(0)
    wanted = {"layer": torch.randn(24, 24, generator=generator)}
    ranks, state = (2,) * 5 + (4,) * 3 + (8,) * 2, None
    energies = []
    for _ in range(12):
        uploads = []
        for rank in (
            ranks
        ):  # every client takes a step towards the same full-rank change, within its own rank
            start = dense(state)["layer"] if state else torch.zeros(24, 24, dtype=torch.float64)
            u, s, vt = torch.linalg.svd(
                0.5 * start + 0.5 * wanted["layer"].double(), full_matrices=False
            )
            uploads.append(rules.adapter_of({"layer": (vt[:rank], u[:, :rank] * s[:rank])}))
        state = rules.flexlora(uploads, [0.1] * 10).adapter
        energies.append(float(rules.rank_energy(state)[1]))
    full = torch.linalg.svdvals(wanted["layer"].double()).square()
    assert energies[-1] > float(full[:2].sum() / full[:8].sum()) + 0.1
    assert rules.rank_energy(state).tolist() == sorted(rules.rank_energy(state).tolist())


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).requires_grad_(False)


@pytest.fixture
def on_a_unet(unet):
    """Two clients' adapters of rank 3 for a real UNet, and what such a UNet computes."""
    add_adapter(unet, 3)
    shapes = {
        layer: (b.shape[0], a.shape[1])
        for layer, (a, b) in rules.factors(trainable_state(unet)).items()
    }
    unet.unload_lora()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)

    @torch.no_grad()
    def output():
        return unet(inputs[0], torch.tensor([10, 500]), encoder_hidden_states=inputs[1]).sample

    yield unet, [random_adapter(k, 3, shapes) for k in (1, 2)], output
    if getattr(unet, "peft_config", None):
        unet.unload_lora()


def _peft_names(state):
    return {name.replace(".default.", "."): tensor for name, tensor in state.items()}


def test_two_adapters_set_beside_each_other_draw_what_flora_computes_and_fedit_does_not(on_a_unet):
    unet, states, output = on_a_unet
    for name, state in zip(("one", "two"), states, strict=True):
        unet.load_lora_adapter(_peft_names(state), prefix=None, adapter_name=name)
    unet.set_adapters(["one", "two"], [0.3, 0.7])
    truth = output()
    unet.unload_lora()

    def drawn_with(state):
        unet.load_lora_adapter(_peft_names(state), prefix=None, adapter_name="default")
        result = output()
        unet.unload_lora()
        return result

    weights = [0.3, 0.7]
    torch.testing.assert_close(
        drawn_with(rules.flora(states, weights).into_base), truth, rtol=0, atol=2e-3
    )
    torch.testing.assert_close(
        drawn_with(rules.truncated(rules.stacked(states, weights), 6)), truth, rtol=0, atol=2e-3
    )
    assert (drawn_with(rules.fedit(states, weights).adapter) - truth).abs().max() > 0.1


@pytest.mark.parametrize("how", ["cat", "svd"])
@pytest.mark.parametrize("alpha", [3, 6], ids="alpha{}".format)
def test_pefts_own_merges_agree(how, alpha):
    """`cat` is FLoRA, `svd` is FlexLoRA."""
    import peft
    from packaging import version
    from peft import LoraConfig, PeftModel, get_peft_model

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(24, 16)

    config = LoraConfig(r=3, lora_alpha=alpha, target_modules=["layer"])
    model: PeftModel = get_peft_model(Net(), config, adapter_name="one")
    model.add_adapter("two", config)
    layer, states = model.base_model.model.layer, []
    for seed, name in enumerate(("one", "two")):
        state = random_adapter(seed, 3, {"layer": (16, 24)})
        ((a, b),) = rules.factors(state).values()
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = a.clone(), b.clone()
        states.append(rules.fold(state, alpha))
    weights, rank = [0.3, 0.7], None if how == "cat" else 4
    options = {} if how == "cat" else {"svd_rank": rank}
    model.base_model.add_weighted_adapter(
        ["one", "two"], weights, "merged", combination_type=how, **options
    )
    ours = (
        rules.flora(states, weights).into_base
        if how == "cat"
        else rules.truncated(rules.stacked(states, weights), rank)
    )
    theirs = layer.get_delta_weight("merged").double()
    if how == "svd" and version.parse(peft.__version__) < version.parse("0.21"):
        theirs /= alpha / 3  # older ones scale twice
    torch.testing.assert_close(theirs, dense(ours)["layer"], rtol=1e-3, atol=1e-4)


def test_a_trained_state_goes_through_factors_and_back(on_a_unet):
    unet, _, _ = on_a_unet
    add_adapter(unet, 3)
    state = trainable_state(unet)
    back = rules.adapter_of(rules.factors(state))
    assert back.keys() == state.keys()
    load_trainable(unet, back)
