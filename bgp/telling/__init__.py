"""What a node originates, what each session is told of all it knows, and the telling."""
