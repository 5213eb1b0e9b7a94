"""IPAM: who holds which pod address. Decisions are pure; the ledger carries them out by compare-and-swap.

    Request ──> assign(books, request, now) ──> Step(changes, guards, grant) ──> ledger ── txn ──> store
                        ^                                                          │
                        └── books: pools, blocks, handles, ... as last seen <──────┘ Conflict: read and decide again

A decision relies on what the books say, and the step carries a guard for each thing it relied on. So books may be
old: a step made from them is refused by the store, never wrong.

    model       the values: Request, Owner, Step, Grant, Exhausted
    ranges      prefixes by family and length: what is around, within or over another
    block       one block: take, give back, which address is next
    books       what is known, indexed; changed by what is read and by what is written
    giving/     addresses, blocks and claims, given and given back
    ledger      the edge: carries decisions out; with view (its books), group (many to a transaction), writing (bytes)
    listing/    what is decided on everything there is: who holds, who uses, a pool's end
    collecting/ what nobody uses any more
    auditing/   what is wrong, and what of it can be mended
"""
