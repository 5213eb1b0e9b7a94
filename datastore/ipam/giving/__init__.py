"""Who gets which address, and gives it back: pure decisions over books, one transaction each.

pools       which pools may serve a request, and where a node looks for a new block in them
assign      a request's addresses: own blocks, a new block, a borrowed address
claim       how a node comes to a block, in two transactions
exhaustion  why there is no address, in a sentence
past        what is remembered of an address that is given back
release     a handle's end, or an address's; a block's and an affinity's
"""
