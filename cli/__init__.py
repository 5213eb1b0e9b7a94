"""The `muslin` command: objects, agents, status, explanations, labs."""
