"""The only code that touches the kernel: netlink, nftables, sysctls, tunnels, namespaces."""
