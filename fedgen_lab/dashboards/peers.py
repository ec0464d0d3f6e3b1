"""The peers' dashboard: models that find each other on a chain, live, and what every peer thinks of each.

Lab 10; PDFed, arXiv 2409.18245. Knobs make a `PeersScenario`, Start plays it (`fedgen_lab.peers.run.run_peers`), and
the page shows the chain's log, who built on whom, the votes, the rewards, and for one model all that is known of it.
"""

import html
from types import SimpleNamespace

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML, display

from fedgen_lab.dashboards import charts, controls
from fedgen_lab.dashboards.job import runs_inline
from fedgen_lab.dashboards.panel import Panel
from fedgen_lab.dashboards.peers_charts import (
    COLOURS,
    pay,
    provenance_chart,
    rewards_chart,
    votes_chart,
)

LOG_LINES = 40  # newest first; the whole log is on the chain
SHOWN = 10  # pictures of the chosen model
BUTTONS = 48  # of the newest models, to click on; the list beside them has all
POT_REWARDS = 1_000  # the pot holds so many rewards
MACHINES = [("own ledger, no money", "ledger"), ("Ethereum machine", "evm")]


class PeersRun:
    """One live run: its scenario, what has happened so far, and, when it has ended, its outcome."""

    def __init__(self, scenario, machine):
        self.scenario, self.machine = scenario, machine
        self.moments, self.outcome, self.rewards, self.chain = [], None, None, None

    @property
    def computed(self):
        """True once a model is on the chain."""
        return any(event.kind == "Submitted" for moment in self.moments for event in moment.events)

    def so_far(self):
        """The `PeersOutcome` at this moment; without the peers' own scores while they are still at work."""
        from fedgen_lab.peers.run import PeersOutcome

        if self.outcome is not None:
            return self.outcome
        accounts = [] if self.chain is None else self.chain.accounts[1 : self.scenario.voters + 1]
        people = tuple(
            SimpleNamespace(account=one, number=number) for number, one in enumerate(accounts)
        )
        return PeersOutcome(self.scenario, self.chain, None, people, tuple(self.moments))

    def version(self):
        """Changes when the page should."""
        return len(self.moments), self.outcome is not None

    def summary(self):
        """What came out, in a sentence."""
        outcome = self.so_far()
        models, votes = outcome.models(), outcome.votes()
        seconds = self.moments[-1].seconds if self.moments else 0
        revealed = int(votes.notna().to_numpy().sum())
        return f"{len(models)} models and {revealed} revealed votes in {seconds:.0f} simulated seconds."

    def strip(self):
        """The chain's log, newest first, as HTML."""
        return log_html(self.so_far())


def play(run, job):
    """Play the run's scenario; a stop keeps what is on the chain."""
    job.report("Dealing the pictures and making the chain.")
    from fedgen_lab.peers.chain import Chain
    from fedgen_lab.peers.ledger import Ledger
    from fedgen_lab.peers.run import run_peers, terms_of

    scenario = run.scenario
    terms = terms_of(scenario)
    if run.machine == "evm":
        chain = Chain(terms=terms)
        if scenario.voters >= len(chain.accounts):
            raise ValueError(
                f"The embedded machine has {len(chain.accounts)} accounts, too few for {scenario.voters} voters and "
                "the one who deploys. Choose fewer peers, or the ledger."
            )
        if scenario.reward_wei:
            chain.fund(chain.accounts[0], POT_REWARDS * scenario.reward_wei)
    else:
        chain = Ledger(scenario.voters + 1, terms)
    run.chain = chain

    def heard(moment):
        run.moments.append(moment)
        job.report(
            f"Second {moment.seconds:.0f} of {scenario.seconds:.0f} (simulated): peer {moment.peer}, {moment.what}."
        )

    outcome = run_peers(scenario, chain, on_moment=heard, should_stop=job.should_stop)
    if run.machine == "evm":
        kept = pay(chain, chain.accounts[0])
        run.rewards = {peer.number: kept.get(peer.account, 0) for peer in outcome.peers}
    run.outcome = outcome


def log_html(outcome):
    """The newest events of the chain as an HTML table, in words."""
    rows, number = [], {}
    for moment in outcome.moments:
        for event in moment.events:
            content = event.values.get("content")
            if event.kind == "Submitted":
                number[content] = len(number)
            who = outcome.names.get(event.account)
            rows.append(
                {
                    "second": f"{moment.seconds:.0f}",
                    "block": event.block,
                    "who": "the task" if who is None else f"peer {who}",
                    "what": _in_words(event, number),
                }
            )
    if not rows:
        return ""
    return charts.table_html(pd.DataFrame(rows[: -LOG_LINES - 1 : -1]))


