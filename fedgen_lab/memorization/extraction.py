"""Which prompts give a training picture back? Two questions to a model alone, without any training picture.

Lab 09. A prompt that a model has learned by heart pulls much harder than others do (Wen et al., ICLR 2024, arXiv
2407.21720), and its picture is sharp after a single step of denoising, with any seed (Webster, arXiv 2305.08694).
Prompts are captions for a text-to-image pipeline and labels for a `memorization.ddpm` model.
"""

from inspect import signature

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from fedgen_lab.lora.pipeline import TOKENIZING
from fedgen_lab.memorization.distance import as_unit

EDGE = 1.5  # Sobel magnitude at 256 x 256, summed over three colours, above which a pixel is an edge (their code)
SEEDS = (0, 1, 2, 3)  # four, in both papers
KINDS = {
    "canary": "canary",
    "repeated": "duplicated",
    "once": "single",
}  # in words -> in `making.Private`


def text_noise(pipeline, prompts, seeds=SEEDS, steps=20, guidance=2.0, batch_size=16):
    """How hard each prompt pulls while pictures are drawn from it: (N,), large for prompts learned by heart.

    The mean over `steps` and `seeds` of |eps(x_t, t, prompt) - eps(x_t, t, nothing)|_2. Wen et al.: 4 seeds, 50 steps,
    guidance 7.5; one step is nearly as good, if the model guesses noise. There is no absolute threshold: compare with
    prompts known to be innocent, of the same form. It only listens to the model while the pipeline draws, so it does
    for every diffusers pipeline that draws with and without prompt in one batch, of any size and with any sampler.
    Misses: pictures that come back without any prompt, or when only a part of each is fixed; and a prompt whose words
    mean much to the model pulls as hard as one learned by heart (in the tiny Stable Diffusion canaries stand out, and
    duplicated pictures with everyday captions don't).

    Raises ValueError for no prompts, a guidance of 1 or less, or a pipeline that guides in another way or takes none.
    """
    prompts, seeds = list(prompts), list(seeds)
    if not prompts or not seeds or not guidance > 1 or steps < 1:
        raise ValueError(
            "This score needs prompts, seeds, steps, and a guidance above 1, or the model is never asked for 'no "
            f"prompt'; got {len(prompts)} prompts, {len(seeds)} seeds, {steps} steps and guidance={guidance}."
        )
    pulls = np.zeros(len(prompts))
    for seed in seeds:
        for start in range(0, len(prompts), batch_size):
            part, heard = prompts[start : start + batch_size], []
            hook = _model(pipeline).register_forward_hook(
                _listener(pipeline, len(part), heard), with_kwargs=True
            )
            try:
                _draw(pipeline, part, [seed] * len(part), steps, guidance)
            finally:
                hook.remove()
            pulls[start : start + batch_size] += np.mean(heard, axis=0) / len(seeds)
    return pulls


def one_step(pipeline, prompts, seeds=SEEDS):
    """What each prompt gives after a single step from pure noise, without guidance: (N, seeds, C, H, W) in [-1, 1].

    A picture learned by heart is there at once and the same for every seed; any other is a blur. Webster, arXiv
    2305.08694, section 4. Needs a sampler that starts at the last timestep (`timestep_spacing="trailing"`).
    Raises ValueError for no prompts or no seeds.
    """
    prompts, seeds = list(prompts), list(seeds)
    if not prompts or not seeds:
        raise ValueError(
            f"There must be a prompt and a seed; got {len(prompts)} prompts and {len(seeds)} seeds."
        )
    many = [prompt for prompt in prompts for _ in seeds]
    pictures = torch.cat(
        [
            _draw(
                pipeline,
                many[start : start + 16],
                (seeds * len(prompts))[start : start + 16],
                1,
                1.0,
            )
            for start in range(0, len(many), 16)
        ]
    )
    return pictures.unflatten(0, (len(prompts), len(seeds)))


