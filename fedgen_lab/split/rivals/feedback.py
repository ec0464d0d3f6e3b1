"""A generator on the server, discriminators with the clients: what MD-GAN and Federated Split GAN have in common.

Lab 07. Fakes go down with labels that the server drew evenly; a client's discriminator learns from fakes and its own
pictures, then judges fakes, and the gradient of its loss at their pixels goes up. The server sends everybody's through
its generator. The loss is the non-saturating one of `gan_step`, and so is the order.
"""

import torch
from flwr.app import ArrayRecord, Context, Message

from fedgen_lab.federation.arrays import tensors_of
from fedgen_lab.split.batch import draw_batch
from fedgen_lab.split.local import adversarial_loss
from fedgen_lab.split.nets import SIZES, run_blocks
from fedgen_lab.split.rivals import core
from fedgen_lab.split.run import GanStep
from fedgen_lab.split.scenario import GanRound

WHAT = {
    "train.feedback": "down: fakes, and labels for them that the server drew; up: the gradient of the client's loss at "
    "each pixel of the fakes",
    "train.give": "down: the word to hand over; up: the discriminator",
    "train.take": "down: the discriminator to go on with; up: nothing",
}


def client_app(dealt=None, on_step=None, keep=None, look=run_blocks, mods=()):
    """The device's half. look(blocks, pictures, labels) -> logits is how it runs its discriminator.

    keep: see `core.recall`; mods: Flower's mods of the `ClientApp`.
    """
    app = core.new_client_app(mods)

    @app.train("feedback")
    def feedback(message: Message, context: Context) -> Message:
        scenario, client, server_round = core.addressee(message, context)
        gan, sent = core.recall(context, scenario, keep), tensors_of(message.content["fakes"])
        judged, judged_labels = sent["judged"].requires_grad_(), sent["judged_labels"]
        fakes, fake_labels = (
            sent.get("learned", judged.detach()),
            sent.get("learned_labels", judged_labels),
        )
        owned, iteration = (
            core.own_data(scenario, client, dealt),
            int(message.content["config"]["iteration"]),
        )
        pictures, labels, _ = draw_batch(scenario, *owned, client, server_round, iteration)

        gan.d_adam.zero_grad()
        loss = adversarial_loss(look(gan.discriminator, fakes, fake_labels), real=False)
        loss = loss + adversarial_loss(look(gan.discriminator, pictures, labels), real=True)
        loss.backward()
        gan.d_adam.step()
        loss = adversarial_loss(look(gan.discriminator, judged, judged_labels), real=True)
        (at_fakes,) = torch.autograd.grad(loss, judged)  # (B, C, H, W)
        core.remember(context, gan, "d", keep)
        on_own, on_fakes = (
            core.step_flops(scenario, number, "d") for number in (len(owned[1]), len(judged))
        )
        flops = (on_own + 2 * on_fakes) / 3  # two of the three batches are the server's fakes
        return core.answer(message, client, len(owned[1]), flops, feedback={"x": at_fakes})

    @app.train("give")
    def give(message: Message, context: Context) -> Message:
        scenario, client, _ = core.addressee(message, context)
        state = core.recall(context, scenario, keep).state("d")
        return core.answer(
            message, client, len(core.own_data(scenario, client, dealt)[1]), discriminator=state
        )

    @app.train("take")
    def take(message: Message, context: Context) -> Message:
        scenario, client, _ = core.addressee(message, context)
        gan = core.recall(context, scenario, keep)
        gan.load(tensors_of(message.content["discriminator"]))
        core.remember(context, gan, "d", keep)
        return core.answer(message, client, len(core.own_data(scenario, client, dealt)[1]))

    return app


def serve(grid, scenario, batches, shift, mix, on_round, on_step, refused):
    """All rounds of a generator on the server whose discriminators are with the clients.

    Client i judges batch i of `batches` (from 0 again where there are fewer) and learns from the one `shift` further.
    mix(scenario, round, {client: discriminator}) -> {client: discriminator} ends a round, except the last.
    """
    clients = core.Clients(grid, scenario.num_clients, [] if refused is None else refused)
    gan = core.start_gan(scenario)
    for server_round in range(scenario.rounds + 1):
        for iteration in range(scenario.iterations if server_round else 0):
            generator_step(scenario, gan, clients, server_round, iteration, batches, shift)
            if on_step is not None:
                on_step(GanStep(server_round, iteration + 1, scenario.iterations))
        if 0 < server_round < scenario.rounds:
            given = clients.ask("give", server_round, expected={"discriminator": gan.state("d")})
            given = {
                client: tensors_of(content["discriminator"]) for client, content in given.items()
            }
            mixed = mix(scenario, server_round, given)
            clients.ask(
                "take",
                server_round,
                lambda client, of=mixed: {"discriminator": ArrayRecord(of[client])},
            )
        if on_round is not None:
            state = {name: tensor.clone() for name, tensor in gan.generator.state_dict().items()}
            generators = clients.each(scenario, state)
            on_round(
                GanRound(
                    server_round, scenario.rounds, generators, trace=getattr(grid, "trace", None)
                )
            )


def generator_step(scenario, gan, clients, server_round, iteration, batches, shift):
    """One iteration: fakes go down, feedback comes up and through the generator, as the mean over the clients."""
    made = [
        make_fakes(scenario, gan.generator, server_round, iteration, number)
        for number in range(batches)
    ]

    def records(client):
        judged, learned = client % batches, (client + shift) % batches
        sent = {"judged": made[judged][0].detach(), "judged_labels": made[judged][1]}
        if learned != judged:
            sent |= {"learned": made[learned][0].detach(), "learned_labels": made[learned][1]}
        return {"fakes": ArrayRecord(sent)}

    up = clients.ask("feedback", server_round, records, {"feedback": {"x": made[0][0]}}, iteration)
    gradients = [torch.zeros_like(fakes) for fakes, _ in made]
    for client, content in up.items():
        gradients[client % batches] += tensors_of(content["feedback"])["x"] / len(up)
    gan.g_adam.zero_grad()
    torch.autograd.backward([fakes for fakes, _ in made], gradients)
    gan.g_adam.step()


def make_fakes(scenario, generator, server_round, iteration, number):
    """Batch `number` of an iteration: fakes (B, C, H, W), with their graph, and labels (B,)."""
    size = SIZES[scenario.size]
    draw = torch.Generator().manual_seed(scenario.seed_of(server_round, iteration, number, 0))
    labels = torch.randint(size.num_labels, (scenario.batch_size,), generator=draw)
    z = torch.randn(scenario.batch_size, size.z_dim, generator=draw)
    return run_blocks(generator, z, labels), labels
