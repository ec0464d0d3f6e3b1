"""Which Flower strategy a scenario asks for: one function, so that every combination of knobs is decided in one place.

Labs 03, 04, 05 and 08. A strategy is the server's half of a round: whom it asks, what it sends, how it checks and
aggregates what comes back. Modules are imported when a knob needs them.
"""

from fedgen_lab.federation.fedavg import CheckedFedAvg


def strategy_of(scenario, **checked):
    """The strategy for a `Scenario`; `checked` goes to `CheckedFedAvg`.

    Raises ValueError, naming both knobs, for a combination that makes no sense.
    """
    settings = {"min_available_nodes": scenario.num_clients, "seed": scenario.seed, **checked}
    return CheckedFedAvg(**settings)
