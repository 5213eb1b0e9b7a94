"""The shared store: contract, embedded and etcd backends, gRPC server and client, follower, IPAM."""
