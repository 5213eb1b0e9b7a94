"""Whole clusters on one machine: network namespaces as hosts, real BIRD, FRR and GoBGP as top-of-rack routers.

topology   what the user writes (YAML)                      pure
wiring     every name, link and address that follows from it pure
manifests  the resources that follow from it                 pure
ip, processes, routers, frr, gobgp, probe, capture           the parts, each usable alone
cluster    brings it all up, asks it things, takes it down
uml        a User-Mode Linux kernel for what the host's kernel lacks (IP-in-IP)
"""
