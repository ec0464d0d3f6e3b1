"""Federated LoRA for Stable Diffusion: the pipeline, the adapter, the local step, the Flower app, its rivals."""
