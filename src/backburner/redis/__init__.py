"""One way to reach the server, for the cache and the queue alike."""
