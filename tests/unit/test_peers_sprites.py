"""Peers whose pictures are sprites in colour: the same code, another domain."""

from fedgen_lab.peers.run import run_peers
from fedgen_lab.peers.scenario import PeersScenario


def test_peers_with_sprites_submit_judge_and_vote(quickly_drawn):
    scenario = PeersScenario(
        num_peers=2,
        pictures="sprites:solid",
        side=32,
        pictures_per_peer=256,
        samples=128,
        width=8,
        steps=2,
        seconds=30,
        objective="qn",
    )
    outcome = run_peers(scenario)
    votes, models = outcome.votes(), outcome.models()
    assert len(models) >= 2 and set(models["author"]) == {0, 1} and votes.notna().to_numpy().any()
    drawn = next(iter(outcome.samples.values()))
    assert drawn.shape == (128, 3, 32, 32) and not any(peer.refused for peer in outcome.peers)
