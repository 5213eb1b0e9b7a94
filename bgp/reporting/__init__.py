"""What the speaker says of itself: status, answers, metrics, and what it finds wrong."""
