"""Whom a node is to peer with, and on what terms: pure, from a snapshot."""
