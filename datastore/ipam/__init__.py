"""IPAM: who holds which pod address. Decisions are pure; the ledger carries them out by compare-and-swap.

    Request ──> assign(books, request, now) ──> Step(changes, guards, grant) ──> ledger ── txn ──> store
                        ^                                                          │
                        └── books: pools, blocks, handles, ... as last seen <──────┘ Conflict: read and decide again

A decision relies on what the books say, and the step carries a guard for each thing it relied on. So books may be
old: a step made from them is refused by the store, never wrong.

    model      the values: Request, Owner, Step, Grant, Exhausted
    books      what is known, indexed; changed by what is read and by what is written
    ranges     prefixes by family and length: what is around, within or over another
    block      one block: take, give back, which address is next
    pools      which pools may serve a request, and where a node looks for a new block in them
    assign     a request's addresses: own blocks, a new block, a borrowed address
    claim      how a node comes to a block, in two transactions
    exhaustion why there is no address, in a sentence
    release    a handle's end, or an address's; a block's and an affinity's
    holders    who holds addresses and who says that he uses them, of a whole listing
    collect    what nobody uses: two observations and a live check; unused (containers, tunnels), idle (blocks, pools)
    departure  a node that is gone for good: all that is its, when a person says so
    history    how long records of the past are kept
    split      a pool in n
    audit      every inconsistency there can be, and mend: what is safe to repair
    ledger     the edge: reads, writes in groups, retries
"""
