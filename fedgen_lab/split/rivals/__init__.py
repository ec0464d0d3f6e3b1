"""HuSCF-GAN's rivals: the same nets, pictures, batches and number of generator steps, another way to exchange them.

Each module has a Flower `client_app`, a `server_app`, `WHAT` (its kinds of message, in words) and `run(scenario)`.
"""
