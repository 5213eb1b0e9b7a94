"""The speaker: which peers and adverts a node should have, ExaBGP to talk to them, learnt routes into the kernel."""
