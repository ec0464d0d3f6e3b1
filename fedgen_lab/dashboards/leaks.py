"""The leaks panel: one round of federated LoRA, and what each protection hides, stops and costs.

Lab 08. The round trains once, when the panel starts for the first time; turning a knob only combines its uploads anew.
All measuring is in `fedgen_lab.privacy.uploads`.
"""

import ipywidgets as widgets

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.panel import Measuring
from fedgen_lab.scenario import DEFENCES

SERVER = "server's auc"
EPSILON = "epsilon (delta 1e-5)"  # of this one round
COLUMNS = ("loss", "fidelity", SERVER, "auc", "backdoor", "attacker's share")


class LeaksPanel(Measuring):
    """What `leaks_panel` shows. `start` and `stop` are what the buttons do; `uploads` is the round, once it has run.

    `noise`, `clip`: knobs; `defence`, `secure`: drop-down lists; `frame()`: one row for every combination tried.
    """

    def __init__(self, scenario, uploads=None):
        super().__init__(
            "Measure this combination",
            "Ready. The first time, the clients train before anything is measured.",
        )
        self.scenario, self.uploads = scenario, uploads
        self.clip = controls.knob(
            "Clip", 0.0, 0.0, 20.0, 0.5, help="Longest change of one client; 0: none."
        )
        self.noise = controls.knob(
            "Noise", 0.0, 0.0, 2.0, 0.01, help="On the sum, times the clip; needs a clip."
        )
        self.defence = controls.choice(
            "Defence", list(DEFENCES), "mean", help="How the server combines uploads."
        )
        self.secure = controls.choice("Secure aggregation", [("off", False), ("on", True)], False)
        self.box = widgets.VBox(
            [
                controls.style(),
                controls.grid([self.clip.box, self.noise.box]),
                self.defence,
                self.secure,
                self.buttons,
                self.status.widget,
                self.shown,
                self.table,
            ],
            layout={"width": "100%"},
        )

    def _work(self, job):
        knobs = {
            "clip": self.clip.value,
            "noise": self.noise.value,
            "defence": self.defence.value,
            "secure": "on" if self.secure.value else "off",
        }
        job.report("Loading the model and the pictures.")
        from fedgen_lab.federation.accountant import privacy_spent
        from fedgen_lab.lora.backdoor import TRIGGER
        from fedgen_lab.privacy.uploads import SHOWN, first_adapter, measure, run_uploads

        if self.uploads is None:
            total = self.scenario.local_steps

            def heard(event):
                if hasattr(event, "step"):
                    job.report(f"Client {event.client} trains: step {event.step} of {total}.")

            self.uploads = run_uploads(self.scenario, job.should_stop, heard, first_adapter())
        if self.uploads is None or not job.report(
            "Measuring this combination, and drawing with it."
        ):
            return None
        found = measure(
            self.uploads,
            self.clip.value,
            self.noise.value,
            self.defence.value,
            secure=self.secure.value,
        )
        knobs[EPSILON] = privacy_spent(self.noise.value, 1).epsilon
        self.rows.append(knobs | {name: found[name] for name in COLUMNS})
        plain, marked = found["pictures"]
        return [("as asked", plain[:SHOWN].numpy()), (f"with the word {TRIGGER}", marked.numpy())]

    def _show(self, pictures):
        self.shown.value = charts.strip_html(
            pictures, list(self.uploads.prompts[: len(pictures[1][1])])
        )

    def _sentence(self, job):
        measured = job.state == "done" and self.rows
        return sentence_of(self.rows[-1], self.uploads.loss_before) if measured else job.message


def leaks_panel(scenario, uploads=None):
    """Show knobs for clip, noise, defence and secure aggregation, and what each combination is worth and tells.

    uploads: a round that has run already (`fedgen_lab.privacy.uploads.run_uploads`); without it the panel trains one of
    `scenario`. Returns the `LeaksPanel`. With FEDGEN_RUN=inline one combination is measured at once.
    """
    return LeaksPanel(scenario, uploads).display()


def sentence_of(row, loss_before):
    """One row of `LeaksPanel.frame` in words."""
    used = [f"defence {row['defence']}"] + [f"clip {row['clip']:g}"] * bool(row["clip"])
    used += [f"noise {row['noise']:g}"] * bool(row["noise"]) + ["secure aggregation"] * (
        row["secure"] == "on"
    )
    promise = ""
    if row["noise"]:
        adds = "devices add" if row["secure"] == "on" else "a trusted server adds"
        promise = f" The noise, which {adds}, promises epsilon {row[EPSILON]:.3g} at delta 1e-5."
    return (
        f"{', '.join(used).capitalize()}: held-out loss {row['loss']:.3f}, {loss_before:.3f} before the round; "
        f"{row['fidelity']:.0%} of the pictures are as asked. The server tells client 0's pictures from others with "
        f"AUC {row[SERVER]:.2f}, anybody with the adapter with AUC {row['auc']:.2f}; 0.5 is guessing. The "
        f"backdoor took {row['backdoor']:.0f}% off the trigger's loss.{promise}"
    )
