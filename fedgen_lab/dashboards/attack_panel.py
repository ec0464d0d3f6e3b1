"""The attack panel: what the server reads off smashed data as the cut moves deeper and protections are turned up.

Lab 06. Real pictures stand above what the server makes of them, with the label it read. The attacks themselves are in
`fedgen_lab.privacy.smashed`; the training under protection is the U of `fedgen_lab.split`.
"""

import ipywidgets as widgets

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.panel import Measuring
from fedgen_lab.pictures.domains import OFFLINE
from fedgen_lab.privacy.watched import attack_run, watched_run
from fedgen_lab.scenario import profile
from fedgen_lab.split.scenario import GanScenario

SHOWN = 10  # pictures side by side
NUMBER = 96  # secret pictures under attack
STEPS = {"test": 40}  # of each of the attacker's three readers; 250 where the profile isn't listed
NEVER_SENT = "real, never sent"
REBUILT = "rebuilt by the server"


class AttackPanel(Measuring):
    """What `attack_panel` shows. `start` and `stop` are what the buttons do; `leak` is the newest attack's result.

    `frame()`: one row for each attack so far. `depth`, `noise`, `decorrelation`, `iterations`: knobs; `bits`,
    `auxiliary`: drop-down lists.
    """

    def __init__(self, domain, size, seed, steps):
        super().__init__(
            "Start the attack",
            "Ready. The attack takes some ten seconds; every attack adds a row to the table.",
        )
        self.domain, self.size, self.seed, self.steps = domain, size, seed, steps
        self.leak, self.label_names = None, ()
        self.depth = controls.knob(
            "Depth",
            1,
            1,
            4,
            help="Blocks before the cut. HuSCF-GAN cuts at 1 or 2; its U lets no device hold 3.",
        )
        self.noise = controls.knob(
            "Noise", 0.0, 0.0, 8.0, 0.25, help="Times the spread of the smashed data."
        )
        self.decorrelation = controls.knob(
            "Decorrelation",
            0.0,
            0.0,
            10.0,
            0.5,
            help="Weight of the distance-correlation penalty; it acts by training.",
        )
        self.iterations = controls.knob(
            "Iterations",
            10,
            0,
            100,
            10,
            help="Training before the attack; 0: the heads as the server deals them out.",
        )
        self.bits = controls.choice(
            "Bits", [("32", 32), ("8", 8)], 32, help="Of each number that is sent."
        )
        self.auxiliary = controls.choice("Server has", [name for name in OFFLINE if name != domain])
        self.auxiliary.value = "runes" if domain != "runes" else "letters"
        self.table_button = controls.button("Show attacks as table", self._toggle)
        self.table_button.disabled = True
        self.table.layout.display = "none"
        knobs = [self.depth.box, self.noise.box, self.decorrelation.box, self.iterations.box]
        self.box = widgets.VBox(
            [
                controls.style(),
                controls.grid(knobs),
                controls.grid([self.bits, self.auxiliary]),
                self.buttons,
                self.status.widget,
                self.shown,
                self.table_button,
                self.table,
            ],
            layout={"width": "100%"},
        )

    def scenario(self):
        """The run that the knobs describe: two devices that hold pictures of this domain, one round."""
        return GanScenario(
            num_clients=2,
            domains=self.domain,
            size=self.size,
            rounds=1,
            iterations=max(1, self.iterations.value),
            cuts="0000" if self.depth.value == 1 else "1010",
            noise=self.noise.value,
            bits=self.bits.value,
            decorrelation=self.decorrelation.value,
            pictures_per_client=150,
            seed=self.seed,
        )

    def _work(self, job):
        self.shown.value = ""  # the pictures of an earlier attack say nothing about this one
        job.report("Dealing out the pictures.")
        scenario, auxiliary = self.scenario(), self.auxiliary.value
        iterations, depth = self.iterations.value, self.depth.value
        knobs = {
            "server has": auxiliary,
            "depth": depth,
            "noise": scenario.noise,
            "bits": scenario.bits,
            "decorrelation": scenario.decorrelation,
            "iterations": iterations,
        }

        def heard(_, iteration):
            job.report(
                f"Two devices train with this protection: iteration {iteration} of {iterations}."
            )

        watched = watched_run(scenario, 0, iterations == 0, job.should_stop, heard)
        if watched is None:
            return None
        leak = attack_run(watched, scenario, auxiliary, depth, NUMBER, self.steps, job.report)
        if job.should_stop():
            return None
        self.leak, self.label_names = leak, watched.dealt.held_out[0].label_names
        self.rows.append(knobs | numbers(leak))
        return leak

    def _show(self, leak):
        self.shown.value = leak_html(leak, self.label_names)
        self.table_button.disabled = False

    def _sentence(self, job):
        if job.state == "done":
            return leak_sentence(job.result, self.rows[-1])
        if job.state == "cancelled":
            return "Stopped. An attacker that is half taught proves nothing: no row was added."
        return job.message

    def _toggle(self):
        hidden = self.table.layout.display == "none"
        self.table.layout.display = "" if hidden else "none"
        self.table_button.description = f"{'Hide' if hidden else 'Show'} attacks as table"


