"""The node agent: makes this host's routes, rules, tunnels and sysctls what the datastore says."""
