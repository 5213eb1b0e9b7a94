"""What peers say, what is chosen of it and why, and the kernel routes that follow."""