def _in_words(event, number):
    model = (
        f"model {number[event.values['content']]}" if event.values.get("content") in number else ""
    )
    if event.kind == "Submitted":
        parents = ", ".join(str(number[parent]) for parent in event.values["parents"])
        return f"submits {model}, {f'from {parents}' if parents else 'begun anew'}"
    if event.kind == "Revealed":
        return f"reveals its vote on {model}: {event.values['score']:.3g}"
    known = {
        "Registered": "registers",
        "Left": "leaves",
        "Committed": f"promises a vote on {model}",
        "Rewarded": f"has seen no better than {model}: a reward",
        "Funded": "fills the pot",
        "Settled": f"shares what {model} has earned",
        "Withdrawn": "takes its money out",
    }
    return known.get(event.kind, event.kind)


def facts_of(outcome, row):
    """All that is known of the model in this row: a table with the columns "of this model" and "is"."""
    from fedgen_lab.peers.manifest import read_manifest, training_facts
    from fedgen_lab.peers.store import Unusable, cid_of

    model, votes = outcome.models().iloc[row], outcome.votes().iloc[row]
    told = [("content id", model["cid"]), ("author", f"peer {model['author']}")]
    told += [("parents", ", ".join(map(str, model["parents"])) or "none")]
    if outcome.store is not None:
        submission = outcome.chain.model(model["content"])
        try:
            claim = read_manifest(outcome.store.get(cid_of(submission.manifest)), submission)
            told += [
                (f"manifest: {name}", str(value)) for name, value in training_facts(claim).items()
            ]
            told += [("manifest: signature", "verified; parents and wallet as on the chain")]
        except Unusable as reason:
            told += [("manifest", str(reason))]
    for peer in outcome.peers:
        own = getattr(peer, "judged", {}).get(model["content"])
        vote = votes.get(peer.number)
        said = [f"own score {own['score']:.3g}"] if own else []
        said += [f"voted {vote:.3g}"] if pd.notna(vote) else []
        said += [getattr(peer, "refused", {}).get(model["content"], "")]
        told += [(f"peer {peer.number}", "; ".join(filter(None, said)) or "no opinion")]
    return pd.DataFrame(told, columns=["of this model", "is"])


