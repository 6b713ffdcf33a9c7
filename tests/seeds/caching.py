"""Caching, typed in from a guide: the verbs, cache-aside, tags, cached queries and their invalidation."""

from sqlalchemy.orm import Session

from app.core.cache import cache
from app.core.database import get_db
from app.models.user import User
from app.schemas import UserCreate, UserUpdate

# Basic usage

# Store a value
cache().put("key", "value", ttl=3600)  # TTL in seconds

# Get a value
value = cache().get("key")
assert value == "value"
value = cache().get("key", default="default_value")  # With default
assert value == "value"
assert cache().get("no such key", default="default_value") == "default_value"

# Check if key exists
if cache().has("key"):
    print("Key exists")

# Delete a value
cache().forget("key")
assert not cache().has("key")
assert cache().missing("key")

# Clear all cache
cache().put("key", "value")
cache().flush()
assert cache().missing("key")

# Remember pattern (cache-aside)

db = next(get_db())
ada = User.create(db, obj_in=UserCreate(email="ada@example.org", name="Ada", password="correct horse"))
user_id = ada.id
queries = []

for _ in range(2):
    # Get user from cache, or fetch from DB if not cached
    user = cache().remember(
        f"user:{user_id}",
        ttl=300,  # 5 minutes
        callback=lambda: queries.append("query") or User.get(db, id=user_id),
    )
    assert isinstance(user, User)
    assert (user.id, user.name, user.email) == (user_id, "Ada", "ada@example.org")
assert queries == ["query"]

# Advanced operations

# Store forever (no expiration)
cache().forever("key", "value")

# Add only if key doesn't exist
assert not cache().add("key", "another value", ttl=3600)
assert cache().add("new key", "value", ttl=3600)

# Get and delete (pull)
value = cache().pull("key", default=None)
assert value == "value"
value = cache().pull("key", default=None)
assert value is None

# Increment/Decrement numeric values
assert cache().increment("counter", amount=1) == 1
assert cache().increment("counter", amount=1) == 2
assert cache().decrement("counter", amount=1) == 1
assert cache().get("counter") == 1

# Tagged cache

user_data = {"name": "Ada"}

# Create tagged cache
tagged = cache().tags("users", "profile")

# Operations use tags automatically
tagged.put("user:1", user_data, ttl=3600)
assert tagged.get("user:1") == user_data
cache().put("book:1", "untagged", ttl=3600)
tagged.flush()  # Flush all keys with these tags
assert tagged.get("user:1") is None
assert cache().get("book:1") == "untagged"

# Example 1: caching database queries


def get_active_users(db: Session) -> list[User]:
    """Get active users with caching."""
    return cache().remember(
        "users:active",
        ttl=600,  # 10 minutes
        callback=lambda: User.get_multi(db, skip=0, limit=100),
    )


assert "Ada" in [user.name for user in get_active_users(db)]
assert "Ada" in [user.name for user in get_active_users(db)]

# Example 2: cache invalidation on update

user = User.update(db, id=user_id, obj_in=UserUpdate(name="Ada Lovelace"))

# Invalidate related cache
cache().forget(f"user:{user_id}")
cache().forget("users:active")  # Invalidate list cache
assert "Ada Lovelace" in [user.name for user in get_active_users(db)]

# Example 3: using cache tags

profile_data, settings_data = {"bio": "Countess"}, {"theme": "dark"}

# Cache with tags
tagged = cache().tags("users")
tagged.put("profile:1", profile_data, ttl=3600)
tagged.put("settings:1", settings_data, ttl=3600)
assert cache().get("profile:1") == profile_data

# Flush all user-related cache
tagged.flush()  # Removes both profile:1 and settings:1
assert cache().many(["profile:1", "settings:1"]) == {}

# Troubleshooting: check Redis connection

try:
    cache().put("test", "value")
    print("Redis connected!")
except Exception as e:
    print(f"Redis error: {e}")
assert cache().get("test") == "value"

db.close()
cache().close()
