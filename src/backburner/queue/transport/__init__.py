"""How messages travel, as kombu transports, and what they leave on the server.

`redis` is the publishing half and finds the transport for a URL; `transports` are what kombu finds there. `channel` is
the consuming half, and `polling` watches its connections. It asks for messages by way of `claims` (how many at a time:
`pace`), under the lease of a `consumer`, whose thread sends `decisions` about them. `held` knows the messages that are
with the worker, `request` runs them, `reading` checks them, `failures` records what failed without having run,
`scheduled` answers ``inspect scheduled``. `worker` is what is known of Celery's worker; `wire` one connection, `native`
a thread that gevent cannot stop.

All keys are in one database and begin with kombu's `global_keyprefix`, if there is one. Times are the server's.

    <queue>                       list: waiting messages of priority 0, as stock kombu has it. LPUSH adds, RPOP takes.
    <queue>\\x06\\x16<priority>     list: those of priority 1 to 9. 0 goes first, 9 last, as with stock kombu on Redis.
                                  Producers use those that stock workers look at, 0, 3, 6 and 9; consumers look at all
                                  ten, and put what they meet too early into the list of its own priority.
    backburner:delayed            sorted set: messages that are not due yet. Score: when, in seconds since 1970. Member:
                                  the job's id, or the message's delivery tag if it has none; if that is taken, the
                                  delivery tag, the list and the name that is taken, one a line.
    backburner:delayed:entries    hash: member to entry. An entry is the list to push to, a newline, the message.
    backburner:consumers          sorted set: consumer to the time when its lease ends. One per process and connection.
    backburner:leased:<consumer>  hash: number to entry, for what the consumer has taken and not acknowledged.
    backburner:slots              hash: consumer to how many messages it runs at a time, if not what its name says.
    backburner:crashes:<tag>      string: how many workers the message with this delivery tag has killed. Expires.
    backburner:unrecorded:<tag>   string: how often what its job came to could not be recorded. Expires.
    backburner:unknown:<tag>      string: when the message was first taken by a worker that does not know its task.
                                  Expires.
    backburner:failed             sorted set: messages that will not be tried again. Score: since when. Member: as for
                                  delayed.
    backburner:failed:<member>    hash: reason, detail, list, message.
    backburner:failed-untold      set: members whose failure has yet to be written as their job's result.
    backburner:job:<id>           string: that the job was enqueued; see ``enqueue.lua``. Expires.

To enqueue is to LPUSH to the list; or, where the server's clock is before the message's eta, to ZADD to the delayed set
and HSET its entry, in one step.
"""

from backburner.queue.transport.channel import Channel, SentinelChannel
from backburner.queue.transport.transports import SentinelTransport, Transport

__all__ = ["Channel", "SentinelChannel", "SentinelTransport", "Transport"]