class PeersDashboard:
    """What `peers_dashboard` shows. `panel.runs` holds the live runs; `chosen` the drop-down list of models."""

    def __init__(self, scenario):
        from fedgen_lab.peers.attackers import ATTACKS
        from fedgen_lab.peers.scenario import CHOICES, OBJECTIVES, VOTE_RULES

        self.first = scenario
        knob = controls.knob
        self.numbers = {
            "num_peers": knob("Peers", scenario.num_peers, 1, 8, help="who train, submit and vote"),
            "validators": knob(
                "Validators", min(scenario.validators, 4), 0, 4, help="who only vote"
            ),
            "skew": knob(
                "Skew",
                float(scenario.skew),
                0.0,
                1.0,
                0.1,
                help="0: all classes; 1: one class each",
            ),
            "bandwidth_hz": controls.log_knob(
                "Bandwidth (MHz)", scenario.bandwidth_hz / 1e6, 0.01, 100, "shared"
            ),
            "seconds": knob(
                "Seconds",
                float(scenario.seconds),
                10.0,
                600.0,
                5.0,
                help="simulated, until the end",
            ),
            "novelty_weight": knob(
                "Novelty weight", float(scenario.novelty_weight), 0.0, 1.0, 0.1, help="of a score"
            ),
            "own_weight": knob(
                "Own weight",
                float(scenario.own_weight),
                0.0,
                1.0,
                0.1,
                help="against others' votes",
            ),
            "staleness": knob(
                "Staleness", float(scenario.staleness), 0.0, 1.0, 0.1, help="factor per newer model"
            ),
            "attackers": knob("Attackers", scenario.attackers, 0, 7, help="the last so many peers"),
            "seed": knob("Seed", min(scenario.seed, 99), 0, 99, help="decides everything"),
        }
        self.words = {
            "choice": controls.choice("Go on from", list(CHOICES), scenario.choice),
            "objective": controls.choice("Score", list(OBJECTIVES), scenario.objective),
            "vote_rule": controls.choice("Votes", list(VOTE_RULES), scenario.vote_rule),
            "attack": controls.choice(
                "Attack",
                [("none", ""), *((name, name) for name in ATTACKS)],
                scenario.attack,
                help="; ".join(f"{attack.name}: {attack.what}" for attack in ATTACKS.values()),
            ),
        }
        self.machine = controls.choice("Chain", MACHINES, "evm")
        self.panel = Panel(
            "Let peers meet", self._new_run, play, self.scenario, lambda _: self.draw()
        )
        self.provenance, self.votes, self.rewards = map(
            charts.LiveChart, ("provenance", "votes", "rewards")
        )
        self.chosen = controls.choice("Model", [("none yet", None)])
        self.chosen.observe(lambda _: self._show_chosen(), names="value")
        self.clicks, self.buttons = controls.row([]), {}  # (row, author) -> its button, made once
        self.model = widgets.HTML(layout={"width": "100%"})

    def scenario(self):
        """The `PeersScenario` that the knobs describe now. Raises ValueError where they don't fit together."""
        from dataclasses import replace

        named = {name: knob.value for name, knob in self.numbers.items()}
        named |= {name: menu.value for name, menu in self.words.items()}
        if not named["attack"]:
            named["attackers"] = 0
        for name in ("skew", "novelty_weight", "own_weight", "staleness"):
            named[name] = round(named[name], 2)
        named["bandwidth_hz"] *= 1e6
        return replace(self.first, **named)

    def show(self):
        """Put everything into the output of the running cell; for HTML copies a first run, without the knobs."""
        live = not runs_inline()
        if live:
            knobs = controls.grid([knob.box for knob in self.numbers.values()])
            menus = controls.row([*self.words.values(), self.machine])
            display(
                widgets.VBox(
                    [controls.style(), knobs, menus, self.panel.box], layout={"width": "100%"}
                )
            )
        self.provenance.show()
        if live:
            display(
                widgets.VBox(
                    [self.clicks, controls.row([self.chosen]), self.model], layout={"width": "100%"}
                )
            )
        for chart in (self.votes, self.rewards):
            chart.show()
        if not live:
            self.panel.start()
            words = html.escape(self.panel.status.sentence)
            log = self.panel.latest().strip() if self.panel.latest() else ""
            display(HTML(f"{controls.STYLE}<p>{words}</p>{log}{self.model.value}"))
        return self

    def draw(self):
        """Draw the charts anew, and the models to choose from."""
        run = self.panel.latest()
        outcome = run.so_far()
        models = outcome.models()
        options = [(f"{row}, by peer {author}", row) for row, author in enumerate(models["author"])]
        kept = self.chosen.value
        if options and tuple(options) != tuple(self.chosen.options):
            self.chosen.options = options
            self.chosen.value = (
                kept if kept is not None and kept < len(options) else len(options) - 1
            )
            newest = list(enumerate(models["author"]))[-BUTTONS:]
            self.clicks.children = [self._button(row, int(author)) for row, author in newest]
        self._show_chosen()
        if run.outcome is not None:
            self.rewards.update(*rewards_chart(outcome, run.rewards))
        self.votes.update(*votes_chart(outcome))

    def _button(self, row, author):
        """A model to click on, in its author's colour; who uses the keyboard takes the list of models."""
        if (row, author) not in self.buttons:
            colour = COLOURS[author % len(COLOURS)]
            button = self.buttons[row, author] = widgets.Button(
                description=str(row),
                tooltip=f"model {row}, by peer {author}",
                tabbable=False,
                layout={"width": "2.8em", "margin": "1px"},
                style={
                    "button_color": colour,
                    "text_color": "white" if colour == COLOURS[0] else "black",
                },
            )
            button.on_click(lambda _: setattr(self.chosen, "value", row))
        return self.buttons[row, author]

    def _new_run(self, scenario):
        return PeersRun(scenario, self.machine.value)

    def _show_chosen(self):
        run, row = self.panel.latest(), self.chosen.value
        if run is None:
            return
        outcome = run.so_far()
        models = outcome.models()
        row = row if row is not None and row < len(models) else None
        self.provenance.update(*provenance_chart(outcome, row))
        self.model.value = "" if row is None else model_html(outcome, row)


def model_html(outcome, row):
    """Pictures that a model drew, and all that is known of it, as HTML."""
    drawn = outcome.samples.get(outcome.models()["content"][row])
    pictures = '<p class="fedgen-note">Its pictures are shown when the run has ended; a withheld model has none.</p>'
    if drawn is not None:
        alts = [f"model {row}, class {label % 10}" for label in range(min(SHOWN, len(drawn)))]
        pictures = charts.pictures_html(drawn[:SHOWN].numpy(), alts, columns=SHOWN)
    with pd.option_context("display.max_colwidth", None):  # a content id is 59 letters long
        facts = charts.table_html(facts_of(outcome, row))
    return f'<p>Model {row} draws:</p>{pictures}<div class="fedgen-facts">{facts}</div>'


def peers_dashboard(**changes):
    """Show the peers' dashboard. changes: of the knobs' first values, as for `peers.scenario.PeersScenario`.

    Returns the `PeersDashboard`. With FEDGEN_RUN=inline one run starts at once.
    """
    from fedgen_lab.peers.scenario import PeersScenario

    return PeersDashboard(PeersScenario.for_profile(**changes)).show()
