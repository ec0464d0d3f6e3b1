"""The two kinds of live run behind lab 03's dashboard: on drawn sprites, and on a learner's own pictures.

Lab 03. Each takes a `LiveRun` to tell what happened and a `Job` that says when to stop; all science is in
`fedgen_lab.lora`, which is imported here because it takes some seconds.
"""

import warnings


def run_sprites(run, job):
    """Federated LoRA on sprites; at its end every client's last upload draws the strip too."""
    outcome, dealt = federated(run, job)
    draw_each(run, job, dealt, outcome.client_states, "client {}")


def run_own(run, job):
    """Federated LoRA on a learner's own pictures, then the same training without any exchange, to compare with."""
    from fedgen_lab.lora.baselines import run_local_only

    _, dealt = federated(run, job)
    run.pictures["your pictures"] = dealt.strip_pictures.images.numpy()
    if job.should_stop():
        return
    job.report("Local only: every client now trains alone.")
    local = run_local_only(
        run.scenario, job.should_stop, lambda event: job.report("Local only. " + run.hear(event))
    )
    if len(local.rounds) > 1:
        run.rivals["local only"] = dict(
            zip(local.rounds["round"], local.rounds["loss"], strict=True)
        )
    draw_each(run, job, dealt, local.client_states, "client {} alone")


def read_pictures(scenario):
    """A learner's own pictures as the scenario names them, read afresh, and what `cut_captions` says of their captions.

    Raises what `read_own` raises."""
    from fedgen_lab.lora.data import own_pictures, read_own
    from fedgen_lab.lora.pipeline import cut_captions

    read_own.cache_clear()  # the learner may have mended the folder since
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # what was left out is in the pictures' attributes; a thread must not print
        pictures = own_pictures(scenario)
        return pictures, cut_captions(pictures.captions, scenario.base_model)


def federated(run, job):
    """A run of `run_federated`, heard by `run`. Returns (its outcome, the dealt pictures)."""
    job.report("Loading the model and the pictures.")
    from fedgen_lab.lora.data import deal
    from fedgen_lab.lora.export import provenance_of
    from fedgen_lab.lora.federated import run_federated

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dealt = deal(run.scenario)
    run.prompts = list(dealt.strip)
    outcome = run_federated(
        run.scenario, job.should_stop, lambda event: job.report(run.hear(event))
    )
    run.refused = [refusal.reason for refusal in outcome.refused]
    if run.rounds and run.scenario.method == "lora":
        run.adapter, spent = outcome.state, outcome.spent and outcome.spent[:2]
        run.provenance = provenance_of(run.scenario, run.rounds, spent)
    return outcome, dealt


def draw_each(run, job, dealt, states, row):
    """Draw the strip with each client's parameters, of whatever rank; a stop ends it between two denoising steps."""
    from fedgen_lab.federation.run import Stopped
    from fedgen_lab.lora.adapter import load_model
    from fedgen_lab.lora.federated import draw_strip, prepare

    def stop_if_asked():
        if job.should_stop():
            raise Stopped

    try:
        stop_if_asked()
        pipeline = prepare(run.scenario)
        for client, state in sorted(states.items()):
            job.report(f"Drawing: {row.format(client)}.")
            load_model(pipeline.unet, state)
            run.pictures[row.format(client)] = draw_strip(
                pipeline, dealt, on_step=stop_if_asked
            ).numpy()
    except Stopped:
        pass
