"""The HTTP response cache: whole responses, by the standard, in front of routing."""

from backburner.http.engine import ResponseCache
from backburner.http.memo import MemoMiddleware
from backburner.http.middleware import CacheMiddleware
from backburner.http.policy import Policy

__all__ = ["CacheMiddleware", "MemoMiddleware", "Policy", "ResponseCache"]
