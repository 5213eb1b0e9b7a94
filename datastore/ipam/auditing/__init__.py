"""Every inconsistency there can be, and what of it is safe to repair.

findings    what can be found: faults, and who, why and how to mend it
soundness   blocks, claims and handles against each other
audit       all of it, with who uses what
mend        what `muslin ipam check --fix` does
"""
