"""FedGen Lab: learn federated generative AI by training small models together with simulated devices."""

__version__ = "0.2.0"
