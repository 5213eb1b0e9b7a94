"""ExaBGP as a child process: its configuration, its API in both directions, its sockets."""
