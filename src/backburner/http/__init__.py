"""The HTTP response cache: whole responses, kept and given by the rules of RFC 9111.

A request goes down this list until something answers it:

    middleware           `CacheMiddleware`, in front of the application
    decorator            `@cached_response`, at one route. `door` is the cache in front of a function; it is placed by
                         `endpoint` in plain Starlette, `route` in FastAPI, `after_dependencies` behind dependencies
    engine               `ResponseCache`: plain hits, invalidation by unsafe methods, purging
    visit                everything but a plain hit: find, judge, then serve, wait for others, or call the application
    place                under which keys the responses to a request lie
    call, exchange       one call of the application: what its response means for the cache; who gets its messages
    answer               a stored response as a reply: whole, a range, or 304

    rules                RFC 9111, section by section; pure
    policy               what the application's owner decides
    request, stored      the request; the stored response and its bytes
    headers, structured  header fields as values
    memo                 `MemoMiddleware`: one read per request, for `Cache.memo`
"""

from backburner.http.engine import ResponseCache
from backburner.http.memo import MemoMiddleware
from backburner.http.middleware import CacheMiddleware
from backburner.http.policy import Policy

__all__ = ["CacheMiddleware", "MemoMiddleware", "Policy", "ResponseCache"]
