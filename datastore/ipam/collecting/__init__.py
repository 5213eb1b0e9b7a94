"""What nobody uses any more is given back; what is unknown is in use.

collect     two observations and a live check
unused      containers, tunnels, nodes that are gone
idle        blocks, claims and pools
history     how long records of the past are kept
departure   a node that is gone for good: all that is its, when a person says so
"""