def attack_panel(domain="digits", size="lab14", seed=0, steps=None):
    """Show knobs for the cut and the protections, and what the server learns. Returns the `AttackPanel`.

    domain: whose pictures the attacked device holds, a grey one's name for `fedgen_lab.pictures.domains.load_domain`.
    steps: of each of the attacker's readers; 250 unless given. With FEDGEN_RUN=inline one attack runs at once.
    """
    return AttackPanel(domain, size, seed, steps or STEPS.get(profile(), 250)).display()


def numbers(leak):
    """The figures of one attack, as a row of a table.

    Shares of labels read off the generator's and the discriminator's side; mean squared error of the rebuilt pictures,
    and that of the mean picture.
    """
    return {
        "labels, G": leak.label_accuracy["generator"],
        "labels, D": leak.label_accuracy["discriminator"],
        "error": leak.mse,
        "mean picture's": leak.baseline_mse,
    }


def leak_sentence(leak, knobs):
    """What one attack learned, in words. knobs: its row of `AttackPanel.frame`."""
    used = [f"noise {knobs['noise']:g}"] if knobs["noise"] else []
    used += ["8 bits"] if knobs["bits"] == 8 else []
    used += [f"decorrelation {knobs['decorrelation']:g}"] if knobs["decorrelation"] else []
    number, share = leak.depth, leak.mse / leak.baseline_mse
    verdict = (
        "the pictures are rebuilt"
        if share < 0.25
        else "the pictures show through"
        if share < 0.7
        else "the pictures stay hidden"
    )
    unused = knobs["decorrelation"] and not knobs["iterations"]
    labels, plural = leak.label_accuracy, "s" if number > 1 else ""
    return (
        f"{number} block{plural} before the cut, {' and '.join(used) or 'no protection'}: the server "
        f"reads {labels['generator']:.0%} of the labels off the generator's side and {labels['discriminator']:.0%} off "
        f"the discriminator's (guessing gives 10%). Its pictures are off by {leak.mse:.3f}, the mean picture by "
        f"{leak.baseline_mse:.3f}: {verdict}."
        + (" Before the first iteration the penalty has changed nothing." if unused else "")
    )


def leak_html(leak, label_names):
    """Real pictures above the rebuilt ones, one of each label, with the label read off. Returns HTML."""
    firsts = {int(label): row for row, label in reversed(list(enumerate(leak.labels)))}
    rows = [row for _, row in sorted(firsts.items())][:SHOWN]
    headings = [
        f"{label_names[leak.labels[row]]}, read as {label_names[leak.guessed[row]]}" for row in rows
    ]
    pairs = ((NEVER_SENT, leak.pictures[rows]), (REBUILT, leak.rebuilt[rows]))
    return charts.strip_html(pairs, headings, scale=max(1, 42 // leak.pictures.shape[-1]))
