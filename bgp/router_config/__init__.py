"""What a rack's router has to be told about the nodes that peer with it."""
