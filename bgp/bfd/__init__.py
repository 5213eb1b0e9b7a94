"""Bidirectional Forwarding Detection with a peer one hop away (RFC 5880, RFC 5881): is the path to it alive, now?

    agent's process                       a process of its own, at real-time priority
    watch.Bfd ──── UNIX socket ────────── keeper ──── session (pure) ──── codec ──── sockets ──── router
              what should be watched ──>         <── states, one line each

BGP alone takes its hold time to see that a router has gone silent; BFD takes three missed packets. A busy agent
cannot keep such times, so its child does, which does nothing else. The child outlives its agent for a while: an agent
that is restarted finds its sessions as it left them, and the router sees nothing.

What the child runs (everything here but `watch`) imports the standard library only, so that it starts in 50 ms.
"""
