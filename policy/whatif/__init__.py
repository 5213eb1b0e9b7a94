"""What a change would do, who may talk to whom, and what is odd: questions about policy, asked before it is applied."""
