"""What an in-memory store is used for: sessions, leaderboards, real-time analytics."""

from datetime import UTC, datetime
from secrets import token_urlsafe

from app.core.cache import cache

# Session storage: maintaining user session information in web applications

token = token_urlsafe()
cache().put(f"session:{token}", {"user": 7, "basket": {"emma", "persuasion"}}, ttl="30m")
session = cache().get(f"session:{token}")
assert session == {"user": 7, "basket": {"emma", "persuasion"}}
assert cache().touch(f"session:{token}", ttl="30m")  # somebody is still there
cache().forget(f"session:{token}")  # logged out
assert not cache().touch(f"session:{token}", ttl="30m")

# Gaming leaderboards: sorting results and updating them in real time

players = ["ada", "grace", "mary"]
for player, points in [("ada", 10), ("grace", 30), ("mary", 20), ("ada", 25)]:
    cache().increment(f"score:{player}", amount=points)
scores = cache().many(f"score:{player}" for player in players)
leaders = sorted(scores, key=scores.__getitem__, reverse=True)
assert leaders == ["score:ada", "score:grace", "score:mary"]

# Real-time analytics: quick analysis, such as fraud detection


def payments_this_minute(card: str) -> int:
    minute = datetime.now(UTC).strftime("%H:%M")
    return cache().increment(f"payments:{card}:{minute}", ttl=120)


counts = [payments_this_minute("4242") for _ in range(3)]
assert counts in ([1, 2, 3], [1, 1, 2], [1, 2, 1])  # a minute may end in between
cache().close()