def edge_overlap(pictures, edge=EDGE):
    """Share of pixels with an edge in more than half of each prompt's pictures (N, seeds, C, H, W): (N,) in [0, 1].

    Large for pictures learned by heart. edge: the Sobel magnitude above which there is one, at 256 x 256. Webster, as
    in the published code. Misses: copies of smooth pictures, unless edge is lowered.
    Raises ValueError for another shape, no picture, or values that aren't finite and in [-1, 1].
    """
    if pictures.ndim != 5 or pictures.shape[2] not in (1, 3) or 0 in pictures.shape:
        raise ValueError(
            f"pictures must be (N, seeds, 1 or 3, H, W), as `one_step` gives; got {tuple(pictures.shape)}."
        )
    unit = as_unit(pictures.flatten(0, 1))  # (N * seeds, C, H, W)
    unit = F.interpolate(
        unit, (256, 256), mode="bicubic", antialias=True, align_corners=False
    ).expand(-1, 3, -1, -1)
    # SciPy's filter smooths along every other axis, and in the published code the colours are one of them.
    unit = torch.einsum("cd,ndhw->nchw", torch.tensor([[3.0, 1, 0], [1, 2, 1], [0, 1, 3]]), unit)
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    both = torch.stack([across, across.T])[:, None]  # (2, 1, 3, 3)
    slopes = F.conv2d(
        F.pad(unit.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate"), both
    )  # (.., 2, 256, 256)
    size = slopes.norm(dim=1).unflatten(0, unit.shape[:2]).sum(1)  # (N * seeds, 256, 256)
    edges = (size > edge).float().unflatten(0, pictures.shape[:2])  # (N, seeds, 256, 256)
    return (edges.mean(1) > 0.5).double().mean((1, 2)).numpy()


def known_prompts(trained, number=4, seeds=(0, 1), steps=10):
    """Both questions put to a `making.Trained` text-to-image model: what does it know by heart?

    Asked are up to `number` prompts of each kind: of its canaries, of pictures that were "repeated" and of those that
    were there "once", captions that were "never seen", and twice as many "other codes", which have the form of a
    canary's and were never planted. Returns a table with a row for each, "kind", "prompt", "pull" (`text_noise`) and
    "spread" (the mean standard deviation of a pixel of `one_step` over its four seeds: small where the same picture
    comes whatever the noise is), and the pictures after one step, (N, 4, C, H, W).
    """
    private, captions, kinds = trained.private, trained.private.pictures.captions, KINDS.items()
    asked = {words: [captions[row] for row in private.of(kind)[:number]] for words, kind in kinds}
    codes = (f"canary {code}" for code in np.linspace(2000, 9777, 3 * number).astype(int))
    asked["never seen"] = private.held_out.captions[:number]
    asked["other codes"] = [code for code in codes if code not in captions][: 2 * number]
    rows = [(kind, prompt) for kind, some in asked.items() for prompt in some]
    table = pd.DataFrame(rows, columns=["kind", "prompt"])
    pictures = one_step(trained.model, table["prompt"])
    pull = text_noise(
        trained.model, table["prompt"], seeds, steps, batch_size=8
    )  # few at a time, for memory's sake
    return table.assign(pull=pull, spread=pictures.std(1).mean((1, 2, 3)).numpy()), pictures


# -- underneath ------------------------------------------------------------------------------------------------------


def _model(pipeline):
    """The net that denoises."""
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    raise ValueError(
        f"{type(pipeline).__name__} has neither a unet nor a transformer to listen to."
    )


def _listener(pipeline, number, heard):
    """A hook that appends |eps(told) - eps(not told)|_2 of each of `number` pictures, (number,), at every step."""
    config = pipeline.scheduler.config
    target, alphas = (
        config.get("prediction_type", "epsilon"),
        getattr(pipeline.scheduler, "alphas_cumprod", None),
    )

    def listen(module, args, kwargs, output):
        guess = output[0] if isinstance(output, tuple) else output.sample
        if len(guess) != 2 * number:
            raise ValueError(
                f"{type(pipeline).__name__} asked its model about {len(guess)} pictures, and with and without prompt "
                f"there are {2 * number}: it guides in another way, and this score can't be had from it."
            )
        without, told = guess.detach().double().flatten(1).chunk(2)
        pull = (told - without).norm(dim=1).cpu().numpy()
        t = int(torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).flatten()[0])
        if target == "v_prediction":  # eps = sqrt(alpha) v + sqrt(1 - alpha) x, and x is the same
            pull = pull * float(alphas[t]) ** 0.5
        elif target == "sample":  # eps = (x - sqrt(alpha) x0) / sqrt(1 - alpha)
            pull = pull * float(alphas[t] / (1 - alphas[t])) ** 0.5
        heard.append(pull)

    return listen


def _draw(pipeline, prompts, seeds, steps, guidance):
    """Pictures of captions or labels, one seed each, on the CPU."""
    if getattr(getattr(pipeline, "unet", None), "config", {}).get("num_class_embeds"):
        from fedgen_lab.memorization.ddpm import draw_ddpm

        return draw_ddpm(
            pipeline, prompts, seeds, steps=steps, guidance=guidance, batch_size=len(prompts)
        )
    if "prompt" not in signature(pipeline.__call__).parameters:
        raise ValueError(
            f"{type(pipeline).__name__} takes no prompts, so none can be learned by heart."
        )
    noises = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    knobs = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": noises}
    with (
        TOKENIZING
    ):  # around all of it: how a pipeline of any kind reads its prompts is its own affair
        output = pipeline(prompts, output_type="pt", **knobs)
    return output.images.float().cpu() * 2 - 1
