"""The CNI plugin: what a container runtime calls to join a pod to the network, and to take it off again."""
