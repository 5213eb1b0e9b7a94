"""The vocabulary every room shares (names, resources, snapshot, routing rules) and the runtime kit."""
