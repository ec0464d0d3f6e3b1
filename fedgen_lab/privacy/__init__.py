"""What leaks from federated generative AI, and what helps. Labs 06, 08 and 09."""
