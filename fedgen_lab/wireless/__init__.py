"""The radio: how far, how fast, who gets how much band, and how long a recorded run takes on a wireless network."""
