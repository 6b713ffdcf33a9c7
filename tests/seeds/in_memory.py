"""What lectures on caching do with caches in memory and with a server, in Backburner's words."""

from backburner import Cache

# In memory: least recently used, time to live, least frequently used

lru = Cache("memory://?policy=lru&max_items=100")
for number in range(150):
    lru.put(f"page:{number}", number)
    lru.get("page:0")
assert lru.get("page:0") == 0
assert lru.get("page:1") is None
assert lru.get("page:149") == 149

ttl = Cache("memory://?policy=ttl&max_items=100", default_ttl=300)  # max 100 items, live for 5 minutes
ttl.put("short", "value", ttl=1)
for number in range(100):
    ttl.put(f"page:{number}", number)
assert ttl.get("short") is None  # the first to end is the first to go
assert ttl.get("page:99") == 99

lfu = Cache("memory://?policy=lfu&max_items=100")
for _ in range(10):
    lfu.put("often", "value")
    lfu.get("often")
for number in range(150):
    lfu.put(f"page:{number}", number)
assert lfu.get("often") == "value"


# Keys from the operation and its arguments; everything that a change may have touched is cleared by its tag


def make_cache_key(operation: str, *args: object) -> str:
    return operation + ":" + ":".join(str(arg) for arg in args)


cache = Cache("memory://?max_items=100", default_ttl=300)
books = {1: "Emma"}


def get_book(book_id: int) -> str | None:
    return cache.tags("books").remember(make_cache_key("get_book", book_id), callback=lambda: books.get(book_id))


def create_book(book_id: int, title: str) -> None:
    books[book_id] = title
    cache.tags("books").flush()  # clear cache on create


assert get_book(1) == "Emma"
assert get_book(2) is None
create_book(2, "Persuasion")
assert get_book(2) == "Persuasion"
