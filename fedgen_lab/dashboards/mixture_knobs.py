"""Lab 04's knobs for a mixture: how much of each person's adapter goes into one picture.

One base in memory, K adapters beside it; a knob changes weights, and nothing is trained or loaded (`lora.mixture`).
"""

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.redrawn import Redrawn
from fedgen_lab.lora.mixture import mix
from fedgen_lab.lora.pipeline import draw


def mixture_knobs(pipeline, names, prompts, seeds):
    """Show a knob for each adapter that `add_adapters` put beside the pipeline's UNet, above pictures of `prompts`."""
    mix(pipeline.unet, {})
    base = draw(pipeline, prompts, seeds)
    knobs = {
        name: controls.knob(f"Weight of {name}", 1.0 if place == 0 else 0.0, -1.0, 2.0, 0.25)
        for place, name in enumerate(names)
    }

    def paint(**weights):
        used = {name: weight for name, weight in weights.items() if weight}
        mix(pipeline.unet, used)
        pictures = draw(pipeline, prompts, seeds)
        said = (
            " + ".join(f"{weight:g} x {name}" for name, weight in used.items()) or "the base alone"
        )
        moved = float((pictures - base).abs().mean())
        rows = [("base model", base), ("mixture", pictures)]
        return charts.strip_html(
            rows, prompts
        ), f"Drawn with {said}: {moved:.3f} per pixel away from the base model."

    return Redrawn(knobs, paint).show()
