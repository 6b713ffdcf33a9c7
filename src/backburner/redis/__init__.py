"""One way to reach a Redis or Valkey server, for the cache and the queue alike.

redis-py connects, logs in and speaks TLS; what is sent when, and for how long anybody waits, is decided here.

    url, client, cluster  what a URL means; redis-py's clients with time budgets; one node of a cluster
    blocking              automatic pipelining for threads
    pipelined, stream     automatic pipelining for asyncio, and one connection's life. `link` has the bytes on a
                          transport, `linked` puts redis-py's connections on a link
    patient, spare        connections for one caller: for commands that block; for sending now and reading later
    in_step               connections that are closed if their user is interrupted between a command and its reply
    tracking, push        hearing which keys have changed; parsers for push messages
    breaker               leaving a server alone while it is ill
    command, script       commands as bytes; Lua scripts
    embedded              a server that needs no installation
"""
