"""Addresses for Services of type LoadBalancer: who asks for which, and what to do next about it.

wishes      what a Service asks for, by its families, annotations and class
ingress     where a Service says which addresses it has
plan        one state of the store ──> what to give, take and remove next
balancer    the edge: follows the store, carries the plan out, waits and tries again
waiting     why a Service has no address, from a listing, for people
"""
